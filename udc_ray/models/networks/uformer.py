"""Uformer (Wang, Cun, Bao, Zhou, Liu, Li: A General U-Shaped Transformer for Image Restoration, CVPR 2022).

A U of transformer blocks: attention in windows of 8 x 8 (section 3.2, W-MSA), a feed-forward with a depth-wise
convolution between its two linear maps (LeFF), and in the decoder a learned pattern added to every window
(section 3.3, the modulators). The input is added to the output.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from udc_ray.errors import DataError, SpecError
from udc_ray.models.networks.windows import WindowAttention, WindowBlock, shift_mask

WINDOW = 8
LEVELS = 4
HEADS = (1, 2, 4, 8, 16, 16, 8, 4, 2)
SIZE_MULTIPLE = WINDOW * 2**LEVELS


class _Projections(nn.Module):
    """Query from one linear map, key and value from another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(channels, 2 * channels)

    def forward(self, x_WNC: Tensor) -> Tensor:
        return torch.cat((self.to_q(x_WNC), self.to_kv(x_WNC)), -1)


class _FeedForward(nn.Module):
    """LeFF: linear, 3 x 3 depth-wise convolution, linear, with a GELU after the first two (figure 4)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Sequential(nn.Linear(channels, hidden), nn.GELU())
        self.dwconv = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.GELU())
        self.linear2 = nn.Sequential(nn.Linear(hidden, channels))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        hidden_BCHW = self.dwconv(self.linear1(x_BHWC).permute(0, 3, 1, 2))
        result: Tensor = self.linear2(hidden_BCHW.permute(0, 2, 3, 1))
        return result


class _Stage(nn.Module):
    """The blocks of one resolution; every second one has shifted windows where there is more than one window."""

    def __init__(self, channels: int, depth: int, heads: int, *, shifts: bool, modulated: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(
                WindowAttention(channels, heads, WINDOW, _Projections(channels)),
                WINDOW,
                _FeedForward(channels, 4 * channels),
                shifted=shifts and index % 2 == 1,
                modulated=modulated,
            )
            for index in range(depth)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        mask_MNN = shift_mask(x_BHWC.shape[1], x_BHWC.shape[2], WINDOW, like=x_BHWC)
        for block in self.blocks:
            x_BHWC = block(x_BHWC, mask_MNN)
        return x_BHWC.permute(0, 3, 1, 2)


def _named(name: str, *layers: nn.Module) -> nn.Sequential:
    """Layers in a row under one name, as the keys of the checkpoints have them."""
    return nn.Sequential(OrderedDict({name: nn.Sequential(*layers)}))


class Uformer(nn.Module):
    """The network; keys as in the published checkpoints (`dowsample` is their spelling).

    Uformer-T is the default, Uformer-S has ``width=32``, Uformer-B also ``depths=(1, 2, 8, 8, 2, 8, 8, 2, 1)``.

    Args:
        width: channels at full resolution.
        depths: blocks of the four encoder stages, the bottleneck, and the four decoder stages.
        heads: attention heads of the same nine stages.
        image_size: side of the square images that it is built for, pixels, a multiple of 128. It decides one
            thing: at 128 the bottleneck is a single window and does not shift, for larger sizes it does.
        channels: image channels.
    """

    def __init__(
        self,
        *,
        width: int = 16,
        depths: Sequence[int] = (2,) * 9,
        heads: Sequence[int] = HEADS,
        image_size: int = 128,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size < SIZE_MULTIPLE or image_size % SIZE_MULTIPLE:
            raise SpecError(
                f"Uformer cannot be built for images of {image_size} pixels",
                "four halvings must leave whole windows of 8 x 8",
                f"give image_size a multiple of {SIZE_MULTIPLE}",
            )
        self.input_proj = _named("proj", nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU())
        self.output_proj = _named("proj", nn.Conv2d(2 * width, channels, 3, padding=1))
        for level in range(LEVELS):
            inner = width * 2**level
            stage = _Stage(inner, depths[level], heads[level], shifts=True, modulated=False)
            self.add_module(f"encoderlayer_{level}", stage)
            self.add_module(f"dowsample_{level}", _named("conv", nn.Conv2d(inner, 2 * inner, 4, 2, 1)))
        inner = width * 2**LEVELS
        bottleneck_shifts = image_size > SIZE_MULTIPLE
        self.conv = _Stage(inner, depths[LEVELS], heads[LEVELS], shifts=bottleneck_shifts, modulated=False)
        for level in range(LEVELS):
            # A decoder stage is as wide as what comes up and the skip connection together.
            skip = width * 2 ** (LEVELS - 1 - level)
            self.add_module(f"upsample_{level}", _named("deconv", nn.ConvTranspose2d(inner, skip, 2, 2)))
            inner, place = 2 * skip, LEVELS + 1 + level
            stage = _Stage(inner, depths[place], heads[place], shifts=True, modulated=True)
            self.add_module(f"decoderlayer_{level}", stage)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Restore B x C x H x W; both sides are multiples of 128."""
        height, width = x_BCHW.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise DataError(
                f"Uformer cannot take an image of {height} x {width} pixels",
                f"its sides must be multiples of {SIZE_MULTIPLE}",
                "pad the image; run_published and the restorer made by load do so",
            )
        h, skips = self.input_proj(x_BCHW), []
        for level in range(LEVELS):
            h = self._part("encoderlayer", level)(h)
            skips.append(h)
            h = self._part("dowsample", level)(h)
        h = self.conv(h)
        for level in range(LEVELS):
            h = torch.cat((self._part("upsample", level)(h), skips.pop()), 1)
            h = self._part("decoderlayer", level)(h)
        restored: Tensor = x_BCHW + self.output_proj(h)
        return restored

    def _part(self, name: str, level: int) -> nn.Module:
        return cast(nn.Module, getattr(self, f"{name}_{level}"))
