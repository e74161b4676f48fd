"""BNUDC (Koh, Lee, Yoon: BNUDC: A Two-Branched Deep Neural Network for Restoring Images from Under-Display Cameras,
CVPR 2022).

A branch at half size undoes diffraction: it predicts a gain and an offset for every pixel and channel. A U-shaped
branch at quarter size undoes slow changes of colour: it predicts a colour matrix and an offset for every pixel. Both
are affine in the image that they act on, and the final image is the second applied to the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DILATIONS = (1, 2, 4, 8)
LEAK = 0.2


class WeightNormConv(nn.Module):
    """3 x 3 dilated convolution without bias, weights g * v / |v| per output channel (weight normalisation)."""

    def __init__(self, before: int, after: int, dilation: int) -> None:
        super().__init__()
        v = nn.Conv2d(before, after, 3, bias=False).weight.detach()
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True))
        self.weight_v = nn.Parameter(v)
        self.dilation = dilation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        norm_O111 = torch.linalg.vector_norm(self.weight_v, dim=(1, 2, 3), keepdim=True)
        weight = self.weight_v * (self.weight_g / norm_O111)
        return F.conv2d(x_BCHW, weight, padding=self.dilation, dilation=self.dilation)


class SharedConv(nn.Module):
    """One K x K filter for all channels; it smooths, so that the dilated convolution behind it leaves no grid."""

    def __init__(self, size: int) -> None:
        super().__init__()
        weight = torch.zeros(1, 1, size, size)
        weight[..., size // 2, size // 2] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels, size = x_BCHW.shape[1], self.weight.shape[-1]
        return F.conv2d(x_BCHW, self.weight.expand(channels, -1, -1, -1), padding=size // 2, groups=channels)


class SmoothDilatedBlock(nn.Module):
    """Residual block of four smoothed dilated convolutions side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"pre_conv{dilation}", SharedConv(2 * dilation - 1))
        for dilation in DILATIONS:
            self.add_module(f"conv{dilation}", WeightNormConv(width, width // 2, dilation))
        self.conv = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        parts = [
            self.get_submodule(f"conv{dilation}")(self.get_submodule(f"pre_conv{dilation}")(x_BCHW))
            for dilation in DILATIONS
        ]
        h = self.conv(F.leaky_relu(torch.cat(parts, 1), LEAK))
        return F.leaky_relu(h + x_BCHW, LEAK)


def _blocks(width: int, count: int = 2) -> nn.Sequential:
    return nn.Sequential(*(SmoothDilatedBlock(width) for _ in range(count)))


class BlockGroup(nn.Module):
    """Blocks and a convolution, added to their input."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.body = _blocks(width, blocks).append(nn.Conv2d(width, width, 3, padding=1, bias=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = x_BCHW + self.body(x_BCHW)
        return out


class FullBranch(nn.Sequential):
    """Three groups of blocks at one resolution."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        for number in (1, 2, 3):
            self.add_module(f"orb{number}", BlockGroup(width, blocks))


def _resize(factor: float, *, align_corners: bool = False) -> nn.Upsample:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=align_corners)


class Down(nn.Module):
    """Half the size, another width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Sequential(_resize(0.5), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.down(x_BCHW)
        return out


class Up(nn.Module):
    """Twice the size, another width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.up = nn.Sequential(_resize(2), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.up(x_BCHW)
        return out


class Encoder(nn.Module):
    """Three scales down."""

    def __init__(self, first: int, second: int, third: int) -> None:
        super().__init__()
        self.encoder_level1 = _blocks(first)
        self.encoder_level2 = _blocks(second)
        self.encoder_level3 = _blocks(third)
        self.down12 = Down(first, second)
        self.down23 = Down(second, third)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.encoder_level1(x_BCHW)
        second = self.encoder_level2(self.down12(first))
        return first, second, self.encoder_level3(self.down23(second))


class Decoder(nn.Module):
    """Three scales up; skip connections pass through a block."""

    def __init__(self, first: int, second: int, third: int) -> None:
        super().__init__()
        self.decoder_level1 = _blocks(first)
        self.decoder_level2 = _blocks(second)
        self.decoder_level3 = _blocks(third)
        self.skip_attn1 = SmoothDilatedBlock(first)
        self.skip_attn2 = SmoothDilatedBlock(second)
        self.up21 = Up(second, first)
        self.up32 = Up(third, second)

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        h = self.decoder_level3(third)
        h = self.decoder_level2(self.up32(h) + self.skip_attn2(second))
        out: Tensor = self.decoder_level1(self.up21(h) + self.skip_attn1(first))
        return out


def colour_transform(x_BCHW: Tensor, affine_BAHW: Tensor) -> Tensor:
    """Multiply every pixel by its own 3 x 3 matrix (channels 0..8, row by row) and add its offset (9..11)."""
    batch, _, height, width = affine_BAHW.shape
    matrix_BIJHW = affine_BAHW[:, :9].reshape(batch, 3, 3, height, width)
    return (matrix_BIJHW * x_BCHW[:, None]).sum(2) + affine_BAHW[:, 9:]


class BNUDC(nn.Module):
    """The network; keys as in the published checkpoints. RGB only.

    Args:
        high_width: channels of the branch at half size.
        low_widths: channels of the three scales of the branch at quarter size.
        blocks: blocks in each group of the branch at half size.
    """

    def __init__(self, *, high_width: int = 72, low_widths: Sequence[int] = (32, 40, 48), blocks: int = 6) -> None:
        super().__init__()
        first, second, third = low_widths
        self.shallow_feat = nn.Sequential(nn.Conv2d(12, high_width, 3, padding=1), SmoothDilatedBlock(high_width))
        self.orsnet = FullBranch(high_width, blocks)
        self.tail = nn.Conv2d(high_width, 24, 3, padding=1)
        self.shallow_sub = nn.Sequential(nn.Conv2d(3, first, 3, padding=1), SmoothDilatedBlock(first))
        self.encoder_sub = Encoder(first, second, third)
        self.decoder_sub = Decoder(first, second, third)
        self.tail_sub = nn.Conv2d(first, 12, 3, padding=1)
        self.box_filter = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        nn.init.ones_(self.box_filter.weight)
        self.shrink, self.grow = _resize(0.25, align_corners=True), _resize(4, align_corners=True)

    def _gain_and_offset(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        half_B12HW = F.pixel_unshuffle(x_B3HW, 2)
        h_B24HW = self.tail(self.orsnet(self.shallow_feat(half_B12HW)))
        gain, offset = F.pixel_shuffle(h_B24HW, 2).chunk(2, 1)
        return gain, offset

    def _colour_affine(self, x_B3HW: Tensor) -> Tensor:
        quarter_B3HW = self.shrink(x_B3HW)
        # Mean over the neighbours that exist: the filter's sum is smaller where the image ends.
        smooth = self.box_filter(quarter_B3HW) / self.box_filter(torch.ones_like(quarter_B3HW))
        h = self.decoder_sub(*self.encoder_sub(self.shallow_sub(smooth)))
        affine: Tensor = self.grow(self.tail_sub(h))
        return affine

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Restore B x 3 x H x W in [0, 1], H and W multiples of 16.

        Returns:
            The image after the high branch alone, after the low branch alone, and after both: the last is the result.
            None is clamped.
        """
        gain, offset = self._gain_and_offset(x_B3HW)
        affine = self._colour_affine(x_B3HW)
        high = gain * x_B3HW + offset
        return high, colour_transform(x_B3HW, affine), colour_transform(high, affine)
