"""UDC-UNet (Liu, Hu, Chen, Dong: UDC-UNet: Under-Display Camera Image Restoration via U-Shape Dynamic Network, ECCV
workshops 2022).

A U-shaped network with four scales on linear HDR images. A condition branch modulates every block (spatial feature
transform); a kernel branch reads the image together with the code of the centre point spread function, and predicts
3 x 3 filters for every pixel and channel through which the skip connections pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.models.networks.discnet import LEAK, ResidualBlock
from udc_ray.models.networks.dynamic import dynamic_filter

CENTRE_CODE = (-0.0020, 0.0352, -2.0215e-05, 0.0060, 9.4328e-05)
HIDDEN = 32  # channels of the condition and kernel branches, whatever the width


def _convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2)


def _branch(halvings: int, outputs: int) -> nn.Sequential:
    """Four convolutions, LeakyReLUs between them: the first `halvings` 3 x 3 with stride 2, the others 1 x 1."""
    layers: list[nn.Module] = []
    for step in range(3):
        size, stride = (3, 2) if step < halvings else (1, 1)
        layers += [_convolution(HIDDEN, HIDDEN, size, stride), nn.LeakyReLU(LEAK)]
    return nn.Sequential(*layers, _convolution(HIDDEN, outputs, 1))


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels, HIDDEN), nn.LeakyReLU(LEAK))


def _rise(width: int) -> nn.Sequential:
    return nn.Sequential(_convolution(width, 2 * width), nn.PixelShuffle(2))


class SpatialTransform(nn.Module):
    """Scale and shift of features, predicted from the condition (spatial feature transform)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.SFT_scale_conv0 = nn.Conv2d(width, HIDDEN, 1)
        self.SFT_scale_conv1 = nn.Conv2d(HIDDEN, width, 1)
        self.SFT_shift_conv0 = nn.Conv2d(width, HIDDEN, 1)
        self.SFT_shift_conv1 = nn.Conv2d(HIDDEN, width, 1)

    def forward(self, x_BCHW: Tensor, condition_BCHW: Tensor) -> Tensor:
        scale = self.SFT_scale_conv1(F.leaky_relu(self.SFT_scale_conv0(condition_BCHW), LEAK))
        shift = self.SFT_shift_conv1(F.leaky_relu(self.SFT_shift_conv0(condition_BCHW), LEAK))
        out: Tensor = x_BCHW * (scale + 1) + shift
        return out


class ModulatedBlock(nn.Module):
    """Residual block whose convolutions each see modulated features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width)
        self.conv2 = _convolution(width, width)
        self.sft1 = SpatialTransform(width)
        self.sft2 = SpatialTransform(width)

    def forward(self, x_BCHW: Tensor, condition_BCHW: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(self.sft1(x_BCHW, condition_BCHW)), LEAK)
        out: Tensor = x_BCHW + self.conv2(self.sft2(h, condition_BCHW))
        return out


class ModulatedBlocks(nn.ModuleList):
    """Blocks in a row under one condition."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__(ModulatedBlock(width) for _ in range(blocks))

    def forward(self, x_BCHW: Tensor, condition_BCHW: Tensor) -> Tensor:
        for block in self:
            x_BCHW = block(x_BCHW, condition_BCHW)
        return x_BCHW


class UDCUNet(nn.Module):
    """The network; keys as in the published checkpoints.

    Args:
        channels: image channels, 3 for RGB, 4 for raw planes.
        width: channels at full resolution, doubled at each coarser scale.
        blocks: blocks of each encoder and decoder scale.
        bottom_blocks: blocks at the coarsest scale.
        kernel_size: side K of the predicted filters, odd.
    """

    code_1K11: Tensor

    def __init__(
        self, *, channels: int = 3, width: int = 32, blocks: int = 2, bottom_blocks: int = 8, kernel_size: int = 3
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.cond_head = _head(channels)
        self.cond_first = nn.Sequential(ResidualBlock(HIDDEN), ResidualBlock(HIDDEN))
        for level, wide in enumerate(widths):
            self.add_module(f"CondNet{level}", _branch(level, wide))
        self.k_head = _head(channels + len(CENTRE_CODE))
        self.k_first = nn.Sequential(ResidualBlock(HIDDEN), ResidualBlock(HIDDEN))
        for level, wide in enumerate(widths):
            self.add_module(f"KNet{level}", _branch(level, kernel_size**2 * wide))
        self.conv_first = nn.Sequential(_convolution(channels, width), nn.LeakyReLU(LEAK))
        for level, wide in enumerate(widths[:3]):
            self.add_module(f"enconv_layer{level}", ModulatedBlocks(wide, blocks))
            self.add_module(f"down_conv{level}", _convolution(wide, 2 * wide, stride=2))
        self.Bottom_conv = ModulatedBlocks(widths[3], bottom_blocks)
        for level, wide in reversed(list(enumerate(widths[:3]))):
            self.add_module(f"up_conv{level}", _rise(2 * wide))
            self.add_module(f"deconv_layer{level}", ModulatedBlocks(wide, blocks))
        self.conv_last = _convolution(width, channels)
        code = torch.tensor(CENTRE_CODE, dtype=torch.float32).reshape(1, -1, 1, 1)
        self.register_buffer("code_1K11", code, persistent=False)

    def _call(self, name: str, *inputs: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(name)(*inputs)
        return result

    def _filter(self, level: int, x_BCHW: Tensor, kernel_features_BFHW: Tensor) -> Tensor:
        """Dynamic convolution of one scale."""
        h = kernel_features_BFHW
        branch = self.get_submodule(f"KNet{level}")
        for layer in list(branch.children())[:-1]:
            h = layer(h)
        return dynamic_filter(x_BCHW, h, branch.get_parameter("6.weight"), branch.get_parameter("6.bias"))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Restore B x C x H x W in linear HDR, 0..500, H and W multiples of 8; the output is not clamped above."""
        condition = self.cond_first(self.cond_head(x_BCHW))
        conditions = [self._call(f"CondNet{level}", condition) for level in range(4)]
        code_BKHW = self.code_1K11.to(x_BCHW.dtype).expand(len(x_BCHW), -1, *x_BCHW.shape[-2:])
        k = self.k_first(self.k_head(torch.cat([x_BCHW, code_BKHW], 1)))
        h, skips = self.conv_first(x_BCHW), []
        for level in range(3):
            h = self._call(f"enconv_layer{level}", h, conditions[level])
            skips.append(self._filter(level, h, k))
            h = self._call(f"down_conv{level}", h)
        h = self.Bottom_conv(h, conditions[3]) + self._filter(3, h, k)
        for level in (2, 1, 0):
            h = self._call(f"up_conv{level}", h) + skips.pop()
            h = self._call(f"deconv_layer{level}", h, conditions[level])
        restored: Tensor = F.relu(self.conv_last(h) + x_BCHW)
        return restored
