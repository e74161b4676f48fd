"""FreqPure: rounds of denoising whose low frequencies are held to those of the input (Pei et al., ICML 2025)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from udc_ray.purifiers.diffusion import Diffusion
from udc_ray.purifiers.frequency import FrequencyHook
from udc_ray.purifiers.plan import Hook, Round
from udc_ray.purifiers.schedule import Schedule


class FreqPure(Diffusion):
    """Rounds of noise and denoising with the frequency hook in every step.

    The paper takes 8 rounds at t = 50 with 5 steps for ImageNet, and compares with a lightly denoised input; here
    the input itself is compared with, and two rounds are the default. Frequencies are in cycles per image side.
    """

    name: ClassVar[str] = "freqpure"

    sigma: float = Field(default=22.0, gt=0)
    steps: int = Field(default=5, ge=1)
    """Network calls a round."""
    repeats: int = Field(default=2, ge=1)
    """Rounds, each from the result of the one before."""
    eta: float = Field(default=1.0, ge=0, le=1)
    """Noise that is added on the way back: 0 none, 1 as much as the ancestral chain."""
    amplitude_radius: float = 3.0
    """Up to this frequency amplitudes are those of the input; below 0 for none."""
    phase_radius: float = 2.0
    """Up to this frequency phases may differ by `delta` from those of the input."""
    delta: float = Field(default=0.2, ge=0, le=3.14159)
    """Largest difference of the phases in rad."""

    @property
    def calls(self) -> int:
        """One a step and round."""
        return self.steps * self.repeats * self.copies

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """The same round `repeats` times."""
        times = schedule.timesteps(self.first(schedule), self.steps)
        one = Round(timesteps=times, eta=self.eta, variance=self.variance, clip_x0=self.clip_x0)
        return (one,) * self.repeats

    def hook(self) -> Hook:
        """Amplitude and phase of low frequencies."""
        return FrequencyHook(amplitude_radius=self.amplitude_radius, phase_radius=self.phase_radius, delta=self.delta)
