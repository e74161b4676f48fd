"""DISCNet (Feng, Li, Chen, Li, Loy: Removing Diffraction Image Artifacts in Under-Display Camera via Dynamic Skip
Connection Network, CVPR 2021).

A U-shaped network with three scales. A second encoder reads the image together with a code of the display's point
spread function, and at each scale predicts a filter for every pixel and channel; the skip connections (and the
coarsest features) pass through these filters. The restored image is the input plus what the decoder finds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udc_ray.models.networks.dynamic import dynamic_filter, repeat_edge

LEAK = 0.2  # of every LeakyReLU; the fixed-weight reference output rules out the other usual values


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a LeakyReLU between them, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.LeakyReLU(LEAK)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = x_BCHW + self.conv2(self.act(self.conv1(x_BCHW)))
        return out


class DynamicSkip(nn.ModuleList):
    """Predicts K x K filters from kernel features and applies them to image features."""

    def __init__(self, width: int, kernel_size: int) -> None:
        taps = width * kernel_size**2
        super().__init__(
            [
                nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU()),
                ResidualBlock(width),
                ResidualBlock(width),
                nn.Sequential(nn.Conv2d(width, taps, 1), nn.PReLU()),
            ]
        )

    def forward(self, x_BCHW: Tensor, kernel_features_BCHW: Tensor) -> Tensor:
        h = kernel_features_BCHW
        for part in list(self)[:3]:
            h = part(h)
        weight, bias, slope = (self.get_parameter(f"3.{key}") for key in ("0.weight", "0.bias", "1.weight"))
        return dynamic_filter(x_BCHW, h, weight, bias, slope)


class DISCNet(nn.Module):
    """The network; keys as in the published checkpoints.

    Args:
        channels: image channels, 3 for RGB, 4 for raw planes.
        width: channels at full resolution, doubled at each coarser scale.
        code_length: numbers in the code of the point spread function.
        kernel_size: side K of the predicted filters, odd.
    """

    def __init__(self, *, channels: int = 3, width: int = 32, code_length: int = 5, kernel_size: int = 5) -> None:
        super().__init__()
        full, half, quarter = width, 2 * width, 4 * width
        self._add_scale("conv_1", channels, full, 1)
        self._add_scale("conv_2", full, half, 2)
        self._add_scale("conv_3", half, quarter, 2)
        self._add_rise("upconv_2", quarter)
        self._add_rise("upconv_1", half)
        self.final_conv = nn.Sequential(nn.Conv2d(full, channels, 3, padding=1), nn.LeakyReLU(LEAK))
        self._add_scale("kconv_1", code_length + channels, full, 1)
        self.dynamic_kernel1 = DynamicSkip(full, kernel_size)
        self._add_scale("kconv_2", full, half, 2)
        self.dynamic_kernel2 = DynamicSkip(half, kernel_size)
        self._add_scale("kconv_3", half, quarter, 2)
        self.dynamic_kernel = DynamicSkip(quarter, kernel_size)

    def _add_scale(self, name: str, before: int, width: int, stride: int) -> None:
        first = nn.Sequential(nn.Conv2d(before, width, 3, stride, padding=1), nn.LeakyReLU(LEAK))
        self._add_steps(name, first, width)

    def _add_rise(self, name: str, before: int) -> None:
        convolution = nn.Conv2d(before, 2 * before, 3, padding=1)
        first = nn.Sequential(convolution, nn.PixelShuffle(2), nn.LeakyReLU(LEAK))
        self._add_steps(name, first, before // 2)

    def _add_steps(self, name: str, first: nn.Module, width: int) -> None:
        for number, step in enumerate((first, ResidualBlock(width), ResidualBlock(width)), 1):
            self.add_module(f"{name}{number}", step)

    def _steps(self, name: str) -> list[nn.Module]:
        return [self.get_submodule(f"{name}{number}") for number in (1, 2, 3)]

    def _scale(self, name: str, x_BCHW: Tensor) -> Tensor:
        for step in self._steps(name):
            x_BCHW = step(x_BCHW)
        return x_BCHW

    def forward(self, x_BCHW: Tensor, code_BK11: Tensor) -> Tensor:
        """Restore a batch.

        Args:
            x_BCHW: tone-mapped image, about [0, 1); H and W are padded to multiples of 4 inside by repeating the edge.
            code_BK11: code of the point spread function, one for each item or one for all.

        Returns:
            The restored image, same shape and domain, not clamped.
        """
        height, width = x_BCHW.shape[-2:]
        padded = repeat_edge(x_BCHW, 0, -width % 4, 0, -height % 4)
        code_BKHW = code_BK11.to(padded.dtype).expand(len(padded), -1, *padded.shape[-2:])
        h, k = padded, torch.cat([code_BKHW, padded], 1)
        skips: list[Tensor] = []
        filters = (self.dynamic_kernel1, self.dynamic_kernel2, self.dynamic_kernel)
        for number, skip in enumerate(filters, 1):
            h, k = self._scale(f"conv_{number}", h), self._scale(f"kconv_{number}", k)
            skips.append(skip(h, k))
        h = skips.pop()
        for name in ("upconv_2", "upconv_1"):
            rise, *refine = self._steps(name)
            h = rise(h) + skips.pop()
            for step in refine:
                h = step(h)
        restored: Tensor = (self.final_conv(h) + padded)[..., :height, :width]
        return restored
