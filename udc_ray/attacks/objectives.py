"""What an attack maximises: per-image damage, as a differentiable loss and as the reported score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy

from udc_ray.errors import DataError, SpecError, did_you_mean
from udc_ray.metrics.perceptual import ShiftTolerant, loaded
from udc_ray.models.base import TaskName

WINDOW = 11
"""Side of the SSIM window, in pixels."""
LARGEST = 1e30
"""Margin of logits that are infinite or no numbers."""


class Objective(Protocol):
    """Per-image damage. Outputs and references are images, or B x K logits and B classes.

    Attributes:
        name: name in the spec.
        reference: ``truth``, or ``clean`` for the victim's own output on the untouched image.
        task: of whose models it judges the answers.
        additive: whether the score is the mean of squared differences over all values, so that the sums of
            tiles add up to it.
    """

    name: str
    reference: Literal["truth", "clean"]
    task: TaskName
    additive: bool

    def loss(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Damage of the unclamped output, differentiable; B values, larger is worse."""
        ...

    def score(self, output_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Damage as reported, of images clamped to [0, 1]; B values in float64."""
        ...

    def check(self, channels: int, height: int, width: int) -> None:
        """Refuse images that it cannot judge with a DataError."""
        ...


class MSE:
    """Mean squared error; on clamped outputs PSNR is its logarithm."""

    task: TaskName = "restoration"
    additive = True

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

    task: TaskName = "restoration"
    additive = False

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

    task: TaskName = "restoration"
    additive = False

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


class Margin:
    """Largest logit of another class minus that of the true one (Carlini and Wagner 2017, f6 without its bound).

    The true class is found below 0; from 0 on another one is at least as large, and the image is misclassified.
    """

    task: TaskName = "classification"
    additive = False

    def __init__(self, name: str = "margin", reference: Literal["truth", "clean"] = "truth") -> None:
        self.name, self.reference = name, reference

    def loss(self, output_BK: Tensor, label_B: Tensor) -> Tensor:
        """The margin, differentiable."""
        true_B1 = output_BK.gather(1, label_B[:, None])
        others_BK = output_BK.scatter(1, label_B[:, None], -math.inf)
        return others_BK.amax(dim=1) - true_B1[:, 0]

    def score(self, output_BK: Tensor, label_B: Tensor) -> Tensor:
        """The margin; logits that are not numbers are a misclassification."""
        margin_B = Margin.loss(self, output_BK.double(), label_B)
        return torch.nan_to_num(margin_B, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)

    def check(self, channels: int, height: int, width: int) -> None:
        """Every image will do."""


class CrossEntropy(Margin):
    """Cross-entropy for gradients; what is reported, and what decides, is the margin.

    The sign of the margin says whether an image is misclassified, which no value of the cross-entropy does. So
    iterates are compared by it, and an attack that sees scores only does the same as with ``margin``.
    """

    def __init__(self, name: str = "cross-entropy", reference: Literal["truth", "clean"] = "truth") -> None:
        super().__init__(name, reference)

    def loss(self, output_BK: Tensor, label_B: Tensor) -> Tensor:
        """Minus the logarithm of the true class's softmax, differentiable."""
        return cross_entropy(output_BK, label_B, reduction="none")


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
"""Objectives against restorers."""

CLASSIFICATION: dict[str, Objective] = {"margin": Margin(), "cross-entropy": CrossEntropy()}
"""Objectives against classifiers."""

_ALL: Mapping[str, Objective] = OBJECTIVES | CLASSIFICATION


def get_objective(name: str) -> Objective:
    """Look an objective up by name."""
    if name not in _ALL:
        raise SpecError(f"unknown objective {name!r}", change=did_you_mean(name, _ALL))
    return _ALL[name]


def objectives_of(task: TaskName) -> tuple[str, ...]:
    """Names of the objectives that judge the answers of a task's models."""
    return tuple(name for name, objective in _ALL.items() if objective.task == task)
