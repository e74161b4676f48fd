"""The kernels of reverse processes as pure functions: no scheduler object, no hidden state, no randomness.

Images are in the network's range [-1, 1]. A level is a share of signal power abar: a float64 number for the
whole batch, or one value an image (B x 1 x 1 x 1); tensors are float32 otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

Variance = Literal["fixed_small", "fixed_large"]
Level = float | Tensor

NoisePredictor = Callable[[Tensor, int], Tensor]
"""eps_hat of (x_t, t), both B x C x H x W."""


def root(level: Level) -> Level:
    """Square root of a level."""
    return level.sqrt() if isinstance(level, Tensor) else math.sqrt(level)


def add_noise(x_BCHW: Tensor, noise_BCHW: Tensor, abar_t: Level) -> Tensor:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4)."""
    return root(abar_t) * x_BCHW + root(1 - abar_t) * noise_BCHW


def x0_estimate(x_t: Tensor, eps_hat: Tensor, abar_t: Level) -> Tensor:
    """The clean image that `eps_hat` implies (Song et al. 2021, DDIM, eq. 9)."""
    return (x_t - root(1 - abar_t) * eps_hat) / root(abar_t)


def eps_of_x0(x_t: Tensor, x0: Tensor, abar_t: Level) -> Tensor:
    """The noise that the clean image `x0` implies; undoes `x0_estimate`."""
    return (x_t - root(abar_t) * x0) / root(1 - abar_t)


def clip_eps(x_t: Tensor, eps_hat: Tensor, abar_t: Level) -> Tensor:
    """The noise that belongs to the clean estimate clipped to [-1, 1].

    Estimate and noise thus stay consistent with x_t, for which the ancestral step with clipping
    is the one of Ho et al. (their eq. 7 with the clipped x_0).
    """
    return eps_of_x0(x_t, x0_estimate(x_t, eps_hat, abar_t).clamp(-1, 1), abar_t)


def posterior_variance(abar_t: Level, abar_prev: Level) -> Level:
    """Variance of q(x_prev | x_t, x_0) (Ho et al. 2020, eq. 7, for any pair of times)."""
    return (1 - abar_prev) / (1 - abar_t) * (1 - abar_t / abar_prev)


def ddim_step(
    x_t: Tensor,
    eps_hat: Tensor,
    abar_t: Level,
    abar_prev: Level,
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
    posterior = eta * root(posterior_variance(abar_t, abar_prev))
    direction = root(_not_negative(1 - abar_prev - posterior**2))
    mean = root(abar_prev) * x0_estimate(x_t, eps_hat, abar_t) + direction * eps_hat
    if not draws_noise(eta, abar_prev):
        return mean
    if noise is None:
        raise ValueError("a step with eta > 0 needs noise")
    return mean + (posterior if variance == "fixed_small" else eta * root(1 - abar_t / abar_prev)) * noise


def euler_step(x_t: Tensor, eps_hat: Tensor, abar_t: Level, abar_prev: Level, noise: Tensor | None = None) -> Tensor:
    """One Euler-Maruyama step of the reverse VP-SDE (Song et al. 2021, "Score-based", eqs. 6 and 11).

    The step takes beta dt = -ln(abar_t / abar_prev), which is exact for a beta that is constant in between;
    the score is -eps / sqrt(1 - abar_t), the drift -beta x / 2. No noise is added in the step to abar = 1.

    Args:
        x_t: noisy image.
        eps_hat: predicted noise.
        abar_t: signal share now.
        abar_prev: signal share after the step.
        noise: standard normal; needed where abar_prev < 1.
    """
    beta = _log(abar_prev) - _log(abar_t)
    mean = x_t + beta * (0.5 * x_t - eps_hat / root(1 - abar_t))
    if not draws_noise(1.0, abar_prev):
        return mean
    if noise is None:
        raise ValueError("a step of the SDE needs noise")
    return mean + root(beta) * noise


def draws_noise(eta: float, abar_prev: Level) -> bool:
    """Whether a step adds noise."""
    return eta > 0 and (isinstance(abar_prev, Tensor) or abar_prev < 1)


def _not_negative(level: Level) -> Level:
    return level.clamp(min=0) if isinstance(level, Tensor) else max(0.0, level)


def _log(level: Level) -> Level:
    return level.log() if isinstance(level, Tensor) else math.log(level)
