"""What an attacker may do to an image: norm, size, box and storage depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Depth = Literal["float", 8, 16]


def l2_norm(delta_BCHW: Tensor) -> Tensor:
    """Euclidean norm over C*H*W, per image, computed in float64."""
    norm_B: Tensor = torch.linalg.vector_norm(delta_BCHW.double().flatten(1), dim=1)
    return norm_B


def linf_norm(delta_BCHW: Tensor) -> Tensor:
    """Largest absolute value, per image, in float64."""
    return delta_BCHW.double().flatten(1).abs().amax(dim=1)


def to_grid(candidate_BCHW: Tensor, clean_BCHW: Tensor, bits: int = 8) -> Tensor:
    """Round onto the grid of a storage depth, towards the clean pixel, so that no norm grows.

    A pixel with no grid value between its clean value and the candidate keeps its clean value
    (that happens only where the clean image is off the grid).

    Args:
        candidate_BCHW, clean_BCHW: images in [0, 1].
        bits: 8 or 16.
    """
    levels = 2**bits - 1
    slack = levels * 4e-7  # a few float32 steps at the top of the range: what is on the grid stays there
    scaled, clean = candidate_BCHW.double() * levels, clean_BCHW.double()
    upwards = candidate_BCHW >= clean_BCHW
    rounded = torch.where(upwards, torch.floor(scaled + slack), torch.ceil(scaled - slack)) / levels
    passed = torch.where(upwards, clean - rounded, rounded - clean) > 1e-6
    return torch.where(passed, clean, rounded).clamp(0, 1).to(candidate_BCHW.dtype)


@dataclass(frozen=True, kw_only=True)
class Threat:
    """A ball around the clean image, inside the box [0, 1].

    Attributes:
        norm: ``linf``, or ``l2`` over all C*H*W values.
        eps: radius in units of the [0, 1] image; None for minimum-norm attacks (box only).
        depth: ``float``, or 8 or 16 when the attacked image is stored with so many bits.
    """

    norm: Norm
    eps: float | None
    depth: Depth = "float"

    @property
    def continuous(self) -> Threat:
        """The same ball and box without rounding; where an iterate lives between its steps."""
        return replace(self, depth="float")

    def project(self, candidate_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
        """An image inside ball and box, at the storage depth: onto the ball, then the box, then the grid."""
        delta = candidate_BCHW - clean_BCHW
        if self.eps is not None and self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.eps is not None:
            norm = l2_norm(delta).clamp(min=1e-12).to(delta.dtype)
            delta = delta * (self.eps * (1 - 1e-7) / norm).clamp(max=1.0)[:, None, None, None]
        return self.store((clean_BCHW + delta).clamp(0, 1), clean_BCHW)

    def store(self, inside_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
        """An image that is inside ball and box already, at the storage depth."""
        return inside_BCHW if self.depth == "float" else to_grid(inside_BCHW, clean_BCHW, self.depth)
