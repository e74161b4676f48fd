"""Several rounds of growing noise, and a combination of several runs (Lee and Kim, ICCV 2023)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from udc_ray.purifiers.base import Combine
from udc_ray.purifiers.diffusion import Diffusion
from udc_ray.purifiers.plan import Round
from udc_ray.purifiers.schedule import Schedule


class Gradual(Diffusion):
    """Rounds of noise and denoising, each from the result of the one before, at levels that grow.

    The paper purifies CIFAR-10 with four rounds at t = 30, two at 50 and two at 125, and takes the majority of ten
    runs. For images the vote is the pixel-wise median of the restored images, and the levels are lower: at
    sigma 43 (t = 100) most fine texture is lost.
    """

    name: ClassVar[str] = "gradual"

    sigma: float = Field(default=25.0, gt=0)
    """Level of the last round, in /255 units; the shares below are of it."""
    shares: tuple[float, ...] = Field(default=(0.5, 0.5, 1.0), min_length=1)
    """Level of every round as a share of `sigma`, not decreasing."""
    steps: int = Field(default=3, ge=1)
    """Network calls a round."""
    eta: float = Field(default=1.0, ge=0, le=1)
    """Noise that is added on the way back: 0 none, 1 as much as the ancestral chain."""
    copies: int = Field(default=5, ge=1)
    combine: Combine = "median"

    @field_validator("shares")
    @classmethod
    def _growing(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if shares[0] <= 0 or shares[-1] != 1 or any(a > b for a, b in zip(shares, shares[1:], strict=False)):
            raise ValueError("shares must be above 0, not decrease, and end in 1")
        return shares

    @property
    def calls(self) -> int:
        """One a step, round and copy."""
        return self.steps * len(self.shares) * self.copies

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """One round a share."""
        level = schedule.sigma(self.first(schedule))
        firsts = [schedule.nearest(share * level) for share in self.shares[:-1]]
        return tuple(
            Round(
                timesteps=schedule.timesteps(first, self.steps),
                eta=self.eta,
                variance=self.variance,
                clip_x0=self.clip_x0,
            )
            for first in (*firsts, self.first(schedule))
        )
