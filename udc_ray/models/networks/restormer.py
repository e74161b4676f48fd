"""Restormer (Zamir, Arora, Khan, Hayat, Khan, Yang: Efficient Transformer for High-Resolution Image Restoration, 2022).

A U of transformer blocks whose attention is between channels, not pixels (MDTA, eq. 1: a C x C map, so memory
grows with the image only linearly), and whose feed-forward gates one half of its channels by the other (GDFN, eq. 2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.errors import DataError

SIZE_MULTIPLE = 8


class _LayerNorm(nn.Module):
    """Layer normalisation over the channels of B x C x H x W; the form without bias does not centre either."""

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.centred = bias
        self.body = nn.LayerNorm(channels, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        if self.centred:
            normed: Tensor = self.body(x_BHWC)
        else:
            variance = x_BHWC.var(-1, correction=0, keepdim=True)
            normed = x_BHWC / (variance + self.body.eps).sqrt() * self.body.weight
        return normed.permute(0, 3, 1, 2)


class _Attention(nn.Module):
    """MDTA: softmax(temperature * k q^T) v between the channels of a head, queries and keys of unit length."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        parts = self.qkv_dwconv(self.qkv(x_BCHW)).flatten(2)
        q_Bhcn, k_Bhcn, v_Bhcn = (part.unflatten(1, (self.heads, -1)) for part in parts.chunk(3, 1))
        logits = F.normalize(q_Bhcn, dim=-1) @ F.normalize(k_Bhcn, dim=-1).transpose(-2, -1) * self.temperature
        mixed: Tensor = self.project_out((logits.softmax(-1) @ v_Bhcn).reshape(x_BCHW.shape))
        return mixed


class _FeedForward(nn.Module):
    """GDFN: widen, 3 x 3 depth-wise convolution, GELU of one half times the other, narrow."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x_BCHW)).chunk(2, 1)
        result: Tensor = self.project_out(F.gelu(gate) * value)
        return result


class AttentionBlock(nn.Module):
    """Attention over channels, then a gated depth-wise feed-forward part, each after a norm and around a shortcut."""

    def __init__(self, channels: int, heads: int, expansion: float, *, norm_bias: bool) -> None:
        super().__init__()
        self.norm1 = _LayerNorm(channels, bias=norm_bias)
        self.attn = _Attention(channels, heads)
        self.norm2 = _LayerNorm(channels, bias=norm_bias)
        self.ffn = _FeedForward(channels, int(channels * expansion))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.attn(self.norm1(x_BCHW))
        result: Tensor = x_BCHW + self.ffn(self.norm2(x_BCHW))
        return result


def _resize(channels: int, out: int, shuffle: nn.Module) -> nn.Module:
    """A 3 x 3 convolution, then pixels to channels or back."""
    return nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), shuffle)))


def _down(channels: int) -> nn.Module:
    """Half the resolution, twice the channels."""
    return _resize(channels, channels // 2, nn.PixelUnshuffle(2))


def _up(channels: int) -> nn.Module:
    """Twice the resolution, half the channels."""
    return _resize(channels, 2 * channels, nn.PixelShuffle(2))


class Restormer(nn.Module):
    """The network; keys as in the published checkpoints. Defaults: the denoising networks.

    Args:
        width: channels at full resolution.
        blocks: of the three encoder levels (and the decoder levels beside them) and the bottleneck.
        refinement_blocks: at the end, at full resolution.
        heads: attention heads of the same four levels.
        expansion: hidden width of the feed-forward, over the channels.
        norm_bias: layer norms centre and have a bias (deblurring and deraining files).
        channels: image channels.
    """

    def __init__(
        self,
        *,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        norm_bias: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()

        def level(times: int, count: int, n: int) -> nn.Sequential:
            return nn.Sequential(
                *(AttentionBlock(times * width, n, expansion, norm_bias=norm_bias) for _ in range(count))
            )

        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, width, 3, padding=1, bias=False)))
        self.encoder_level1 = level(1, blocks[0], heads[0])
        self.down1_2 = _down(width)
        self.encoder_level2 = level(2, blocks[1], heads[1])
        self.down2_3 = _down(2 * width)
        self.encoder_level3 = level(4, blocks[2], heads[2])
        self.down3_4 = _down(4 * width)
        self.latent = level(8, blocks[3], heads[3])
        self.up4_3 = _up(8 * width)
        self.reduce_chan_level3 = nn.Conv2d(8 * width, 4 * width, 1, bias=False)
        self.decoder_level3 = level(4, blocks[2], heads[2])
        self.up3_2 = _up(4 * width)
        self.reduce_chan_level2 = nn.Conv2d(4 * width, 2 * width, 1, bias=False)
        self.decoder_level2 = level(2, blocks[1], heads[1])
        self.up2_1 = _up(2 * width)
        # The last level keeps the channels of the skip connection beside its own.
        self.decoder_level1 = level(2, blocks[0], heads[0])
        self.refinement = level(2, refinement_blocks, heads[0])
        self.output = nn.Conv2d(2 * width, channels, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Restore B x C x H x W; both sides are multiples of 8."""
        height, width = x_BCHW.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise DataError(
                f"Restormer cannot take an image of {height} x {width} pixels",
                f"its sides must be multiples of {SIZE_MULTIPLE}",
                "pad the image; run_published and the restorer made by load do so",
            )
        level1 = self.encoder_level1(self.patch_embed(x_BCHW))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        h = self.latent(self.down3_4(level3))
        h = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(h), level3), 1)))
        h = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(h), level2), 1)))
        h = self.decoder_level1(torch.cat((self.up2_1(h), level1), 1))
        restored: Tensor = self.output(self.refinement(h)) + x_BCHW
        return restored
