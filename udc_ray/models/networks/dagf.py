"""DAGF (Sundar, Hegde, Kothandaraman, Mitra: Deep Atrous Guided Filter for Image Restoration in UDC, ECCVW 2020).

A network of smoothed atrous convolutions restores the image at half size; a guided filter whose coefficients are
learned (Wu et al.: Fast End-to-End Trainable Guided Filter, CVPR 2018) carries the result to full size. The
normalisation takes its statistics from the whole image, so the image must not be cut into tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.errors import DataError

SIZE_MULTIPLE = 4

_SLOPE = 0.2
"""Of every leaky ReLU; the guided filter has plain ones."""

_BRANCHES = (1, 2, 4, 8)
"""Relative dilations of the four branches of a block, and the numbers in their names."""


class AdaptiveNorm(nn.Module):
    """A learned mixture of the features and their instance normalisation (Chen et al., ICCV 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w_0 = nn.Parameter(torch.ones(1))
        self.w_1 = nn.Parameter(torch.zeros(1))
        self.ins_norm = nn.InstanceNorm2d(channels, eps=1e-3, affine=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        norm = self.ins_norm
        # One group a channel is instance normalisation, and unlike that function takes a 1 x 1 image too.
        normed_BCHW = torch.group_norm(x_BCHW, norm.num_features, norm.weight, norm.bias, norm.eps)
        return self.w_0 * x_BCHW + self.w_1 * normed_BCHW


class SharedConv(nn.Module):
    """One filter for all channels, wide enough to hide the grid of the dilated convolution that follows."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        side = 2 * dilation - 1
        self.weight = nn.Parameter(torch.zeros(1, 1, side, side))
        nn.init.ones_(self.weight.data[..., dilation - 1, dilation - 1])  # the identity

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels, side = x_BCHW.shape[1], self.weight.shape[-1]
        if x_BCHW.dtype == torch.float32 and x_BCHW.device.type == "cpu":
            # Up to 25 times as fast for the large filters; in double precision it would be slower.
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x_BCHW, self.weight.expand(channels, 1, side, side), padding=side // 2, groups=channels)


class _ChannelAttention(nn.Module):
    """A weight for each channel (Qin et al., FFA-Net, AAAI 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = channels // 8
        squeeze, excite = nn.Conv2d(channels, few, 1), nn.Conv2d(few, channels, 1)
        self.ca = nn.Sequential(squeeze, nn.LeakyReLU(_SLOPE), excite, nn.Sigmoid())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_BC11: Tensor = self.ca(x_BCHW.mean((2, 3), keepdim=True))
        return x_BCHW * weight_BC11


class _PixelAttention(nn.Module):
    """A weight for each pixel (Qin et al., FFA-Net, AAAI 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = channels // 8
        squeeze, score = nn.Conv2d(channels, few, 1), nn.Conv2d(few, 1, 1)
        self.pa = nn.Sequential(squeeze, nn.LeakyReLU(_SLOPE), score, nn.Sigmoid())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_B1HW: Tensor = self.pa(x_BCHW)
        return x_BCHW * weight_B1HW


def _act(x_BCHW: Tensor) -> Tensor:
    return F.leaky_relu(x_BCHW, _SLOPE)


def _conv3(c_in: int, c_out: int, dilation: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation, bias=bias)


class _Atrous(nn.Module):
    """Four dilated convolutions side by side, each smoothed before, and one that joins them.

    Args:
        channels: of the input and the result.
        branch: channels of each of the four.
        dilation: of the first of the four; the others have 2, 4 and 8 times that.
    """

    def __init__(self, channels: int, branch: int, dilation: int) -> None:
        super().__init__()
        for n in _BRANCHES:
            self.add_module(f"norm{n}", AdaptiveNorm(branch))
        for n in _BRANCHES:
            self.add_module(f"pre_conv{n}", SharedConv(n * dilation))
        for n in _BRANCHES:
            self.add_module(f"conv{n}", _conv3(channels, branch, n * dilation))
        self.conv = _conv3(4 * branch, channels)
        self.norm = AdaptiveNorm(channels)

    def _sum(self, x_BCHW: Tensor) -> Tensor:
        """What the branches find, added to the input."""
        found = []
        for n in _BRANCHES:
            pre_conv, conv, norm = (self.get_submodule(f"{kind}{n}") for kind in ("pre_conv", "conv", "norm"))
            found.append(_act(norm(conv(pre_conv(x_BCHW)))))
        y_BCHW: Tensor = self.norm(self.conv(torch.cat(found, 1))) + x_BCHW
        return y_BCHW

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _act(self._sum(x_BCHW))


class _AttentiveAtrous(_Atrous):
    """The same with attention to the sum, and the input added once more."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, channels // 2, dilation)
        self.calayer = _ChannelAttention(channels)
        self.palayer = _PixelAttention(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return _act(self.palayer(self.calayer(self._sum(x_BCHW))) + x_BCHW)


class _Attentive(nn.Module):
    """The residual block of FFA-Net, with normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3(channels, channels)
        self.norm1 = AdaptiveNorm(channels)
        self.conv2 = _conv3(channels, channels)
        self.norm2 = AdaptiveNorm(channels)
        self.calayer = _ChannelAttention(channels)
        self.palayer = _PixelAttention(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = _act(self.norm1(self.conv1(x_BCHW))) + x_BCHW
        h_BCHW = self.norm2(self.conv2(h_BCHW))
        return _act(self.palayer(self.calayer(h_BCHW)) + x_BCHW)


class _LowResolution(nn.Module):
    """The restoring network. It works at half the size of the image that it gets and returns."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3(4 * channels, width)
        self.norm1 = AdaptiveNorm(width)
        for stage, dilation in ((1, 1), (2, 2), (3, 4)):
            for block in "abcd":
                self.add_module(f"res{stage}_{block}", _AttentiveAtrous(width, dilation))
        self.res_final = _Attentive(width)
        self.gate = _conv3(4 * width, 4, bias=True)
        self.deconv2 = _conv3(width, width, bias=True)
        self.norm5 = AdaptiveNorm(width)
        self.deconv1 = nn.Conv2d(width, 4 * channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = _act(self.norm1(self.conv1(F.pixel_unshuffle(x_BCHW, 2))))
        levels = [h_BCHW]
        for stage in (1, 2, 3):
            for block in "abcd":
                h_BCHW = self.get_submodule(f"res{stage}_{block}")(h_BCHW)
            levels.append(h_BCHW)
        levels[3] = self.res_final(levels[3])
        weight_B4HW = self.gate(torch.cat(levels, 1))
        gated_BCHW = torch.stack([weight_B4HW[:, [n]] * level for n, level in enumerate(levels)]).sum(0)
        h_BCHW = _act(self.norm5(self.deconv2(gated_BCHW)))
        return F.pixel_shuffle(_act(self.deconv1(h_BCHW)), 2)


class GuidedFilter(nn.Module):
    """The guided filter with learned coefficients (Wu et al., CVPR 2018, section 3.2)."""

    def __init__(self, channels: int, radius: int, hidden: int = 32) -> None:
        super().__init__()
        side = 2 * radius + 1
        self.box_filter = nn.Conv2d(channels, channels, side, padding=radius, groups=channels, bias=False)
        nn.init.ones_(self.box_filter.weight)
        layers: list[nn.Module] = []
        for c_in in (2 * channels, hidden):
            layers += [nn.Conv2d(c_in, hidden, 1, bias=False), AdaptiveNorm(hidden), nn.ReLU()]
        self.conv_a = nn.Sequential(*layers, nn.Conv2d(hidden, channels, 1, bias=False))

    def forward(self, guide_low_BCHW: Tensor, low_BCHW: Tensor, guide_BCHW: Tensor) -> Tensor:
        """Carry ``low`` to the size of ``guide``; ``guide_low`` is the guide of the small image."""
        count_1CHW = self.box_filter(torch.ones_like(low_BCHW[:1]))
        mean_guide, mean_low = self.box_filter(guide_low_BCHW) / count_1CHW, self.box_filter(low_BCHW) / count_1CHW
        covariance = self.box_filter(guide_low_BCHW * low_BCHW) / count_1CHW - mean_guide * mean_low
        variance = self.box_filter(guide_low_BCHW * guide_low_BCHW) / count_1CHW - mean_guide * mean_guide
        slope_BCHW = self.conv_a(torch.cat([covariance, variance], 1))
        size = guide_BCHW.shape[-2:]
        offset_BCHW = _resize(mean_low - slope_BCHW * mean_guide, size)
        return _resize(slope_BCHW, size) * guide_BCHW + offset_BCHW


def _resize(x_BCHW: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    return F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=True)


class DAGF(nn.Module):
    """Deep atrous guided filter; keys as in the published checkpoints.

    Args:
        width: channels of the restoring network.
        guide_width: channels of the network that makes the guide; a half goes to each of its branches.
        radius: of the guided filter, in pixels of the half-size image.
        channels: image channels.
    """

    def __init__(self, *, width: int = 48, guide_width: int = 16, radius: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.guided_map = _Atrous(channels, guide_width // 2, 1)
        self.lr = _LowResolution(width, channels)
        self.gf = GuidedFilter(channels, radius)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x_BCHW: [-1, 1]; H and W multiples of 4.

        Returns:
            B x C x H x W in (-1, 1).
        """
        height, width = x_BCHW.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise DataError(
                f"DAGF cannot take an image of {height} x {width} pixels",
                f"its sides must be multiples of {SIZE_MULTIPLE}",
                "crop or pad the image; the restorer made by load pads",
            )
        low_BCHW = _resize(x_BCHW, (height // 2, width // 2))
        guide_low_BCHW, guide_BCHW = self.guided_map(low_BCHW), self.guided_map(x_BCHW)
        return torch.tanh(self.gf(guide_low_BCHW, self.lr(low_BCHW), guide_BCHW))
