"""DiffPure: the reverse-time SDE of a prior, solved by Euler-Maruyama (Nie et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from udc_ray.purifiers.diffusion import Diffusion
from udc_ray.purifiers.plan import Round
from udc_ray.purifiers.schedule import Schedule


class DiffPure(Diffusion):
    """Euler-Maruyama on the VP-SDE that the prior's schedule discretises, from time t* to 0.

    The paper's t* of 0.1 (CIFAR-10) is t = 100 of 1000 with a step for each; a step of the paper's 1e-3 is one
    time here. The estimate of the clean image is not clipped, as in the SDE.
    """

    name: ClassVar[str] = "diffpure"

    sigma: float = Field(default=25.0, gt=0)
    clip_x0: bool = False
    steps: int | None = Field(default=None, ge=1)
    """Network calls; one for every time from the first down to 0 unless given."""

    @property
    def calls(self) -> int:
        """One a step."""
        return (self.steps or (self.t or round(3 * self.sigma))) * self.copies

    def rounds(self, schedule: Schedule) -> tuple[Round, ...]:
        """Every time from the first, or `steps` of them."""
        times = schedule.timesteps(self.first(schedule), self.steps)
        return (Round(timesteps=times, kernel="euler", clip_x0=self.clip_x0),)
