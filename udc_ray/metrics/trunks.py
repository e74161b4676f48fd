"""The two convolutional trunks whose features the perceptual distances compare."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad, relu

WIDTHS = (64, 192, 384, 256, 256)
"""Channels of the five feature maps of an AlexNet (Krizhevsky 2014, arXiv 1404.5997)."""


class Trunk(nn.Module):
    """The five convolutions of an AlexNet.

    Takes B x 3 x H x W, standardised per channel; returns what stands behind each of the five
    ReLUs, B x C x h x w each.

    Attributes:
        smallest: least height and width that it can take, in pixels.
    """

    smallest: ClassVar[int]

    def __init__(self, first_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 11, stride=first_stride, padding=2)
        self.conv2 = nn.Conv2d(WIDTHS[0], WIDTHS[1], 5, padding=2)
        self.conv3 = nn.Conv2d(WIDTHS[1], WIDTHS[2], 3, padding=1)
        self.conv4 = nn.Conv2d(WIDTHS[2], WIDTHS[3], 3, padding=1)
        self.conv5 = nn.Conv2d(WIDTHS[3], WIDTHS[4], 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        first = self.first(x_BCHW)
        second = relu(self.conv2(self.reduced(first)))
        third = relu(self.conv3(self.reduced(second)))
        fourth = relu(self.conv4(third))
        return [first, second, third, fourth, relu(self.conv5(fourth))]

    def first(self, x_BCHW: Tensor) -> Tensor:
        """The first feature map."""
        return relu(self.conv1(x_BCHW))

    def reduced(self, x_BCHW: Tensor) -> Tensor:
        """A feature map at half its size."""
        return max_pool2d(x_BCHW, 3, stride=2)


class AlexNet(Trunk):
    """The trunk of torchvision's AlexNet, whose ReLUs Zhang et al. (CVPR 2018) compare."""

    smallest: ClassVar[int] = 31

    def __init__(self) -> None:
        super().__init__(first_stride=4)


class ShiftTolerantAlexNet(Trunk):
    """The AlexNet of Ghildyal and Liu (ECCV 2022): no stride without a blur before it.

    Every reduction is dense followed by a binomial blur of stride 2 (Zhang, ICML 2019) on a map
    mirrored by 2 pixels, one more than the blur needs; the first blur comes before its ReLU.
    """

    smallest: ClassVar[int] = 21

    def __init__(self) -> None:
        super().__init__(first_stride=1)

    def first(self, x_BCHW: Tensor) -> Tensor:
        return relu(_blurred(self.conv1(x_BCHW)))

    def reduced(self, x_BCHW: Tensor) -> Tensor:
        return _blurred(max_pool2d(x_BCHW, 3, stride=1))


def _blurred(x_BCHW: Tensor) -> Tensor:
    """Weights (1, 2, 1) / 4 in rows and columns, at every second pixel."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x_BCHW.dtype, device=x_BCHW.device)
    channels = x_BCHW.shape[1]
    weights = torch.outer(line, line).expand(channels, 1, 3, 3)
    return conv2d(pad(x_BCHW, (2, 2, 2, 2), mode="reflect"), weights, stride=2, groups=channels)
