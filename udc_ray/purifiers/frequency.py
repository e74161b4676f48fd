"""FreqPure's hook (Pei et al., ICML 2025): low frequencies of the estimate are held to those of a reference.

The idea is that an attack harms amplitude and phase the more the higher the frequency, so the low ones of the
attacked image can be trusted: their amplitude is taken over, and their phase may differ by a little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from udc_ray.errors import SpecError

_TINY = 1e-20
"""Power below which a coefficient counts as zero, and its phase as 0."""


@dataclass(frozen=True, kw_only=True)
class FrequencyHook:
    """Changes the estimate of the clean image in every step; see `udc_ray.purifiers.plan.Hook`.

    With X and R the Fourier coefficients of estimate and reference, per channel, and d the phase of X conj(R) in
    (-pi, pi]: up to `amplitude_radius` the amplitude of X becomes |R|; up to `phase_radius` its phase becomes that
    of R plus d clipped to [-delta, delta]. The phase difference is taken round the circle, so that the phases -3.1
    and 3.1 are 0.08 apart; the paper's text does not say what it does there.

    The defaults are the paper's for 32 x 32 images as they are remembered, not looked up: knobs, not constants.

    Attributes:
        amplitude_radius: distance from the zero frequency in cycles per image side; below 0 for no amplitude at all.
        phase_radius: the same for the phase.
        delta: largest difference of the phases, in rad.
    """

    amplitude_radius: float = 3.0
    phase_radius: float = 2.0
    delta: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= math.pi or math.isnan(self.amplitude_radius) or math.isnan(self.phase_radius):
            raise SpecError(
                f"delta {self.delta:g} and radii {self.amplitude_radius:g}, {self.phase_radius:g} cannot be used",
                "delta is an angle in rad",
                "give a delta from 0 to 3.14159, and radii in cycles per image side",
            )

    def __call__(self, x0_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Estimate in [-1, 1] and reference in [0, 1] to a new estimate; differentiable in both.

        Gradients are finite everywhere: a coefficient that is zero has the phase 0 (as `numpy.angle` says), which is
        constant there.
        """
        size = x0_BCHW.shape[-2:]
        estimate = torch.fft.rfft2(x0_BCHW)
        reference = torch.fft.rfft2(reference_BCHW * 2 - 1)
        radius = _radius(size, x0_BCHW)
        low_amplitude, low_phase = radius <= self.amplitude_radius, radius <= self.phase_radius
        amplitude = torch.where(low_amplitude, _amplitude(reference), _amplitude(estimate))
        theirs, ours = _phasor(reference), _phasor(estimate)
        changed = amplitude * torch.where(low_phase, theirs * self._clipped(ours * theirs.conj()), ours)
        mixed: Tensor = torch.fft.irfft2(torch.where(low_amplitude | low_phase, changed, estimate), s=size)
        return mixed

    def _clipped(self, difference: Tensor) -> Tensor:
        """exp(i d) with its phase d clipped."""
        angle = torch.atan2(difference.imag, difference.real).clamp(-self.delta, self.delta)
        clipped: Tensor = torch.complex(angle.cos(), angle.sin())
        return clipped


def _radius(size: torch.Size, like: Tensor) -> Tensor:
    height, width = size
    rows = torch.fft.fftfreq(height, 1 / height, device=like.device, dtype=like.dtype)
    columns = torch.fft.rfftfreq(width, 1 / width, device=like.device, dtype=like.dtype)
    radius: Tensor = (rows[:, None].square() + columns[None, :].square()).sqrt()
    return radius


def _power(coefficients: Tensor) -> Tensor:
    power: Tensor = coefficients.real.square() + coefficients.imag.square()
    return power


def _nonzero(coefficients: Tensor) -> Tensor:
    """The coefficients, with 1 in place of zeros: what is computed from them has a gradient, which is 0 there."""
    return torch.where(_power(coefficients) > _TINY, coefficients, torch.ones_like(coefficients))


def _amplitude(coefficients: Tensor) -> Tensor:
    root = _power(_nonzero(coefficients)).sqrt()
    return torch.where(_power(coefficients) > _TINY, root, torch.zeros_like(root))


def _phasor(coefficients: Tensor) -> Tensor:
    """exp(i phase)."""
    safe = _nonzero(coefficients)
    return safe / _power(safe).sqrt()
