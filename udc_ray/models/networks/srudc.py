"""SRUDC (Song et al.: Under-Display Camera Image Restoration with Scattering Effect, ICCV 2023).

Two branches. The scattering branch, of transposed-attention blocks (Zamir et al., Restormer, CVPR 2022), reads the
haze of the display out of the image; the image branch, a gated convolutional U-net (Song et al., Rethinking
Performance Gains in Image Dehazing Networks, 2022), restores the image and is modulated by the first at three scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.errors import DataError
from udc_ray.models.networks.restormer import AttentionBlock

_HEADS_AND_BLOCKS = ((1, 2), (2, 3), (4, 4))
"""Attention heads and blocks of the scattering branch, per scale."""

SIZE_MULTIPLE = 8

LEAST_SIDE = 24
"""Three halvings, and 5 x 5 filters with reflection below them, which takes 3 pixels."""


class _ChannelAttention(nn.Module):
    """Weights for the channels from their means over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeeze = nn.Conv2d(channels, channels // 4, 1, bias=False)
        excite = nn.Conv2d(channels // 4, channels, 1, bias=False)
        self.conv_du = nn.Sequential(squeeze, nn.ReLU(), excite, nn.Sigmoid())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_BC11: Tensor = self.conv_du(x_BCHW.mean((2, 3), keepdim=True))
        return x_BCHW * weight_BC11


class _GatedConv(nn.Module):
    """A depth-wise 5 x 5 convolution, gated pixel by pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, padding_mode="reflect")
        self.Wv = nn.Sequential(nn.Conv2d(channels, channels, 1), depthwise)
        self.Wg = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())
        self.proj = nn.Conv2d(channels, channels, 1)
        self.CA = _ChannelAttention(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.CA(self.proj(self.Wv(x_BCHW) * self.Wg(x_BCHW)))
        return y_BCHW


class _GatedBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = _GatedConv(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = x_BCHW + self.conv(self.norm(x_BCHW))
        return y_BCHW


class _Stage(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_GatedBlock(channels) for _ in range(depth)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.blocks(x_BCHW)
        return y_BCHW


class _Projection(nn.Module):
    """A module under the name that the checkpoint gives it."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.proj(x_BCHW)
        return y_BCHW


class _Modulate(nn.Module):
    """Scale and shift features by what is computed from a condition (SFT, Wang et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.SFT_scale_conv0 = nn.Conv2d(channels, half, 1)
        self.SFT_scale_conv1 = nn.Conv2d(half, channels, 1)
        self.SFT_shift_conv0 = nn.Conv2d(channels, half, 1)
        self.SFT_shift_conv1 = nn.Conv2d(half, channels, 1)

    def forward(self, x_BCHW: Tensor, condition_BCHW: Tensor) -> Tensor:
        scale_BCHW: Tensor = self.SFT_scale_conv1(F.leaky_relu(self.SFT_scale_conv0(condition_BCHW), 0.2))
        shift_BCHW: Tensor = self.SFT_shift_conv1(F.leaky_relu(self.SFT_shift_conv0(condition_BCHW), 0.2))
        return x_BCHW * (scale_BCHW + 1) + shift_BCHW


def _conv3(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="reflect")


def _down(c_in: int) -> _Projection:
    return _Projection(nn.Conv2d(c_in, 2 * c_in, 2, 2))


def _up(c_out: int) -> _Projection:
    return _Projection(nn.Sequential(nn.Conv2d(2 * c_out, 4 * c_out, 1), nn.PixelShuffle(2)))


def _scattering_head(c_in: int, hidden: int) -> nn.Sequential:
    first, second = nn.Conv2d(c_in, hidden, 1, bias=False), nn.Conv2d(hidden, 2, 1, bias=False)
    return nn.Sequential(first, nn.Sigmoid(), second, nn.Sigmoid())


class SRUDC(nn.Module):
    """The two-branch network; keys as in the published checkpoints.

    Args:
        width: channels at full size; 24 is SRUDC-f, 16 is SRUDC-l.
        depths: gated blocks of the image branch, from full size down to 1/8 and back.
        channels: image channels.
    """

    def __init__(
        self, *, width: int = 24, depths: Sequence[int] = (16, 16, 16, 32, 16, 16, 16), channels: int = 3
    ) -> None:
        super().__init__()
        down = [width, 2 * width, 4 * width]
        self.inconv = _Projection(_conv3(channels, width))
        self.condconv = _Projection(_conv3(channels, width))
        self.layers = nn.ModuleList(_Stage(w, n) for w, n in zip([*down, 8 * width, *down[::-1]], depths, strict=True))
        self.downs = nn.ModuleList(_down(w) for w in down)
        self.ups = nn.ModuleList(_up(w) for w in down)
        self.skips = nn.ModuleList(nn.Conv2d(w, w, 1) for w in down)
        self.fusions = nn.ModuleList(nn.Conv2d(2 * w, w, 1, bias=False) for w in down)
        self.fusions_cond = nn.ModuleList(_Modulate(w) for w in down)
        stages = [
            nn.Sequential(*(AttentionBlock(w, heads, 2.66, norm_bias=True) for _ in range(blocks)))
            for w, (heads, blocks) in zip(down, _HEADS_AND_BLOCKS, strict=True)
        ]
        self.layers_cond1, self.downs_cond1_2 = stages[0], _down(down[0])
        self.layers_cond2, self.downs_cond2_3 = stages[1], _down(down[1])
        self.layers_cond3, self.layers_cond5 = stages[2], _scattering_head(down[2], width)
        self.downs_cond = nn.ModuleList(_down(w) for w in down)  # unused, but in every published checkpoint
        self.outconv = _Projection(nn.Sequential(_conv3(width, channels)))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Restore an image.

        Args:
            x_BCHW: [-1, 1]; H and W multiples of 8, at least 24.

        Returns:
            The restored B x C x H x W, in [-1, 1] but not clamped, and B x 2 x 1 x 1, the scattering
            parameters in (0, 1): ambient light and transmission.
        """
        height, width = x_BCHW.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or min(height, width) < LEAST_SIDE:
            raise DataError(
                f"SRUDC cannot take an image of {height} x {width} pixels",
                f"its sides must be multiples of {SIZE_MULTIPLE}, and at least {LEAST_SIDE}: "
                "it mirrors features at an eighth of the size",
                "pad the image, which run_published and the restorer made by load do; a smaller one is refused",
            )
        first = self.layers_cond1(self.condconv(x_BCHW))
        second = self.layers_cond2(self.downs_cond1_2(first))
        third = self.layers_cond3(self.downs_cond2_3(second))
        scattering_B211: Tensor = self.layers_cond5(third.mean((2, 3), keepdim=True))
        return self._restore(x_BCHW, [first, second, third]) + x_BCHW, scattering_B211

    def _restore(self, x_BCHW: Tensor, conditions: list[Tensor]) -> Tensor:
        """What is to be added to the image."""
        h_BCHW, skips = self.inconv(x_BCHW), []
        for level, condition in enumerate(conditions):
            h_BCHW = self.fusions_cond[level](self.layers[level](h_BCHW), condition)
            skips.append(self.skips[level](h_BCHW))
            h_BCHW = self.downs[level](h_BCHW)
        h_BCHW = self.layers[3](h_BCHW)
        for level in (2, 1, 0):
            h_BCHW = self.fusions[level](torch.cat([self.ups[level](h_BCHW), skips[level]], 1))
            h_BCHW = self.layers[6 - level](h_BCHW)
        residual_BCHW: Tensor = self.outconv(h_BCHW)
        return residual_BCHW
