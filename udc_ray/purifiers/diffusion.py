"""Diffusion purification: noise drowns the perturbation, a prior puts the image back.

Nie et al. 2022 (DiffPure); with few DDIM steps or the ancestral chain of Ho et al. 2020.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from udc_ray.errors import DataError, WeightsError
from udc_ray.location import local_folder
from udc_ray.probe import Network
from udc_ray.purifiers import denoiser
from udc_ray.purifiers.base import Purifier, Trace
from udc_ray.purifiers.denoiser import Denoiser
from udc_ray.purifiers.sampler import ReverseProcess, Variance, purify_chain
from udc_ray.purifiers.schedule import Schedule
from udc_ray.tape import Tape


class _Diffusion(Purifier):
    """One round of noise and denoising with a prior; random, as the forward noise is."""

    random: ClassVar[bool] = True

    sigma: float = Field(gt=0)
    """Noise level in /255 units of the image; the schedule's nearest time is used."""
    variance: Variance = "fixed_small"
    """Variance of the noise that steps with eta > 0 add."""
    clip_x0: bool = True
    """Clip the estimate of the clean image to its range in every step."""
    weights: str | None = None
    """Folder or URI of a prior in diffusers' layout with a prior.json beside it; the shipped prior unless given."""

    @property
    def folder(self) -> Path:
        """Where the prior lies on this machine; one behind a URI is fetched."""
        if self.weights is None:
            return denoiser.DEFAULT_PRIOR
        return local_folder(self.weights, (*denoiser.PRIOR_FILES, denoiser.SCHEDULER), WeightsError)

    def process(self, schedule: Schedule) -> ReverseProcess:
        """Times and kind of the reverse process under a prior's schedule."""
        raise NotImplementedError("a diffusion purifier implements process")

    def prepare(self, device: str) -> Denoiser:
        """Load the prior on a device."""
        prior = denoiser.load_denoiser(self.folder, device)
        self.process(prior.schedule)
        return prior

    def weight_files(self) -> dict[str, str]:
        """Files of the prior, after a look whether it is one and its schedule admits these settings."""
        self.process(denoiser.read_sidecar(self.folder).schedule)
        return {f"prior/{name}": str(self.folder / name) for name in denoiser.PRIOR_FILES}

    def networks(self, prepared: Denoiser) -> list[Network]:
        """The denoiser, at the time of the first step."""
        first = prepared.schedule.nearest(self.sigma)
        return [torch.no_grad()(lambda x_BCHW: prepared(x_BCHW, first))]

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Denoiser) -> tuple[Tensor, Trace]:
        """Purify B x C x H x W in [0, 1] with the prior that `prepare` returned."""
        if x_BCHW.shape[1] != prepared.channels:
            raise DataError(
                f"the prior of {self.name!r} takes {prepared.channels} channels, the images have {x_BCHW.shape[1]}",
                "raw planes where RGB is expected, or the reverse",
                "give weights: a prior of such images, or leave the defence out",
            )
        started = time.perf_counter()
        process, generators = self.process(prepared.schedule), tape.generators(self.identity())
        purified = purify_chain(prepared, x_BCHW, prepared.schedule, process, generators)
        if x_BCHW.is_cuda:
            torch.cuda.synchronize(x_BCHW.device)  # else the launch would be timed, not the work
        return purified.x_BCHW, Trace(nfe=purified.nfe, seconds=time.perf_counter() - started)


class DDIM(_Diffusion):
    """A few evenly spaced steps (Song et al. 2021)."""

    name: ClassVar[str] = "ddim"

    steps: int = Field(default=3, ge=1)
    """Network calls."""
    sigma: float = Field(default=25.0, gt=0)
    eta: float = Field(default=0.0, ge=0, le=1)
    """Noise that is added on the way back: 0 none, 1 as much as the ancestral chain."""

    @property
    def calls(self) -> int:
        """One a step."""
        return self.steps

    def process(self, schedule: Schedule) -> ReverseProcess:
        """`steps` times from the one nearest to `sigma`."""
        times = schedule.timesteps(schedule.nearest(self.sigma), self.steps)
        return ReverseProcess(timesteps=times, eta=self.eta, variance=self.variance, clip_x0=self.clip_x0)


class DDPM(_Diffusion):
    """The ancestral chain (Ho et al. 2020, algorithm 2), from part of the way."""

    name: ClassVar[str] = "ddpm"

    sigma: float = Field(default=15.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """Network calls; one for every time from the first down to 0 unless given."""

    @property
    def calls(self) -> int:
        """One a step; a level of sigma takes a few times when all are walked."""
        return self.steps or round(3 * self.sigma)

    def process(self, schedule: Schedule) -> ReverseProcess:
        """Every time from the one nearest to `sigma`, or `steps` of them, with posterior noise."""
        times = schedule.timesteps(schedule.nearest(self.sigma), self.steps)
        return ReverseProcess(timesteps=times, eta=1.0, variance=self.variance, clip_x0=self.clip_x0)
