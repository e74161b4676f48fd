"""What an attacker may do to an image: norm, size, box and storage depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Depth = Literal["float", 8]


def l2_norm(delta_BCHW: Tensor) -> Tensor:
    """Euclidean norm over C*H*W, per image, computed in float64."""
    return delta_BCHW.double().flatten(1).norm(dim=1)


def linf_norm(delta_BCHW: Tensor) -> Tensor:
    """Largest absolute value, per image, in float64."""
    return delta_BCHW.double().flatten(1).abs().amax(dim=1)


def to_8bit(candidate_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
    """Round onto the 8-bit grid, towards the clean pixel, so that no norm grows."""
    scaled = candidate_BCHW.double() * 255
    down, up = torch.floor(scaled + 1e-4), torch.ceil(scaled - 1e-4)
    rounded = torch.where(candidate_BCHW >= clean_BCHW, down, up) / 255
    return rounded.clamp(0, 1).to(candidate_BCHW.dtype)


@dataclass(frozen=True, kw_only=True)
class Threat:
    """A ball around the clean image, inside the box [0, 1].

    Attributes:
        norm: ``linf``, or ``l2`` over all C*H*W values.
        eps: radius in units of the [0, 1] image; None for minimum-norm attacks (box only).
        depth: ``float``, or 8 when the attacked image is stored with 8 bits.
    """

    norm: Norm
    eps: float | None
    depth: Depth = "float"

    def project(self, candidate_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
        """Nearest image inside ball and box, at the storage depth."""
        delta = candidate_BCHW - clean_BCHW
        if self.eps is not None and self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.eps is not None:
            norm = l2_norm(delta).clamp(min=1e-12).to(delta.dtype)
            delta = delta * (self.eps * (1 - 1e-7) / norm).clamp(max=1.0)[:, None, None, None]
        inside = (clean_BCHW + delta).clamp(0, 1)
        return inside if self.depth == "float" else to_8bit(inside, clean_BCHW)
