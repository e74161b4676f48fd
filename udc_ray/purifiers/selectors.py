"""How a purifier comes to its noise level: fixed, chosen before a run (ANLS), or chosen for every image.

An entry ``selector:`` of a purifier is a name, or a mapping with a name and parameters. The choice is part of the
defence: whoever attacks it knows the level, or what chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from torch import Tensor

from udc_ray.attacks.base import GradientAttack
from udc_ray.attacks.pgd import PGD
from udc_ray.attacks.registry import ATTACKS
from udc_ray.clean_side import clean_hashes
from udc_ray.errors import SpecError, did_you_mean
from udc_ray.params import Params
from udc_ray.purifiers.base import Purifier
from udc_ray.purifiers.ranking import Metric
from udc_ray.purifiers.sampler import NoisePredictor, add_noise
from udc_ray.purifiers.schedule import Schedule
from udc_ray.tape import Tape, normal_like

CANDIDATES = tuple(range(10, 121, 10))
"""Times that are tried unless others are given (Yu et al. 2024)."""


class Selector(Params):
    """Base of all selectors.

    Attributes:
        before_run: whether the level is chosen once, before the run, and has to be known when images are purified.
        per_image: whether every image has a level of its own.
    """

    before_run: ClassVar[bool] = False
    per_image: ClassVar[bool] = False

    def file_hashes(self) -> dict[str, str]:
        """sha256 of the files that decide the choice, by names that are no paths."""
        return {}

    @property
    def calls(self) -> int:
        """Network calls that an image's own choice takes."""
        return 0


class Fixed(Selector):
    """The level that the purifier was given."""

    name: ClassVar[str] = "fixed"


class _Candidates(Selector):
    """A selector among candidate levels."""

    levels: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Candidate times; 10, 20, ..., 120 unless times or `sigmas` are given."""
    sigmas: tuple[float, ...] | None = Field(default=None, min_length=1)
    """Candidate noise levels in /255 units of the image, in place of times."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.levels is not None and self.sigmas is not None:
            raise ValueError("levels and sigmas both name the candidates: give one")
        given: Sequence[float] = self.levels or self.sigmas or ()
        if any(a >= b for a, b in zip(given, given[1:], strict=False)) or (given and given[0] < 0):
            raise ValueError("candidates must rise, from 0 or above")
        return self

    def times(self, schedule: Schedule) -> tuple[int, ...]:
        """Candidate times under a prior's schedule, rising.

        Raises:
            SpecError: a level outside the schedule, or two that have the same time.
        """
        if self.sigmas is None:
            times = self.levels or CANDIDATES
        else:
            times = tuple(schedule.nearest(sigma) for sigma in self.sigmas)
        if times[-1] >= schedule.num_train_timesteps or len(set(times)) < len(times):
            raise SpecError(
                f"the candidates {', '.join(map(str, times))} are no different times below "
                f"{schedule.num_train_timesteps}",
                "levels outside the schedule of the prior, or sigmas nearer to one another than its times",
                "give other levels or sigmas",
            )
        return times


def _read_attack(value: object) -> object:
    """An attack from its name, or from a mapping with its name and parameters."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    attack = ATTACKS.get(str(value["name"])).build("attack", {k: v for k, v in value.items() if k != "name"})
    if not isinstance(attack, GradientAttack):
        raise SpecError(
            f"the trial attack {attack.name!r} follows no gradients",
            "the trial images are attacked once, before the run, on the model without the purifier",
            "use pgd, fgsm or another gradient attack",
        )
    return attack


def _dump(built: Params) -> dict[str, Any]:
    return {"name": built.name, **built.model_dump(mode="json")}


TrialAttack = Annotated[GradientAttack, BeforeValidator(_read_attack), PlainSerializer(_dump)]
"""A gradient attack as a parameter: a name, or a mapping."""


class ANLS(_Candidates):
    """Adaptive noise level selection (Yu et al. 2024, UAD-RS).

    Trial images are attacked without the purifier and purified at every candidate level; the level is taken at which
    the model's own features of them are nearest to those of clean images. Once, before the run.
    """

    name: ClassVar[str] = "anls"
    before_run: ClassVar[bool] = True
    not_identity: ClassVar[frozenset[str]] = frozenset({"clean"})  # its content counts, see `file_hashes`

    metric: Metric = "kid"
    """Distance of features: ``fid`` as published, where there are twice as many images as features, or ``kid``."""
    trials: int = Field(default=64, ge=2)
    """Trial images; none of them is evaluated."""
    edge: int = Field(default=64, ge=16)
    """Edge of the square trial images in px."""
    attack: TrialAttack = Field(default_factory=PGD)
    """Attack on the trial images."""
    draws: int = Field(default=200, ge=1)
    """Resamples of the trial images for the intervals."""
    exposed: int = Field(default=4, ge=0)
    """Trial images that are also attacked through the purifier, at every candidate level."""
    layer: str | None = None
    """Module whose output is averaged, in place of the model's bottleneck."""
    clean: str | None = None
    """Folder of unattacked degraded images, or a .npz of their features; the shipped ones of the default model."""

    def file_hashes(self) -> dict[str, str]:
        return clean_hashes(self.clean)


class ScoreNorm(_Candidates):
    """A level for every image, by the norm of its score (Bai et al. 2025, SSNI): the further off, the more noise.

    The prior is asked how far the image lies from what it would make of it: the mean of its estimates of the clean
    image from a little noise, less the image. That is the expected score times the variance of the noise.
    """

    name: ClassVar[str] = "score-norm"
    per_image: ClassVar[bool] = True

    reference: float = Field(default=10.0, gt=0)
    """Noise level in /255 units at which the score is asked for."""
    draws: int = Field(default=2, ge=1)
    """Draws of noise that the score is averaged over; a network call each."""
    low: float = Field(default=3.0, ge=0)
    """Norm, in /255 units a pixel, at and below which the first candidate is taken."""
    high: float = Field(default=6.0, gt=0)
    """Norm at and above which the last candidate is taken; evenly spaced in between."""
    thresholds: tuple[float, ...] | None = None
    """Norms from which on the next candidate is taken, one fewer than candidates, in place of `low` and `high`."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high <= self.low:
            raise ValueError("high must be above low")
        count = len(self.levels or self.sigmas or CANDIDATES)
        if self.thresholds is not None and (
            len(self.thresholds) != count - 1 or list(self.thresholds) != sorted(self.thresholds)
        ):
            raise ValueError(f"{count} candidates need {count - 1} rising thresholds")
        return self

    @property
    def calls(self) -> int:
        """One a draw."""
        return self.draws

    def norms(self, x_BCHW: Tensor, denoiser: NoisePredictor, schedule: Schedule, tape: Tape) -> Tensor:
        """Root mean square over the pixels of the expected correction, B values in /255 units.

        Args:
            x_BCHW: images in [0, 1].
            denoiser: predicts the noise of images in [-1, 1].
            schedule: the denoiser's.
            tape: keys of the noise.
        """
        t = schedule.nearest(self.reference)
        abar, total = float(schedule.alpha_bar[t]), torch.zeros_like(x_BCHW)
        with torch.no_grad():
            for draw in range(self.draws):
                noise = normal_like(tape.generators(f"{self.identity()}/{draw}"), x_BCHW)
                # the drawn noise has the mean 0; without it far fewer draws are needed
                total += denoiser(add_noise(x_BCHW * 2 - 1, noise, abar), t) - noise
        return (total / self.draws).flatten(1).square().mean(dim=1).sqrt() * schedule.sigma(t)

    def choose(self, x_BCHW: Tensor, denoiser: NoisePredictor, schedule: Schedule, tape: Tape) -> Tensor:
        """Index of the candidate level for every image, B integers; see `norms`. No gradient passes."""
        count = len(self.times(schedule))
        edges = torch.tensor(self.thresholds or self._even(count), dtype=torch.float64, device=x_BCHW.device)
        norms_B = self.norms(x_BCHW.detach(), denoiser, schedule, tape).double()
        return torch.bucketize(norms_B, edges, right=True)

    def _even(self, count: int) -> list[float]:
        """Thresholds in the middle between `count` norms that are evenly spaced from `low` to `high`."""
        return [self.low + (self.high - self.low) * (n + 0.5) / (count - 1) for n in range(count - 1)]


SELECTORS: dict[str, type[Selector]] = {kind.name: kind for kind in (Fixed, ANLS, ScoreNorm)}
"""Selectors by name."""


def read_selector(value: object) -> object:
    """A selector from its name, or from a mapping with its name and parameters."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    name = str(value["name"])
    if name not in SELECTORS:
        raise SpecError(f"unknown selector {name!r}", change=did_you_mean(name, SELECTORS))
    return SELECTORS[name].build("selector", {k: v for k, v in value.items() if k != "name"})


def _dump_selector(selector: Selector) -> dict[str, Any]:
    values = selector.model_dump(mode="json", exclude=set(selector.not_identity))
    return {"name": selector.name, **values}


AnySelector = Annotated[Selector, BeforeValidator(read_selector), PlainSerializer(_dump_selector)]
"""A selector as a parameter of a purifier; what decides the level is dumped, and no path."""


class Leveled(Purifier):
    """A purifier that starts from a noise level, and may have it chosen.

    Before the run, or by whoever holds it, a level that is to be chosen is frozen by `with_level`.
    """

    t: int | None = Field(default=None, ge=0)
    """Time from which it starts; by other parameters unless given."""
    selector: AnySelector = Fixed()
    """How the level is chosen: ``fixed``, ``anls`` or ``score-norm``."""

    def with_level(self, t: int) -> Self:
        """The same purifier from another time, fixed; the same as if it had been given that time."""
        return self.model_copy(update={"t": t, "selector": Fixed()})

    def require_level(self) -> None:
        """Refuse to purify before a level is chosen.

        Raises:
            SpecError: the selector chooses before a run, and there was none.
        """
        if self.selector.before_run:
            raise SpecError(
                f"the noise level of {self.name!r} is not chosen yet",
                f"{self.selector.name} chooses it on trial images, before the images of a run",
                "evaluate it with udc-ray evaluate, which writes the level to spec.yaml under resolved; then give t",
            )

    def at_levels(
        self, x_BCHW: Tensor, denoiser: NoisePredictor, schedule: Schedule, tape: Tape, run: Callable[[Self], Tensor]
    ) -> Tensor:
        """Purify every image at the level that a selector per image gives it.

        The whole batch goes through once for every level that occurs in it, so that an image has the bits that the
        purifier fixed at its level gives it, whatever the levels of its companions. Gradients flow but for the choice.

        Args:
            x_BCHW: images in [0, 1].
            denoiser: predicts the noise of images in [-1, 1].
            schedule: the denoiser's.
            tape: keys of the noise by which levels are chosen.
            run: purifies the batch with a purifier of fixed level.
        """
        selector = self.selector
        if not isinstance(selector, ScoreNorm):
            raise SpecError(f"{selector.name} gives no image a level of its own", change="use selector: score-norm")
        chosen = [int(index) for index in selector.choose(x_BCHW, denoiser, schedule, tape)]
        times = selector.times(schedule)
        purified = {index: run(self.with_level(times[index])) for index in sorted(set(chosen))}
        return torch.stack([purified[index][b] for b, index in enumerate(chosen)])

    def weight_hashes(self) -> dict[str, str]:
        """sha256 of the purifier's own files, and of those that decide its level."""
        return super().weight_hashes() | {f"selector/{k}": v for k, v in self.selector.file_hashes().items()}
