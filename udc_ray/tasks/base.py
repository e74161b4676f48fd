"""The protocol of a task: everything in which restoration, classification and other uses of a model differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from udc_ray.attacks.objectives import Objective, get_objective
from udc_ray.data.base import Sample
from udc_ray.errors import SpecError
from udc_ray.metrics.perceptual import Perceptual
from udc_ray.metrics.protocols import Protocol as Metrics
from udc_ray.models.base import Descriptor, TaskName
from udc_ray.probe import Network
from udc_ray.spec import RunSpec, Success


class Fused(NamedTuple):
    """PSNR in dB of what N outputs for one image make together; None where there are no N > 1 images."""

    mean: float | None = None
    """Of the pixel by pixel mean."""
    median: float | None = None
    """Of the pixel by pixel median."""


NOT_FUSED = Fused()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Quality of one output against its reference; None where it is not defined.

    Attributes:
        psnr: dB.
        ssim: at most 1.
        lpips: perceptual distance, 0 for equal images.
        score: of other tasks than restoration, larger is better; 1.0 or 0.0 for a class found or missed.
        nfe: calls of the denoiser.
        guide_calls: calls of the network of a guide.
        purify_seconds: of the purification of this image.
        fused: of all the draws of a random victim together.
    """

    psnr: float | None
    ssim: float | None
    lpips: float | None = None
    nfe: int = 0
    score: float | None = None
    guide_calls: int = 0
    purify_seconds: float = 0.0
    fused: Fused = NOT_FUSED


class Goal(NamedTuple):
    """What an attack on one image starts from and aims at, in the objective's score."""

    clean: float
    """Score of the untouched image, mean over the evaluation draws."""
    success: float
    """Score from which on the image counts as a success."""


class Scores(NamedTuple):
    """Quality of one image in one cell and draw.

    Attributes:
        degraded: of the untouched input itself, PSNR in dB; None where there is no such thing.
        noise: of the output under random noise: PSNR in dB, or the score.
        clean: of the output on the untouched input.
        adversarial: of the output on the attacked input.
    """

    degraded: float | None
    noise: float
    clean: Reading
    adversarial: Reading


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """With what outputs are measured.

    Attributes:
        protocol: how restored images are compared.
        perceptual: the perceptual distance that is measured beside; None for none.
        device: where its network is.
    """

    protocol: Metrics
    perceptual: Perceptual | None = None
    device: torch.device = torch.device("cpu")


def objective_for(task: Task, attack: str, name: str | None) -> Objective:
    """The objective of an attack on models of a task: the one of that name, else the task's default.

    Raises:
        SpecError: an unknown objective, or one that does not judge such models.
    """
    objective = get_objective(name or task.objectives[0])
    if objective.task == task.name:
        return objective
    raise SpecError(
        f"the attack {attack} maximises {objective.name}, which judges {objective.task}; the model is for {task.name}",
        "the attack, or the spec's objective, is for another kind of model",
        f"use one of: {', '.join(task.objectives)}; or leave the attack out",
    )


class Task(Protocol):
    """How the answers of a model are judged. A task has no state; one value serves all runs.

    Attributes:
        name: as in the descriptors of its models.
        objectives: names of the objectives that judge its answers; the first is the default.
        stop: when a query attack ends that says nothing about it; see `udc_ray.attacks.query.QueryAttack`.
        quality: column of the attacked quality by which images are compared, lower is worse.
    """

    @property
    def name(self) -> TaskName: ...
    @property
    def objectives(self) -> tuple[str, ...]: ...
    @property
    def stop(self) -> Literal["never", "success"]: ...
    @property
    def quality(self) -> Literal["psnr_adv", "score_adv"]: ...

    def wrong_output(self, output: Tensor, x_BCHW: Tensor, descriptor: Descriptor) -> str:
        """What is wrong with the answer of a model; empty where nothing is."""
        ...

    def check_sample(self, sample: Sample, descriptor: Descriptor) -> None:
        """Refuse an image whose truth the model cannot answer.

        Raises:
            DataError: with what is wrong.
        """
        ...

    def check_shape(self, metrics: Metrics, shape: tuple[int, int, int]) -> None:
        """Refuse a C x H x W that the answers to cannot be measured, with a DataError."""
        ...

    def clean_reference(self, outputs: Sequence[Tensor]) -> Tensor:
        """What later outputs are compared with where there is no truth: the model's own, one a draw."""
        ...

    def goal(
        self,
        objective: Objective,
        outputs: Sequence[Tensor],
        reference: Tensor,
        metrics: Metrics,
        wanted: Success,
    ) -> Goal:
        """Where the attack on an image starts and what it aims at.

        Args:
            objective: what the attack maximises.
            outputs: the victim's on the untouched image, one a draw.
            reference: what the objective compares with.
            metrics: how restored images are compared.
            wanted: what the spec calls a success.
        """
        ...

    def read(self, output: Tensor, reference: Tensor, yardstick: Yardstick) -> Reading:
        """Quality of one output."""
        ...

    def fuse(self, outputs: Sequence[Tensor], reference: Tensor, metrics: Metrics) -> Fused:
        """Quality of what the outputs of all draws for one image make together, more than one."""
        ...

    def noise(self, output: Tensor, reference: Tensor, metrics: Metrics) -> float:
        """Quality of one output under random noise: the number whose mean is the control."""
        ...

    def input_quality(self, sample: Sample, metrics: Metrics) -> float | None:
        """Quality of an untouched input without any model; None where there is no such thing."""
        ...

    def columns(self, scores: Scores, has_truth: bool) -> dict[str, Any]:
        """The columns of a record that say how good its outputs are."""
        ...

    def success(self, scores: Scores, has_truth: bool, wanted: Success) -> bool | None:
        """Whether an image was harmed; None where that cannot be said."""
        ...

    def measured_by(self, spec: RunSpec) -> dict[str, Any]:
        """The columns ``protocol`` and ``perceptual``: with what its outputs are measured."""
        ...

    def networks(self, objectives: Sequence[Objective]) -> list[Network]:
        """Objectives in the form of networks, for the probe of whether places in a batch change bits."""
        ...
