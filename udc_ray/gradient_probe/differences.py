"""Directional derivatives against central differences, with kinks told from mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from udc_ray import rng

DIRECTIONS = 8
STEPS = (2e-6, 5e-7, 1.25e-7)
"""Half widths of the differences, Euclidean; a smaller one is tried where a larger one disagrees."""
TOLERANCE = 1e-3
"""Relative distance from a difference up to which a directional derivative equals it."""
ROUNDING = 1e-13
"""Relative error of a loss in float64, after the sums inside a network."""

Value = Callable[[Tensor], Tensor]
"""Losses of B images, float64."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Directions along which a gradient was compared.

    Attributes:
        agreeing: that equal their central difference.
        kinks: whose differences do not settle as they narrow: something bends or jumps there.
        gap: relative distance of those that do not agree; 0 where all do.
    """

    agreeing: int
    kinks: int
    gap: float


def unit_directions(x_1CHW: Tensor, seed: int, count: int = DIRECTIONS) -> Tensor:
    """Keyed random directions of Euclidean length 1, count x C x H x W, float64."""
    generator = rng.generator(seed, "probe", "control", step=1)
    drawn = rng.normal(generator, count, *x_1CHW.shape[1:]).double().to(x_1CHW.device)
    lengths_K: Tensor = torch.linalg.vector_norm(drawn.flatten(1), dim=1)
    return drawn / lengths_K[:, None, None, None]


def compare(value: Value, x_1CHW: Tensor, gradient_1CHW: Tensor, directions_KCHW: Tensor) -> Compared:
    """Compare a gradient with central differences of the value, all in float64.

    A direction is decided once two widths give the same difference; the first width alone decides where it agrees.
    """
    slopes_K = (gradient_1CHW * directions_KCHW).flatten(1).sum(dim=1)
    differences = [_central(value, x_1CHW, directions_KCHW, STEPS[0])]
    scale = torch.stack([slopes_K, differences[0]]).abs().amax(dim=0).median()  # a jump does not move it
    rounding = ROUNDING * float(value(x_1CHW).abs().max()) / STEPS[-1]
    allowed = max(float(TOLERANCE * scale), rounding)
    agrees_K = (differences[0] - slopes_K).abs() <= allowed
    for step in STEPS[1:]:
        if bool(agrees_K.all()):
            break
        differences.append(_central(value, x_1CHW, directions_KCHW, step))
        agrees_K |= (differences[-1] - slopes_K).abs() <= allowed
    if bool(agrees_K.all()):
        return Compared(agreeing=len(slopes_K), kinks=0, gap=0.0)
    settled_K = (differences[-1] - differences[-2]).abs() <= allowed
    wrong_K = ~agrees_K & settled_K
    decided_K = agrees_K | wrong_K
    gap = _relative((differences[-1] - slopes_K)[wrong_K], scale) if bool(wrong_K.any()) else 0.0
    return Compared(agreeing=int(agrees_K.sum()), kinks=int((~decided_K).sum()), gap=gap)


def directional_gap(one_1CHW: Tensor, other_1CHW: Tensor, directions_KCHW: Tensor) -> float:
    """Relative distance of the directional derivatives of two gradients; 0 where both vanish."""
    slopes = [(g.double() * directions_KCHW).flatten(1).sum(dim=1) for g in (one_1CHW, other_1CHW)]
    return _relative(slopes[0] - slopes[1], slopes[0].square().mean().sqrt())


def _relative(gap_K: Tensor, scale: Tensor) -> float:
    """Root mean square of gaps over the scale of what is compared."""
    size, whole = float(gap_K.square().mean().sqrt()), float(scale)
    return 0.0 if size == 0 else size / whole if whole > 0 else float("inf")


def _central(value: Value, x_1CHW: Tensor, directions_KCHW: Tensor, step: float) -> Tensor:
    forward, backward = value(x_1CHW + step * directions_KCHW), value(x_1CHW - step * directions_KCHW)
    return (forward - backward).double() / (2 * step)
