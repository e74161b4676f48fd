"""Attention inside square windows, plain and shifted, as SwinIR and Uformer use it.

Liu et al., Swin Transformer (ICCV 2021): eq. 4 is the attention with a relative position bias, figure 4 the
cyclic shift whose mask keeps pixels from opposite borders apart. Everything is an explicit product or softmax,
so gradients are exact and can be differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASKED = -100.0
"""Added to the logit of two pixels that are neighbours in a shifted window only because the image was rolled."""


def window_partition(x_BHWC: Tensor, size: int) -> Tensor:
    """Cut B x H x W x C into (B * windows) x size^2 x C, image by image and row by row."""
    batch, height, width, channels = x_BHWC.shape
    grid = x_BHWC.reshape(batch, height // size, size, width // size, size, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


def window_merge(x_WNC: Tensor, height: int, width: int) -> Tensor:
    """Put (B * windows) x size^2 x C together to B x height x width x C."""
    size = round(x_WNC.shape[1] ** 0.5)
    grid = x_WNC.reshape(-1, height // size, width // size, size, size, x_WNC.shape[-1])
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x_WNC.shape[-1])


def relative_position_index(size: int) -> Tensor:
    """Row of the (2 size - 1)^2 offsets that each pair of pixels of a window uses: size^2 x size^2 integers."""
    place = torch.arange(size * size)
    row, column = place // size, place % size
    down, right = row[:, None] - row[None], column[:, None] - column[None]
    return (down + size - 1) * (2 * size - 1) + right + size - 1


def _strip(length: int, size: int, shift: int, device: torch.device | None) -> Tensor:
    """Number of the strip (0, 1 or 2) that each place of a rolled side belongs to."""
    place = torch.arange(length, device=device)
    return (place >= length - size).long() + (place >= length - shift).long()


def shift_mask(height: int, width: int, size: int, like: Tensor | None = None) -> Tensor:
    """What to add to the logits of an image rolled by half a window: windows x size^2 x size^2 of 0 or -100.

    Args:
        height: of the image, a multiple of `size`.
        width: of the image, a multiple of `size`.
        size: side of a window, pixels.
        like: gives the type and the device; float32 on the default device without it.
    """
    device, dtype = (None, torch.float32) if like is None else (like.device, like.dtype)
    rows, columns = (_strip(length, size, size // 2, device) for length in (height, width))
    region = 3 * rows[:, None] + columns[None]
    region_MN = window_partition(region[None, ..., None], size).squeeze(-1)
    apart = region_MN[:, None] != region_MN[:, :, None]
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, MASKED)


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, softmax(q k^T / sqrt(d) + bias) v.

    Args:
        channels: width of the features.
        heads: attention heads, a divisor of `channels`.
        size: side of a window, pixels.
        qkv: maps ... x C to ... x 3C, query, key and value one after the other.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, size: int, qkv: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(size))
        self.qkv = qkv
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x_WNC: Tensor, mask_MNN: Tensor | None = None) -> Tensor:
        """Attend within each window; W counts the windows of the whole batch, M those of one image."""
        windows, pixels, channels = x_WNC.shape
        parts = self.qkv(x_WNC).reshape(windows, pixels, 3, self.heads, channels // self.heads)
        q_WhNd, k_WhNd, v_WhNd = parts.permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q_WhNd * (channels // self.heads) ** -0.5) @ k_WhNd.transpose(-2, -1)
        logits = logits + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask_MNN is not None:
            by_image = logits.unflatten(0, (-1, mask_MNN.shape[0]))
            logits = (by_image + mask_MNN[:, None].to(logits.dtype)).flatten(0, 1)
        mixed: Tensor = self.proj((logits.softmax(-1) @ v_WhNd).transpose(1, 2).flatten(2))
        return mixed


class WindowBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on B x H x W x C.

    Args:
        attention: the attention inside windows.
        size: side of a window, pixels.
        mlp: maps B x H x W x C to the same shape.
        shifted: whether the windows are moved by half their side.
        modulated: whether a learned pattern is added to every window (Uformer, section 3.3).
    """

    def __init__(
        self, attention: WindowAttention, size: int, mlp: nn.Module, *, shifted: bool, modulated: bool = False
    ) -> None:
        super().__init__()
        channels = attention.proj.in_features
        self.size, self.shifted = size, shifted
        self.modulator = nn.Embedding(size * size, channels) if modulated else None
        self.norm1 = nn.LayerNorm(channels)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = mlp

    def forward(self, x_BHWC: Tensor, mask_MNN: Tensor) -> Tensor:
        """Run the block; `mask_MNN` is `shift_mask` of this H and W, used where the windows are shifted."""
        mixed = self._attend(self.norm1(x_BHWC), mask_MNN)
        x_BHWC = x_BHWC + mixed
        result: Tensor = x_BHWC + self.mlp(self.norm2(x_BHWC))
        return result

    def _attend(self, x_BHWC: Tensor, mask_MNN: Tensor) -> Tensor:
        _, height, width, _ = x_BHWC.shape
        half = self.size // 2
        if self.shifted:
            x_BHWC = x_BHWC.roll((-half, -half), (1, 2))
        x_WNC = window_partition(x_BHWC, self.size)
        if self.modulator is not None:
            x_WNC = x_WNC + self.modulator.weight
        mixed = window_merge(self.attn(x_WNC, mask_MNN if self.shifted else None), height, width)
        return mixed.roll((half, half), (1, 2)) if self.shifted else mixed
