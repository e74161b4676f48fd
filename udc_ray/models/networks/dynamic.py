"""Dynamic convolution: a filter of its own for every pixel and channel, predicted from other features.

DISCNet (Feng, Li, Chen, Li, Loy, CVPR 2021) uses 5 x 5 filters, UDC-UNet (Liu, Hu, Chen, Dong, ECCV workshops 2022)
3 x 3. A 1 x 1 convolution, in DISCNet followed by a PReLU, predicts K*K numbers per channel; for channel c and the
tap in row i, column j

    out[c, y, x] = sum_ij  kernel[c*K*K + i*K + j, y, x] * input[c, y + i - K//2, x + j - K//2]

with the edge of the input repeated. The kernels are K*K times as large as the features they filter (2 GB at
32 x 800 x 800 and K = 5), and so are unfolded neighbourhoods. Neither is made here: one tap's kernels are predicted,
used and dropped, forward as well as backward, so that memory does not grow with K.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def dynamic_filter(
    x_BCHW: Tensor, features_BFHW: Tensor, weight: Tensor, bias: Tensor, slope_1: Tensor | None = None
) -> Tensor:
    """Filter every channel of `x` with kernels that a 1 x 1 convolution predicts from `features`.

    Args:
        x_BCHW: what is filtered.
        features_BFHW: what the kernels are predicted from, at the same places.
        weight: C*K*K x F x 1 x 1, K odd, of the convolution; output index c*K*K + row*K + column.
        bias: C*K*K, of the convolution.
        slope_1: single weight of the PReLU behind the convolution; None where there is no activation.

    Returns:
        B x C x H x W. First and second derivatives exist with respect to every tensor argument. A first derivative
        takes as much memory for K = 5 as for K = 1; one that is to be differentiated again (`create_graph=True`)
        keeps every tap.
    """
    channels = x_BCHW.shape[1]
    weight_KCF11 = weight.reshape(channels, -1, *weight.shape[1:]).transpose(0, 1)
    bias_KC = bias.reshape(channels, -1).transpose(0, 1)
    filtered: Tensor = _DynamicFilter.apply(x_BCHW, features_BFHW, weight_KCF11, bias_KC, slope_1)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return filtered


def repeat_edge(x_BCHW: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Repeat the edge pixels outwards.

    Equal to `F.pad(mode="replicate")`, whose gradient adds up in no fixed order on a GPU; this one's does.
    """
    for dim, before, after in ((-1, left, right), (-2, top, bottom)):
        first, last = x_BCHW.narrow(dim, 0, 1), x_BCHW.narrow(dim, x_BCHW.shape[dim] - 1, 1)
        x_BCHW = torch.cat([first] * before + [x_BCHW] + [last] * after, dim)
    return x_BCHW


def _fold_edge(g_BCHW: Tensor, radius: int) -> Tensor:
    """Transpose of `repeat_edge`: what fell on a repeated pixel goes back to the edge."""
    for dim in (-2, -1):
        inner = g_BCHW.shape[dim] - 2 * radius
        if inner == 1:
            g_BCHW = g_BCHW.sum(dim, keepdim=True)
            continue
        first = g_BCHW.narrow(dim, 0, radius + 1).sum(dim, keepdim=True)
        last = g_BCHW.narrow(dim, radius + inner - 1, radius + 1).sum(dim, keepdim=True)
        g_BCHW = torch.cat([first, g_BCHW.narrow(dim, radius + 1, inner - 2), last], dim)
    return g_BCHW


def _neighbour(padded_BCHW: Tensor, tap: int, size: int) -> Tensor:
    """What a tap sees, for every pixel."""
    row, column = divmod(tap, size)
    height, width = padded_BCHW.shape[-2] - size + 1, padded_BCHW.shape[-1] - size + 1
    return padded_BCHW[..., row : row + height, column : column + width]


def _spread(g_BCHW: Tensor, tap: int, size: int) -> Tensor:
    """Transpose of `_neighbour`."""
    row, column = divmod(tap, size)
    return F.pad(g_BCHW, (column, size - 1 - column, row, size - 1 - row))


def _prelu(x: Tensor, gate: Tensor, slope_1: Tensor | None) -> Tensor:
    """Keep x where the gate is positive, scale it elsewhere: the PReLU of its own gate, or its derivative."""
    return x if slope_1 is None else torch.where(gate > 0, x, slope_1 * x)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part


class _DynamicFilter(torch.autograd.Function):
    """Keeps the inputs only; the kernels of a tap are predicted again in the backward pass."""

    @staticmethod
    def forward(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None) -> Tensor:
        size = math.isqrt(len(weight))
        padded, out = repeat_edge(x, *(size // 2,) * 4), torch.zeros_like(x)
        for tap in range(size * size):
            raw = F.conv2d(features, weight[tap], bias[tap])
            out.addcmul_(_prelu(raw, raw, slope), _neighbour(padded, tap, size))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Ordinary operations, none in place: with create_graph=True autograd records them, and the bits stay the same.
        x, features, weight, bias, slope = ctx.saved_tensors
        needs_x, needs_features, *needs_head = ctx.needs_input_grad
        size, grad = math.isqrt(len(weight)), grads[0]
        padded = repeat_edge(x, *(size // 2,) * 4)
        grad_padded: Tensor | None = None
        grad_features: Tensor | None = None
        heads = []
        for tap in range(size * size):
            raw = F.conv2d(features, weight[tap], bias[tap])
            if needs_x:
                grad_padded = _plus(grad_padded, _spread(grad * _prelu(raw, raw, slope), tap, size))
            if not any(ctx.needs_input_grad[1:]):
                continue
            grad_kernel = grad * _neighbour(padded, tap, size)
            grad_raw = _prelu(grad_kernel, raw, slope)
            if needs_features:
                grad_features = _plus(grad_features, F.conv2d(grad_raw, weight[tap].transpose(0, 1)))
            if any(needs_head):
                weight_CF = torch.einsum("bchw,bfhw->cf", grad_raw, features)
                heads.append((weight_CF, grad_raw.sum((0, 2, 3)), (grad_kernel * raw.clamp(max=0)).sum()))
        grad_x = None if grad_padded is None else _fold_edge(grad_padded, size // 2)
        if not heads:
            return grad_x, grad_features, None, None, None
        weights, biases, slopes = (torch.stack(parts) for parts in zip(*heads, strict=True))
        grad_slope = None if slope is None else slopes.sum().reshape(slope.shape)
        return grad_x, grad_features, weights[..., None, None], biases, grad_slope
