"""Residual networks for 32 x 32 images (He et al., CVPR 2016, section 4.2) in the form of published weights.

6 n + 2 layers: a 3 x 3 convolution, three stages of n blocks with 16, 32 and 64 channels, the mean over all pixels,
one linear layer. Where a stage halves the size, the shortcut takes every second pixel and pads with channels of
zeros (option A of the paper), so that it has no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

WIDTHS = (16, 32, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of RGB in [0, 1] with which the published weights were trained."""


class CifarResNet(nn.Module):
    """Classifies images in [0, 1]; they are normalised inside.

    Args:
        blocks: n, blocks a stage; 3 makes 20 layers, 5 makes 32.
        classes: number of classes.
    """

    def __init__(self, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.channels, self.classes = 3, classes
        # Constants, not weights: they are in no published file.
        self.register_buffer("mean_CHW", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std_CHW", torch.tensor(STD)[:, None, None], persistent=False)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], 1, blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], 2, blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], 2, blocks)
        self.linear = nn.Linear(WIDTHS[2], classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B x 3 x H x W in [0, 1] to B x K logits."""
        x = (x_BCHW - self.get_buffer("mean_CHW")) / self.get_buffer("std_CHW")
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits_BK: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits_BK


def with_counters(network: CifarResNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the batch counters of its norms, which older files lack and evaluation does not use."""
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    return counters | dict(state)


class _Block(nn.Module):
    """Two convolutions and the shortcut around them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.stride, self.added = stride, outer - inner

    def forward(self, x_BCHW: Tensor) -> Tensor:
        learnt: Tensor = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCHW)))))
        shortcut = x_BCHW
        if self.added:
            before = self.added // 2  # half of the zero channels on either side
            shortcut = x_BCHW[:, :, :: self.stride, :: self.stride]
            shortcut = pad(shortcut, (0, 0, 0, 0, before, self.added - before))
        return torch.relu(learnt + shortcut)


def _stage(inner: int, outer: int, stride: int, blocks: int) -> nn.Sequential:
    """The first block changes size and channels."""
    return nn.Sequential(_Block(inner, outer, stride), *(_Block(outer, outer, 1) for _ in range(blocks - 1)))
