"""ECFNet (Zhu et al.: Enhanced Coarse-to-Fine Network for Image Restoration from Under-Display Cameras, ECCVW 2022).

A U-shaped network in the manner of MIMO-UNet (Cho et al., ICCV 2021) with four scales: the image enters at
every scale, the skip of each scale is made of the features of all four, and an image leaves at every scale.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.errors import DataError

SIZE_MULTIPLE = 8


class _Conv(nn.Module):
    """A convolution that keeps (stride 1) or halves (stride 2) the size."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, *, gelu: bool = True) -> None:
        super().__init__()
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2)
        self.main = nn.Sequential(conv, nn.GELU()) if gelu else nn.Sequential(conv)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.main(x_BCHW)
        return y_BCHW


class _Up(nn.Module):
    """A convolution that doubles the size."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.ConvTranspose2d(c_in, c_out, 4, 2, 1), nn.GELU())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.main(x_BCHW)
        return y_BCHW


class _Grow(nn.Module):
    """Appends the features it computes to those that it was given."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(c_in, growth, 3, padding=1), nn.GELU())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([x_BCHW, self.conv(x_BCHW)], 1)


class _DenseBlock(nn.Module):
    """Residual dense block (Zhang et al., CVPR 2018) of three layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_Grow(channels * n, channels) for n in (1, 2, 3)))
        self.LFF = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.LFF(self.convs(x_BCHW)) + x_BCHW
        return y_BCHW


class _Stage(nn.Module):
    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_DenseBlock(channels) for _ in range(blocks)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.layers(x_BCHW)
        return y_BCHW


class _ImageFeatures(nn.Module):
    """Shallow features of the reduced image, with the image itself among them (SCM of MIMO-UNet)."""

    def __init__(self, image: int, channels: int) -> None:
        super().__init__()
        quarter, half = channels // 4, channels // 2
        self.main = nn.Sequential(
            _Conv(image, quarter, 3), _Conv(quarter, half, 1), _Conv(half, half, 3), _Conv(half, channels - image, 1)
        )
        self.conv = _Conv(channels, channels, 1, gelu=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv(torch.cat([x_BCHW, self.main(x_BCHW)], 1))
        return y_BCHW


class _Merge(nn.Module):
    """Features modulated by those of the reduced image (FAM of MIMO-UNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = _Conv(channels, channels, 3, gelu=False)

    def forward(self, x_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = x_BCHW + self.merge(x_BCHW * image_BCHW)
        return y_BCHW


class _Fuse(nn.Module):
    """All scales, brought to one size, to the skip of that scale (AFF of MIMO-UNet)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_Conv(c_in, c_out, 1), _Conv(c_out, c_out, 3, gelu=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv(x_BCHW)
        return y_BCHW


class GatedFuse(nn.Module):
    """The same with gates: the cross-gating fusion of the paper."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        wide = 4 * c_in
        self.project_in = nn.Conv2d(c_in, wide, 1, bias=False)
        self.dwconv = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.project_out = nn.Conv2d(wide, c_out, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x_BCHW)).chunk(2, 1)
        once = torch.sigmoid(gate) * value
        # As published: what gates the second half is its own value, and the gate itself is never passed on.
        y_BCHW: Tensor = self.project_out(torch.cat([once, torch.sigmoid(value) * once], 1))
        return y_BCHW


class _Supervise(nn.Module):
    """The restored image at this scale, and the features that it has weighted (SAM of MPRNet, CVPR 2021)."""

    def __init__(self, channels: int, image: int) -> None:
        super().__init__()
        self.conv1 = _Conv(channels, channels, 3)
        self.conv2 = _Conv(channels, image, 3, gelu=False)
        self.conv3 = _Conv(image, channels, 3, gelu=False)

    def forward(self, x_BCHW: Tensor, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        restored_BCHW = self.conv2(x_BCHW) + image_BCHW
        return self.conv1(x_BCHW) * torch.sigmoid(self.conv3(restored_BCHW)) + x_BCHW, restored_BCHW


def _resize(x_BCHW: Tensor, factor: float) -> Tensor:
    """By the nearest pixel."""
    return F.interpolate(x_BCHW, scale_factor=factor) if factor != 1 else x_BCHW


class ECFNet(nn.Module):
    """The winner of the MIPI-2022 challenge on under-display cameras; keys as in the published checkpoint.

    Args:
        width: channels at full size; 2, 4 and 4 times that at the scales below.
        blocks: residual dense blocks per stage.
        channels: image channels.
    """

    def __init__(self, *, width: int = 24, blocks: int = 6, channels: int = 3) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        upwards = widths[::-1]
        total = sum(widths)
        self.Encoder = nn.ModuleList(_Stage(w, blocks) for w in widths)
        first, last = _Conv(channels, width, 3), _Conv(width, channels, 3, gelu=False)
        downs, ups = [_Conv(a, b, 3, 2) for a, b in pairwise(widths)], [_Up(a, b) for a, b in pairwise(upwards)]
        self.feat_extract = nn.ModuleList([first, *downs, *ups, last])
        self.Decoder = nn.ModuleList(_Stage(w, blocks) for w in upwards)
        self.Convs = nn.ModuleList(_Conv(2 * w, w, 1) for w in upwards[1:])
        self.ConvsOut = nn.ModuleList(_Supervise(w, channels) for w in upwards[:-1])
        self.AFFs = nn.ModuleList([_Fuse(total, width), *(GatedFuse(total, w) for w in widths[1:])])
        self.FAM0, self.SCM0 = _Merge(widths[3]), _ImageFeatures(channels, widths[3])
        self.FAM1, self.SCM1 = _Merge(widths[2]), _ImageFeatures(channels, widths[2])
        self.FAM2, self.SCM2 = _Merge(widths[1]), _ImageFeatures(channels, widths[1])

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Restore a tone-mapped image.

        Args:
            x_BCHW: [0, 1]; H and W multiples of 8.

        Returns:
            B x C images at 1/8, 1/4, 1/2 and full size, not clamped; the last one is the result.
        """
        height, width = x_BCHW.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise DataError(
                f"ECFNet cannot take an image of {height} x {width} pixels",
                f"its sides must be multiples of {SIZE_MULTIPLE}",
                "crop or pad the image; the restorer made by load pads",
            )
        images = [x_BCHW]
        for _ in range(3):
            images.append(_resize(images[-1], 0.5))
        skips = self._fuse(self._encode(images))
        restored: list[Tensor] = []
        h_BCHW = skips[3]
        for index, level in enumerate((3, 2, 1)):
            h_BCHW, image = self.ConvsOut[index](self.Decoder[index](h_BCHW), images[level])
            restored.append(image)
            h_BCHW = torch.cat([self.feat_extract[4 + index](h_BCHW), skips[level - 1]], 1)
            h_BCHW = self.Convs[index](h_BCHW)
        return [*restored, self.feat_extract[7](self.Decoder[3](h_BCHW)) + x_BCHW]

    def _encode(self, images: list[Tensor]) -> list[Tensor]:
        """Features at full size and the three scales below."""
        features = [self.Encoder[0](self.feat_extract[0](images[0]))]
        shallow = ((self.SCM2, self.FAM2), (self.SCM1, self.FAM1), (self.SCM0, self.FAM0))
        for level, (of_image, merge) in enumerate(shallow, start=1):
            h_BCHW = merge(self.feat_extract[level](features[-1]), of_image(images[level]))
            features.append(self.Encoder[level](h_BCHW))
        return features

    def _fuse(self, features: list[Tensor]) -> list[Tensor]:
        """One skip a scale, each made of all features."""
        return [
            fuse(torch.cat([_resize(f, 2.0 ** (level - own)) for level, f in enumerate(features)], 1))
            for own, fuse in enumerate(self.AFFs)
        ]
