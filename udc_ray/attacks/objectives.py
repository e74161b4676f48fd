"""What an attack maximises: per-image damage, as a differentiable loss and as the reported score."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from udc_ray.errors import SpecError, did_you_mean


class Objective(Protocol):
    """Per-image damage.

    Attributes:
        name: name in the spec.
        reference: ``truth``, or ``clean`` for the victim's own output on the untouched image.
    """

    name: str
    reference: Literal["truth", "clean"]

    def loss(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Damage of the unclamped output, differentiable; B values, larger is worse."""
        ...

    def score(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Damage as reported, of the output clamped to [0, 1]; B values in float64."""
        ...


class MSE:
    """Mean squared error; on clamped outputs PSNR is its logarithm."""

    def __init__(self, name: str, reference: Literal["truth", "clean"]) -> None:
        self.name, self.reference = name, reference

    def loss(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        return (output_BCHW - reference_BCHW).square().mean(dim=(1, 2, 3))

    def score(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        return (output_BCHW.clamp(0, 1).double() - reference_BCHW.double()).square().mean(dim=(1, 2, 3))


class SSIM:
    """1 - SSIM with the Gaussian window of Wang et al. 2004 (sigma 1.5, 11 x 11), range 1."""

    reference: Literal["truth", "clean"]

    def __init__(self, name: str, reference: Literal["truth", "clean"]) -> None:
        self.name, self.reference = name, reference

    def loss(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        similarity = structural_similarity_index_measure(
            output_BCHW, reference_BCHW, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none"
        )
        if not isinstance(similarity, Tensor):
            raise TypeError("torchmetrics returned more than the similarity")
        return 1 - similarity

    def score(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        return self.loss(output_BCHW.clamp(0, 1).double(), reference_BCHW.double())


OBJECTIVES: dict[str, Objective] = {
    "mse": MSE("mse", "truth"),
    "mse-clean": MSE("mse-clean", "clean"),
    "ssim": SSIM("ssim", "truth"),
    "ssim-clean": SSIM("ssim-clean", "clean"),
}


def get_objective(name: str) -> Objective:
    """Look an objective up by name."""
    if name not in OBJECTIVES:
        raise SpecError(f"unknown objective {name!r}", change=did_you_mean(name, OBJECTIVES))
    return OBJECTIVES[name]
