"""How far an attacked image is from the untouched one: the bounds of attacks that have no radius."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from udc_ray.attacks.objectives import LPIPS, SSIM

DistanceName = Literal["ssim", "stlpips", "l2"]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance of images in [0, 1] that is 0 for equal ones and has a gradient.

    Attributes:
        between: attacked and untouched images, B x C x H x W, to B values, differentiable in the first.
        dtype: in which it is computed.
        check: refuses a shape (channels, height, width) that it is not defined for with a DataError.
        weight_hashes: sha256 of its weights files, by a name that is no path.
    """

    between: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype = torch.float64
    check: Callable[[int, int, int], None] = lambda channels, height, width: None
    weight_hashes: Callable[[], dict[str, str]] = field(default=dict)

    def values(self, x_adv_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Distances, B values in float64."""
        with torch.no_grad():
            return self.between(x_adv_BCHW.to(self.dtype), x_BCHW.to(self.dtype)).double()

    def slope(self, x_adv_BCHW: Tensor, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Distances, and the gradient of each with respect to its attacked image, of that image's type."""
        leaf = x_adv_BCHW.detach().to(self.dtype).requires_grad_(True)
        with torch.enable_grad():
            value_B = self.between(leaf, x_BCHW.to(self.dtype))
            (gradient,) = torch.autograd.grad(value_B.sum(), leaf)
        return value_B.detach().double(), gradient.to(x_adv_BCHW.dtype)


def _euclidean(x_adv_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    norm_B: Tensor = torch.linalg.vector_norm((x_adv_BCHW - x_BCHW).flatten(1), dim=1)
    return norm_B


_SSIM, _LPIPS = SSIM("ssim", "clean"), LPIPS("stlpips", "clean")

DISTANCES: dict[DistanceName, Distance] = {
    "ssim": Distance(between=_SSIM.loss, check=_SSIM.check),
    # in float32, as everywhere: in float64 its trunk would cost several times the restorer
    "stlpips": Distance(
        between=_LPIPS.loss,
        dtype=torch.float32,
        check=_LPIPS.check,
        weight_hashes=_LPIPS.distance.weight_hashes,
    ),
    "l2": Distance(between=_euclidean),
}
"""Distances by name: 1 - SSIM, ST-LPIPS, and the Euclidean norm over C*H*W."""
