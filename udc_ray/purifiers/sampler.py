"""The reverse process as pure functions: no scheduler object, no hidden state, no own randomness.

Images are in the network's range [-1, 1] here, except at the two ends of `purify_chain`.
Coefficients are float64 scalars, tensors float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from udc_ray.purifiers.schedule import Schedule
from udc_ray.tape import normal_like

Variance = Literal["fixed_small", "fixed_large"]

NoisePredictor = Callable[[Tensor, int], Tensor]
"""eps_hat of (x_t, t), both B x C x H x W."""


@dataclass(frozen=True, kw_only=True)
class ReverseProcess:
    """How to get from the noisy image back to a clean one.

    Attributes:
        timesteps: times of the network calls, descending; the last step goes to abar = 1.
        eta: 0 is deterministic (DDIM), 1 is the ancestral posterior (DDPM).
        variance: of the noise that is added in a step; see `ddim_step`.
        clip_x0: whether the estimate of the clean image is clipped to [-1, 1] in every step.
    """

    timesteps: tuple[int, ...]
    eta: float = 0.0
    variance: Variance = "fixed_small"
    clip_x0: bool = True

    def __post_init__(self) -> None:
        downward = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not self.timesteps or self.timesteps[-1] < 0 or not downward:
            raise ValueError(f"times must descend to 0 or above, and there must be one: {self.timesteps}")


@dataclass(frozen=True, kw_only=True)
class Purified:
    """Images B x C x H x W in [0, 1], and the network calls that each of them took."""

    x_BCHW: Tensor
    nfe: int


def add_noise(x_BCHW: Tensor, noise_BCHW: Tensor, abar_t: float) -> Tensor:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4)."""
    return math.sqrt(abar_t) * x_BCHW + math.sqrt(1 - abar_t) * noise_BCHW


def x0_estimate(x_t: Tensor, eps_hat: Tensor, abar_t: float) -> Tensor:
    """The clean image that `eps_hat` implies (Song et al. 2021, DDIM, eq. 9)."""
    return (x_t - math.sqrt(1 - abar_t) * eps_hat) / math.sqrt(abar_t)


def eps_of_x0(x_t: Tensor, x0: Tensor, abar_t: float) -> Tensor:
    """The noise that the clean image `x0` implies; undoes `x0_estimate`."""
    return (x_t - math.sqrt(abar_t) * x0) / math.sqrt(1 - abar_t)


def clip_eps(x_t: Tensor, eps_hat: Tensor, abar_t: float) -> Tensor:
    """The noise that belongs to the clean estimate clipped to [-1, 1].

    Estimate and noise thus stay consistent with x_t, for which the ancestral step with clipping
    is the one of Ho et al. (their eq. 7 with the clipped x_0).
    """
    return eps_of_x0(x_t, x0_estimate(x_t, eps_hat, abar_t).clamp(-1, 1), abar_t)


def ddim_step(
    x_t: Tensor,
    eps_hat: Tensor,
    abar_t: float,
    abar_prev: float,
    eta: float = 0.0,
    noise: Tensor | None = None,
    variance: Variance = "fixed_small",
) -> Tensor:
    """One reverse step (Song et al. 2021, DDIM, eqs. 12 and 16); the same shape as `x_t`.

    Args:
        x_t: noisy image.
        eps_hat: predicted noise.
        abar_t: signal share now.
        abar_prev: signal share after the step; no noise is added in the step to 1.
        eta: share of the posterior's standard deviation.
        noise: standard normal; needed where eta > 0 and abar_prev < 1.
        variance: ``fixed_small`` adds the posterior's variance, ``fixed_large`` 1 - abar_t / abar_prev
            about the same mean (Ho et al. 2020, section 3.2; DDIM's sigma-hat).
    """
    beta = 1 - abar_t / abar_prev
    posterior = eta * math.sqrt((1 - abar_prev) / (1 - abar_t) * beta)
    direction = math.sqrt(max(0.0, 1 - abar_prev - posterior**2))
    mean = math.sqrt(abar_prev) * x0_estimate(x_t, eps_hat, abar_t) + direction * eps_hat
    if not draws_noise(eta, abar_prev):
        return mean
    if noise is None:
        raise ValueError("a step with eta > 0 needs noise")
    return mean + (posterior if variance == "fixed_small" else eta * math.sqrt(beta)) * noise


def draws_noise(eta: float, abar_prev: float) -> bool:
    """Whether a step adds noise."""
    return eta > 0 and abar_prev < 1


def purify_chain(
    denoiser: NoisePredictor,
    x_BCHW: Tensor,
    schedule: Schedule,
    process: ReverseProcess,
    generators: list[np.random.Generator],
) -> Purified:
    """Add noise at exactly the first time, then denoise step by step (Nie et al. 2022, DiffPure, in discrete time).

    Each image's generator gives the forward noise first, then the noise of the steps in order.

    Args:
        denoiser: predicts the noise of images in [-1, 1].
        x_BCHW: images in [0, 1].
        schedule: the denoiser's schedule.
        process: times and kind of the reverse process.
        generators: one an image.
    """
    abars = [float(schedule.alpha_bar[t]) for t in process.timesteps]
    x_t = add_noise(x_BCHW * 2 - 1, normal_like(generators, x_BCHW), abars[0])
    for t, abar_t, abar_prev in zip(process.timesteps, abars, [*abars[1:], 1.0], strict=True):
        eps_hat = denoiser(x_t, t)
        if process.clip_x0:
            eps_hat = clip_eps(x_t, eps_hat, abar_t)
        noise = normal_like(generators, x_t) if draws_noise(process.eta, abar_prev) else None
        x_t = ddim_step(x_t, eps_hat, abar_t, abar_prev, process.eta, noise, process.variance)
    return Purified(x_BCHW=((x_t + 1) / 2).clamp(0, 1), nfe=len(process.timesteps))
