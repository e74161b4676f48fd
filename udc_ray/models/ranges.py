"""Domains that published networks work in, as maps from and to images in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

KNEE = 0.25
"""The tone map of the SYNTH data is y = x / (x + 0.25)."""
BRIGHTEST = 500.0
"""Largest linear value of the SYNTH data."""


@dataclass(frozen=True)
class Range:
    """One domain.

    Attributes:
        enter: [0, 1] to the network's domain.
        leave: the network's domain to [0, 1], unclamped.
    """

    enter: Callable[[Tensor], Tensor]
    leave: Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def _to_signed(x: Tensor) -> Tensor:
    return (x - 0.5) * 2


def _from_signed(y: Tensor) -> Tensor:
    return y / 2 + 0.5


def to_linear(x: Tensor) -> Tensor:
    """Invert the tone map: min(0.25 x / (1 - x), 500), with gradient 0 above the bound and at 1 too."""
    highest = BRIGHTEST / (BRIGHTEST + KNEE)
    inside = x < highest
    safe = torch.where(inside, x, torch.zeros_like(x))  # before the division: 0 * inf is no gradient
    return torch.where(inside, KNEE * safe / (1 - safe), torch.full_like(x, BRIGHTEST))


def to_tone_mapped(y: Tensor) -> Tensor:
    """The tone map x / (x + 0.25); below 0, where it has a pole, it goes on as a line."""
    positive = y.clamp(min=0)
    return positive / (positive + KNEE) + (y - positive) / KNEE


RANGES = {
    "unit": Range(_same, _same),
    "signed": Range(_to_signed, _from_signed),
    "linear": Range(to_linear, to_tone_mapped),
}
"""``unit`` [0, 1], ``signed`` [-1, 1], ``linear`` HDR light 0..500 behind the tone map."""
