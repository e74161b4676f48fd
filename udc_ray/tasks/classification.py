"""Classification: a class is found or missed; the mean over images is the accuracy.

The score of an output is 1.0 where the true class has the largest logit, alone, else 0.0. Attacks maximise the
margin, which is at least 0 where the class is missed. Rates of success are over images that were classified
correctly before the attack: for the others success is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from udc_ray.attacks.objectives import Margin, Objective, objectives_of
from udc_ray.data.base import Sample
from udc_ray.errors import DataError
from udc_ray.metrics.protocols import Protocol
from udc_ray.models.base import Descriptor, TaskName
from udc_ray.probe import Network
from udc_ray.spec import RunSpec, Success
from udc_ray.tasks.base import NOT_FUSED, Fused, Goal, Reading, Scores, Yardstick

MISSED = 0.0
"""Margin from which on the class is missed; a tie is missed, so that a model with equal logits finds nothing."""

_MARGIN = Margin()


class Classification:
    """See `udc_ray.tasks.base.Task`."""

    name: TaskName = "classification"
    objectives: ClassVar[tuple[str, ...]] = objectives_of("classification")
    stop: Literal["never", "success"] = "success"
    quality: Literal["psnr_adv", "score_adv"] = "score_adv"

    def wrong_output(self, output: Tensor, x_BCHW: Tensor, descriptor: Descriptor) -> str:
        if descriptor.classes is None or descriptor.classes < 2:
            return f"says that it tells {descriptor.classes} classes apart, where at least 2 are wanted"
        if tuple(output.shape) == (len(x_BCHW), descriptor.classes):
            return ""
        return f"returns {tuple(output.shape)} for {len(x_BCHW)} image of {descriptor.classes} classes"

    def check_sample(self, sample: Sample, descriptor: Descriptor) -> None:
        if sample.truth is None or sample.truth.ndim != 0:
            raise DataError(
                f"image {sample.image_id} has no class, and {descriptor.name} is a classifier",
                "the data are no labelled images",
                "give a .npz file with x (uint8, N x H x W x 3) and y (N classes, counted from 0) as --data",
            )
        if int(sample.truth) >= (descriptor.classes or 0):
            raise DataError(
                f"image {sample.image_id} is of class {int(sample.truth)}; {descriptor.name} knows "
                f"{descriptor.classes}, counted from 0",
                "the labels are those of another data set, or counted from 1",
                "give data with the classes of the model",
            )

    def check_shape(self, metrics: Protocol, shape: tuple[int, int, int]) -> None:
        """Every image can be classified."""

    def clean_reference(self, outputs: Sequence[Tensor]) -> Tensor:
        """The class of the mean logits."""
        return torch.stack(list(outputs)).mean(dim=0).argmax()

    def goal(
        self,
        objective: Objective,
        outputs: Sequence[Tensor],
        reference: Tensor,
        metrics: Protocol,
        wanted: Success,
    ) -> Goal:
        """A misclassification."""
        score = torch.stack([objective.score(o[None], reference[None]) for o in outputs]).mean().item()
        return Goal(score, MISSED)

    def read(self, output: Tensor, reference: Tensor, yardstick: Yardstick) -> Reading:
        return Reading(psnr=None, ssim=None, score=_found(output, reference))

    def fuse(self, outputs: Sequence[Tensor], reference: Tensor, metrics: Protocol) -> Fused:
        """A mean of images means nothing for classes."""
        return NOT_FUSED

    def noise(self, output: Tensor, reference: Tensor, metrics: Protocol) -> float:
        return _found(output, reference)

    def input_quality(self, sample: Sample, metrics: Protocol) -> float | None:
        """An input alone is no class."""
        return None

    def columns(self, scores: Scores, has_truth: bool) -> dict[str, Any]:
        return {
            "score_clean": scores.clean.score if has_truth else None,
            "score_noise": scores.noise,
            "score_adv": scores.adversarial.score,
        }

    def success(self, scores: Scores, has_truth: bool, wanted: Success) -> bool | None:
        """Whether a class that had been found is missed; unknown where it had been missed before."""
        if scores.clean.score != 1.0 or scores.adversarial.score is None:
            return None
        return scores.adversarial.score == 0.0

    def measured_by(self, spec: RunSpec) -> dict[str, Any]:
        """Top-1, whatever the protocol for images is."""
        return {"protocol": "top-1", "perceptual": None}

    def networks(self, objectives: Sequence[Objective]) -> list[Network]:
        """None: losses on logits have no network of their own."""
        return []


def _found(logits_K: Tensor, label: Tensor) -> float:
    """1.0 where the class is found."""
    margin = _MARGIN.score(logits_K[None], label[None].to(logits_K.device))
    return 1.0 if float(margin[0]) < MISSED else 0.0
