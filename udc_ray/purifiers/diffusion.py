"""Diffusion purification: noise drowns the perturbation, a prior puts the image back.

Nie et al. 2022 (DiffPure); with few DDIM steps or the ancestral chain of Ho et al. 2020.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from udc_ray.errors import DataError
from udc_ray.probe import Network
from udc_ray.purifiers import priors
from udc_ray.purifiers.base import SURROGATE, Trace
from udc_ray.purifiers.chain import Noise, Segment, guide_gradient, make_segments, run_chain
from udc_ray.purifiers.denoiser import Declared, Denoiser
from udc_ray.purifiers.gradients import exact
from udc_ray.purifiers.plan import Guide, Hook, Plan, Round
from udc_ray.purifiers.sampler import Variance, add_noise, root
from udc_ray.purifiers.schedule import Schedule
from udc_ray.purifiers.selectors import Leveled
from udc_ray.purifiers.tiled import Tiled
from udc_ray.tape import Tape


@dataclass(frozen=True)
class Guided:
    """A denoiser, and the network of a guide beside it."""

    denoiser: Denoiser
    auxiliary: nn.Module

    @property
    def network(self) -> nn.Module:
        """The denoiser's network."""
        return self.denoiser.network


class Diffusion(Leveled):
    """Noise and denoising with a prior; random, as the forward noise is. Subclasses say the plan."""

    random: ClassVar[bool] = True
    grad_modes: ClassVar[frozenset[str]] = frozenset({"bpda", "surrogate-k", "forward-noise", "full"})

    sigma: float = Field(gt=0)
    """Noise level in /255 units of the image; the schedule's nearest time is used."""
    variance: Variance = "fixed_small"
    """Variance of the noise that steps with eta > 0 add."""
    clip_x0: bool = True
    """Clip the estimate of the clean image to its range in every step."""
    weights: str | None = None
    """A prior: folder or URI of a diffusers checkpoint, or package.module:factory; the shipped one unless given."""
    prior: Declared = Declared()
    """What the folder of the prior leaves unsaid (input_range, prediction, schedule, training_domain)."""
    tile: int | None = Field(default=None, ge=1)
    """Edge of the tiles in px that the prior sees, one at a time; whole images unless given."""
    overlap: int = Field(default=32, ge=0)
    """Px that neighbouring tiles share at least."""

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        if self.t is not None and "sigma" in self.model_fields_set:
            raise ValueError("sigma and t both name the noise level: give one")
        return self

    def first(self, schedule: Schedule) -> int:
        """Time at which the noise is added and the network is first called."""
        return schedule.nearest(self.sigma) if self.t is None else self.t

    @property
    def folder(self) -> Path:
        """Where the prior lies on this machine; one behind a URI is fetched."""
        return priors.folder_of(self.weights)

    @property
    def noise_key(self) -> str:
        """Tiles and what is declared of the prior change no draw."""
        plain = self.model_copy(update={"copies": 1, "combine": "mean", "tile": None, "overlap": 0})
        return plain.model_copy(update={"prior": Declared()}).identity()

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """Times and kernels under a prior's schedule."""
        raise NotImplementedError("a diffusion purifier implements rounds")

    def guide(self, prepared: Denoiser | Guided) -> Guide | None:
        """What pulls the chain; nothing unless a subclass says so."""
        return None

    def hook(self) -> Hook | None:
        """What changes every estimate of the clean image; nothing unless a subclass says so."""
        return None

    def plan(self, prepared: Denoiser | Guided) -> Plan:
        """All that one purification does with what `prepare` returned."""
        rounds = self.rounds(_denoiser(prepared).schedule)
        return Plan(rounds=rounds, guide=self.guide(prepared), hook=self.hook())

    def prepare(self, device: str) -> Denoiser | Guided:
        """Load the prior on a device."""
        prior = priors.load(self.weights, device, self.prior)
        self.rounds(prior.schedule)
        return prior if self.tile is None else Tiled(prior, self.tile, self.overlap)

    def weight_files(self) -> dict[str, str]:
        """Files of the prior, after a look whether it is one and its schedule admits these settings."""
        self.rounds(priors.describe(self.weights, self.prior).image_schedule)
        return priors.files(self.weights)

    def weight_hashes(self) -> dict[str, str]:
        """sha256 of `weight_files`, and of all that is known of a user's own network."""
        return super().weight_hashes() | priors.hashes(self.weights)

    def networks(self, prepared: Denoiser | Guided) -> list[Network]:
        """The denoiser at the time of the first step, and the gradient of a guide."""
        prior = _denoiser(prepared)
        first = self.first(prior.schedule)
        abar, guide = float(prior.schedule.alpha_bar[first]), self.guide(prepared)
        found: list[Network] = [lambda x_BCHW: prior(x_BCHW, first)]
        if guide is not None:
            found.append(lambda x_BCHW: guide_gradient(guide, x_BCHW, x_BCHW.flip(-1), abar, x_BCHW))
        return found

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Denoiser | Guided) -> tuple[Tensor, Trace]:
        """Purify B x C x H x W in [0, 1] with the prior that `prepare` returned."""
        if self.selector.per_image:
            return self._at_own_levels(x_BCHW, tape, prepared)
        started = time.perf_counter()
        plan = self.plan(prepared)
        purified = run_chain(self.segments(x_BCHW, tape, prepared), x_BCHW)
        if x_BCHW.is_cuda:
            torch.cuda.synchronize(x_BCHW.device)  # else the launch would be timed, not the work
        seconds = time.perf_counter() - started
        return purified, Trace(nfe=plan.nfe, auxiliary=plan.auxiliary, seconds=seconds)

    def differentiable(self, x_BCHW: Tensor, tape: Tape, prepared: Any, mode: str) -> Tensor:
        """Purify with the gradient of a mode.

        ``full`` is exact. ``full-no-guide`` takes a guide's pull for a constant, and is incomplete.
        ``surrogate-k`` runs and differentiates a plan of at most k steps a round. ``forward-noise`` adds the
        noise of the first round and leaves out the way back.
        """
        if mode == "bpda" or not self.offers(mode):
            return super().differentiable(x_BCHW, tape, prepared, mode)
        if self.selector.per_image:
            prior = _denoiser(prepared)
            return self.at_levels(
                x_BCHW, prior, prior.schedule, tape, lambda one: one.differentiable(x_BCHW, tape, prepared, mode)
            )
        if mode == "forward-noise":
            return self._noised(x_BCHW, tape, prepared)
        steps = int(mode.removeprefix(SURROGATE)) if mode.startswith(SURROGATE) else None
        complete = mode != "full-no-guide"
        return exact(self.segments(x_BCHW, tape, prepared, steps=steps, guide_gradient=complete), x_BCHW)

    def segments(
        self,
        x_BCHW: Tensor,
        tape: Tape,
        prepared: Denoiser | Guided,
        *,
        steps: int | None = None,
        guide_gradient: bool = True,
    ) -> list[Segment]:
        """The steps of one purification of images like `x_BCHW`; at most `steps` a round where that is given."""
        self.require_level()
        prior = _denoiser(prepared)
        if x_BCHW.shape[1] != prior.channels:
            raise DataError(
                f"the prior of {self.name!r} takes {prior.channels} channels, the images have {x_BCHW.shape[1]}",
                "raw planes where RGB is expected, or the reverse",
                "give weights: a prior of such images, or leave the defence out",
            )
        plan = self.plan(prepared)
        plan = plan if steps is None else plan.respaced(prior.schedule, steps)
        noise = Noise(tape=tape, name=self.noise_key)
        return make_segments(plan, prior, prior.schedule, noise, guide_gradient=guide_gradient)

    def _at_own_levels(self, x_BCHW: Tensor, tape: Tape, prepared: Denoiser | Guided) -> tuple[Tensor, Trace]:
        prior, traces, started = _denoiser(prepared), [], time.perf_counter()

        def run(fixed: Self) -> Tensor:
            purified, trace = fixed.purify(x_BCHW, tape, prepared)
            traces.append(trace)
            return purified

        purified = self.at_levels(x_BCHW, prior, prior.schedule, tape, run)
        return purified, Trace(
            nfe=max(trace.nfe for trace in traces) + self.selector.calls,
            auxiliary=max(trace.auxiliary for trace in traces),
            seconds=time.perf_counter() - started,
        )

    def _noised(self, x_BCHW: Tensor, tape: Tape, prepared: Denoiser | Guided) -> Tensor:
        self.require_level()
        schedule = _denoiser(prepared).schedule
        abar = float(schedule.alpha_bar[self.rounds(schedule)[0].timesteps[0]])
        noise = Noise(tape=tape, name=self.noise_key)("0/0/start", x_BCHW)
        return (add_noise(x_BCHW * 2 - 1, noise, abar) / root(abar) + 1) / 2


def _denoiser(prepared: Denoiser | Guided) -> Denoiser:
    return prepared.denoiser if isinstance(prepared, Guided) else prepared


class DDIM(Diffusion):
    """A few evenly spaced steps (Song et al. 2021)."""

    name: ClassVar[str] = "ddim"

    steps: int = Field(default=5, ge=1)
    """Network calls."""
    sigma: float = Field(default=25.0, gt=0)
    eta: float = Field(default=0.0, ge=0, le=1)
    """Noise that is added on the way back: 0 none, 1 as much as the ancestral chain."""

    @property
    def calls(self) -> int:
        """One a step."""
        return self.steps * self.copies

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """`steps` times from the first."""
        times = schedule.timesteps(self.first(schedule), self.steps)
        return (Round(timesteps=times, eta=self.eta, variance=self.variance, clip_x0=self.clip_x0),)


class OneStep(DDIM):
    """The network's estimate of the clean image from one call."""

    name: ClassVar[str] = "one-step"

    steps: int = Field(default=1, ge=1, le=1)


class DDPM(Diffusion):
    """The ancestral chain (Ho et al. 2020, algorithm 2), from part of the way."""

    name: ClassVar[str] = "ddpm"

    sigma: float = Field(default=15.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """Network calls; one for every time from the first down to 0 unless given."""

    @property
    def calls(self) -> int:
        """One a step; a level of sigma takes a few times when all are walked."""
        return (self.steps or (self.t or round(3 * self.sigma))) * self.copies

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """Every time from the first down to 0, or `steps` of them, with posterior noise."""
        times = schedule.timesteps(self.first(schedule), self.steps)
        return (Round(timesteps=times, eta=1.0, variance=self.variance, clip_x0=self.clip_x0),)
