"""What an attack maximises: per-image damage, as a differentiable loss and as the reported score."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from udc_ray.errors import DataError, SpecError, did_you_mean
from udc_ray.metrics.perceptual import ShiftTolerant, loaded

WINDOW = 11
"""Side of the SSIM window, in pixels."""


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

    def check(self, channels: int, height: int, width: int) -> None:
        """Refuse images that it cannot judge with a DataError."""
        ...


class MSE:
    """Mean squared error; on clamped outputs PSNR is its logarithm."""

    def __init__(self, name: str, reference: Literal["truth", "clean"]) -> None:
        self.name, self.reference = name, reference

    def loss(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        return (output_BCHW - reference_BCHW).square().mean(dim=(1, 2, 3))

    def score(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        return (output_BCHW.clamp(0, 1).double() - reference_BCHW.double()).square().mean(dim=(1, 2, 3))

    def check(self, channels: int, height: int, width: int) -> None:
        """Every image will do."""


class SSIM:
    """1 - SSIM with the Gaussian window of Wang et al. 2004 (sigma 1.5, 11 x 11), range 1.

    Mean over channels and over the places where the whole window lies inside the image, with
    population variances: scikit-image's `structural_similarity` as the strict protocol calls it.
    (torchmetrics' mean includes the mirrored border, which moves it by hundredths on small images.)
    """

    def __init__(self, name: str, reference: Literal["truth", "clean"]) -> None:
        self.name, self.reference = name, reference

    def loss(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        self.check(*output_BCHW.shape[1:])
        x, y = output_BCHW, reference_BCHW.to(output_BCHW.dtype)
        mean_x, mean_y = _windowed(x), _windowed(y)
        variance_x = _windowed(x * x) - mean_x * mean_x
        variance_y = _windowed(y * y) - mean_y * mean_y
        covariance = _windowed(x * y) - mean_x * mean_y
        # Equation 13 of the paper, with K1 = 0.01 and K2 = 0.03.
        above = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
        below = (mean_x * mean_x + mean_y * mean_y + 0.01**2) * (variance_x + variance_y + 0.03**2)
        return 1 - (above / below).mean(dim=(1, 2, 3))

    def score(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        return self.loss(output_BCHW.clamp(0, 1).double(), reference_BCHW.double())

    def check(self, channels: int, height: int, width: int) -> None:
        if min(height, width) < WINDOW:
            raise DataError(
                f"SSIM needs images of at least {WINDOW} x {WINDOW}", "an image smaller than its window", "use mse"
            )


class LPIPS:
    """Perceptual distance ST-LPIPS (see `udc_ray.metrics.perceptual`), through its trunk.

    Loss and score are computed in the type of the output: in float32 the score is as exact as the
    features are, and float64 would cost several times the restorer.
    """

    def __init__(self, name: str, reference: Literal["truth", "clean"]) -> None:
        self.name, self.reference = name, reference
        self.distance = ShiftTolerant()

    def loss(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        self.check(*output_BCHW.shape[1:])
        distance = loaded(self.distance, output_BCHW.device, output_BCHW.dtype)
        value_B: Tensor = distance(output_BCHW, reference_BCHW.to(output_BCHW.dtype))
        return value_B

    def score(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        return self.loss(output_BCHW.clamp(0, 1), reference_BCHW).double()

    def check(self, channels: int, height: int, width: int) -> None:
        reason = self.distance.why_not(channels, height, width)
        if reason is not None:
            raise DataError(
                f"the objective {self.name} cannot judge images of {channels} x {height} x {width}",
                reason,
                "use mse or ssim",
            )


def _windowed(values_BCHW: Tensor) -> Tensor:
    """Gaussian mean at every place where the window fits, B x C x (H - 10) x (W - 10)."""
    channels = values_BCHW.shape[1]
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / 1.5).square())
    weights = (weights / weights.sum()).to(values_BCHW.device, values_BCHW.dtype)
    rows = weights.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = weights.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return conv2d(conv2d(values_BCHW, rows, groups=channels), columns, groups=channels)


OBJECTIVES: dict[str, Objective] = {
    "mse": MSE("mse", "truth"),
    "mse-clean": MSE("mse-clean", "clean"),
    "ssim": SSIM("ssim", "truth"),
    "ssim-clean": SSIM("ssim-clean", "clean"),
    "lpips": LPIPS("lpips", "truth"),
    "lpips-clean": LPIPS("lpips-clean", "clean"),
}


def get_objective(name: str) -> Objective:
    """Look an objective up by name."""
    if name not in OBJECTIVES:
        raise SpecError(f"unknown objective {name!r}", change=did_you_mean(name, OBJECTIVES))
    return OBJECTIVES[name]
