"""NAFNet (Chen, Chu, Zhang, Sun: Simple Baselines for Image Restoration, ECCV 2022).

A U-shaped network without activation functions: gates multiply two halves of the channels
(SimpleGate, eq. 3), and channel attention is a single pooled projection (SCA, eq. 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of B x C x H x W."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        last = x_BCHW.permute(0, 2, 3, 1)
        normed: Tensor = F.layer_norm(last, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
        return normed


def simple_gate(x_BCHW: Tensor) -> Tensor:
    """Multiply the two halves of the channels."""
    left, right = x_BCHW.chunk(2, dim=1)
    return left * right


class NAFBlock(nn.Module):
    """One block: gated depth-wise convolution with channel attention, then a gated projection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        # Registered in the order of the published files; made in another, which a seeded training relies on.
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = sca
        self.conv4 = nn.Conv2d(channels, wide, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = LayerNorm2d(channels)
        self.norm2 = LayerNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = simple_gate(self.conv2(self.conv1(self.norm1(x_BCHW))))
        x_BCHW = x_BCHW + self.conv3(h * self.sca(h)) * self.beta
        h = simple_gate(self.conv4(self.norm2(x_BCHW)))
        result: Tensor = x_BCHW + self.conv5(h) * self.gamma
        return result


def _stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(blocks)))


class NAFNet(nn.Module):
    """The U-shaped network; keys as in the published checkpoints.

    Args:
        width: channels at full resolution.
        encoder_blocks: blocks per encoder level; each level halves the resolution.
        middle_blocks: blocks at the lowest resolution.
        decoder_blocks: blocks per decoder level, from the lowest resolution up.
        channels: image channels.
    """

    def __init__(
        self,
        width: int = 32,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        middle_blocks: int = 12,
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.size_multiple = 2 ** len(encoder_blocks)
        self.intro = nn.Conv2d(channels, width, 3, padding=1)
        self.ending = nn.Conv2d(width, channels, 3, padding=1)
        widths = [width * 2**level for level in range(len(encoder_blocks))]
        # As in the blocks: made in the order that a seeded training relies on, registered in the published one.
        self.encoders = nn.ModuleList(_stage(w, n) for w, n in zip(widths, encoder_blocks, strict=True))
        downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, 2) for w in widths)
        middle = _stage(2 * widths[-1], middle_blocks)
        ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * w, 4 * w, 1, bias=False), nn.PixelShuffle(2)) for w in reversed(widths)
        )
        self.decoders = nn.ModuleList(_stage(w, n) for w, n in zip(reversed(widths), decoder_blocks, strict=True))
        self.middle_blks, self.ups, self.downs = middle, ups, downs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Restore B x C x H x W; H and W are zero-padded to the size multiple inside."""
        height, width = x_BCHW.shape[-2:]
        m = self.size_multiple
        x_BCHW = F.pad(x_BCHW, (0, -width % m, 0, -height % m))
        h, skips = self.intro(x_BCHW), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            h = encoder(h)
            skips.append(h)
            h = down(h)
        h = self.middle_blks(h)
        for up, decoder, skip in zip(self.ups, self.decoders, reversed(skips), strict=True):
            h = decoder(up(h) + skip)
        restored: Tensor = (self.ending(h) + x_BCHW)[..., :height, :width]
        return restored
