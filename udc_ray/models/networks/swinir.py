"""SwinIR (Liang, Cao, Sun, Zhang, Van Gool, Timofte: Image Restoration Using Swin Transformer, ICCVW 2021).

One convolution, groups of Swin transformer layers that each end in a convolution (RSTB, section 3.2), one more
convolution, all with residual connections; the restoration form that keeps the size of the image (denoising).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from udc_ray.errors import DataError, SpecError
from udc_ray.models.networks.windows import WindowAttention, WindowBlock, shift_mask

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of the training images of RGB networks, subtracted before and added after."""


def _layer(width: int, heads: int, window: int, mlp_ratio: float, *, shifted_at: int | None) -> WindowBlock:
    """A Swin transformer layer, shifted where the size that it is built for is given."""
    hidden = int(width * mlp_ratio)
    attention = WindowAttention(width, heads, window, nn.Linear(width, 3 * width))
    parts = {"fc1": nn.Linear(width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, width)}
    layer = WindowBlock(attention, window, nn.Sequential(OrderedDict(parts)), shifted=shifted_at is not None)
    if shifted_at is not None:
        # Only kept because the files hold it: forward derives the mask from the size of its image.
        layer.register_buffer("attn_mask", shift_mask(shifted_at, shifted_at, window))
    return layer


class _Group(nn.Module):
    """RSTB: layers, a convolution, and the input added."""

    def __init__(self, layers: Iterable[WindowBlock], width: int) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(layers)})
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BHWC: Tensor, mask_MNN: Tensor) -> Tensor:
        h = x_BHWC
        for layer in cast(nn.ModuleList, self.residual_group["blocks"]):
            h = layer(h, mask_MNN)
        result: Tensor = x_BHWC + self.conv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return result


class SwinIR(nn.Module):
    """The network without change of size; keys as in the published checkpoints. Defaults: colour denoising.

    Args:
        channels: image channels; three are RGB, whose mean is subtracted.
        image_size: side that it is built for, pixels, a multiple of `window`; it sets the shape of the entries
            `attn_mask` and, unless it is a single window, changes no output.
        width: channels of the features.
        depths: layers of each group.
        heads: attention heads in each group.
        window: side of a window, pixels.
        mlp_ratio: hidden width of the feed-forward, over `width`.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: int = 128,
        width: int = 180,
        depths: Sequence[int] = (6,) * 6,
        heads: Sequence[int] = (6,) * 6,
        window: int = 8,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        if image_size < window or image_size % window:
            raise SpecError(
                f"SwinIR cannot be built for images of {image_size} pixels",
                f"its windows are {window} x {window}",
                f"give image_size a multiple of {window}",
            )
        self.window = window
        self.mean = RGB_MEAN if channels == 3 else (0.0,) * channels
        self.conv_first = nn.Conv2d(channels, width, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(width)))
        shifts = image_size if image_size > window else None
        self.layers = nn.ModuleList(
            _Group((_layer(width, n, window, mlp_ratio, shifted_at=(None, shifts)[i % 2]) for i in range(depth)), width)
            for depth, n in zip(depths, heads, strict=True)
        )
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Restore B x C x H x W; sides that are no multiple of the window are mirrored to the next inside."""
        height, width = x_BCHW.shape[-2:]
        # float32 in every precision, as in the published network, hence not x.new_tensor.
        mean = torch.tensor(self.mean, dtype=torch.float32, device=x_BCHW.device).to(x_BCHW.dtype)[:, None, None]
        x_BCHW = self._pad(x_BCHW) - mean
        shallow = self.conv_first(x_BCHW)
        deep = self.conv_after_body(self._body(shallow)) + shallow
        restored: Tensor = x_BCHW + self.conv_last(deep) + mean
        return restored[..., :height, :width]

    def _pad(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[-2:]
        below, right = -height % self.window, -width % self.window
        if below >= height or right >= width:
            raise DataError(
                f"SwinIR cannot take an image of {height} x {width} pixels",
                f"it is too small to be mirrored to a multiple of {self.window}",
                "give a larger image, or one whose sides are such multiples",
            )
        x_BCHW = torch.cat((x_BCHW, x_BCHW.flip(-2)[..., 1 : below + 1, :]), -2)
        return torch.cat((x_BCHW, x_BCHW.flip(-1)[..., 1 : right + 1]), -1)

    def _body(self, x_BCHW: Tensor) -> Tensor:
        h = self.patch_embed(x_BCHW.permute(0, 2, 3, 1))
        mask_MNN = shift_mask(h.shape[1], h.shape[2], self.window, like=h)
        for group in self.layers:
            h = group(h, mask_MNN)
        result: Tensor = self.norm(h).permute(0, 3, 1, 2)
        return result
