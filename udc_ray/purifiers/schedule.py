"""Noise schedules: the signal share of every time, and the noise level it means in an image."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from udc_ray.errors import SpecError

Table = NDArray[np.float64]
Prediction = Literal["epsilon", "sample", "v_prediction"]
"""What a network predicts, in diffusers' words: the noise, the clean image x0, or sqrt(abar) eps - sqrt(1-abar) x0."""

LEVELS_PER_UNIT = 127.5
"""Grey levels of 255 that one unit of a [-1, 1] image spans."""


class Schedule(BaseModel):
    """The schedule that a prior was trained with, read from a diffusers scheduler config.

    Keys that only say how diffusers samples (spacing, clipping), and what the network predicts, are left out;
    those that would change the table are refused. A table of its own (``trained_betas``) takes the place of
    ``beta_start``, ``beta_end`` and ``beta_schedule``, as in diffusers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: int = Field(gt=0)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    trained_betas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_own_table(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("rescale_betas_zero_snr"):
            raise ValueError("rescale_betas_zero_snr is not supported")
        betas = values.get("trained_betas")
        if not isinstance(betas, (list, tuple)):
            return values
        if not betas or values.get("num_train_timesteps", len(betas)) != len(betas):
            raise ValueError(f"{len(betas)} trained_betas for {values.get('num_train_timesteps', 0)} times")
        ends = {"beta_start": betas[0], "beta_end": betas[-1], "beta_schedule": "linear"}  # so that equal is equal
        return {**values, **ends, "num_train_timesteps": len(betas)}

    def __str__(self) -> str:
        kind = self.beta_schedule if self.trained_betas is None else "trained_betas"
        return f"{kind} {self.beta_start:g} to {self.beta_end:g} over {self.num_train_timesteps} times"

    @property
    def alpha_bar(self) -> Table:
        """Share of the signal's power at t = 0 .. T - 1 (Ho et al. 2020, below eq. 3), float64."""
        return _alpha_bar(self)

    @property
    def sigmas(self) -> Table:
        """sqrt((1 - abar) / abar) in /255 units of the image, at t = 0 .. T - 1; increasing."""
        return np.sqrt((1 - self.alpha_bar) / self.alpha_bar) * LEVELS_PER_UNIT

    def sigma(self, t: int) -> float:
        """Noise level at time `t`, in /255 units of the image."""
        return float(self.sigmas[t])

    def nearest(self, sigma: float) -> int:
        """The time whose noise level is nearest to `sigma`, in /255 units.

        A level outside the schedule is refused: the nearest time would be another experiment.
        """
        low, high = self.sigma(0), self.sigma(self.num_train_timesteps - 1)
        if not low <= sigma <= high:
            raise SpecError(
                f"sigma {sigma:g} is outside the schedule of the prior",
                "sigma is in /255 units: 25, not 25/255",
                f"give a sigma from {low:.2f} to {high:.0f}",
            )
        return int(np.abs(self.sigmas - sigma).argmin())

    def timesteps(self, first: int, steps: int | None = None) -> tuple[int, ...]:
        """Evenly spaced descending times that start exactly at `first`.

        The step after the last of them goes to the clean image (abar = 1), which takes the place
        of t = -1 in the spacing.

        Args:
            first: time at which the noise is added and the network is first called.
            steps: number of network calls; every time down to 0 when None.
        """
        if not 0 <= first < self.num_train_timesteps:
            raise SpecError(f"t = {first} is outside the schedule of {self.num_train_timesteps} times")
        steps = first + 1 if steps is None else steps
        if not 1 <= steps <= first + 1:
            raise SpecError(
                f"{steps} steps do not fit between t = {first} and the clean image",
                f"sigma {self.sigma(first):.1f} is only {first + 1} times away from it",
                f"give 1 to {first + 1} steps, or a larger sigma",
            )
        return tuple((first + 1) * left // steps - 1 for left in range(steps, 0, -1))

    def for_images(self, input_range: tuple[float, float]) -> Schedule:
        """The signal shares that the network's times mean for images in [-1, 1].

        A network trained on images y = c + h x, with x in [-1, 1], c the centre and h half the width of its range,
        has seen y_t = sqrt(b) y + sqrt(1 - b) n, with b its signal share. Since

            y_t = sqrt(b) (c + h (x + r n)),  r = sqrt((1 - b) / b) / h,

        the same time and the same noise n belong to x_t = sqrt(a) (x + r n) with (1 - a) / a = r^2, hence
        a = h^2 b / (h^2 b + 1 - b): for [0, 1], noise of a network is twice as large in the image as for [-1, 1].

        Args:
            input_range: lowest and highest value of the images that the network was trained on.
        """
        half = (input_range[1] - input_range[0]) / 2
        if half == 1:
            return self
        signal = half**2 * self.alpha_bar
        share = signal / (signal + 1 - self.alpha_bar)
        betas = 1 - share / np.concatenate([[1.0], share[:-1]])
        return Schedule.model_validate({"trained_betas": betas.tolist()})

    def is_like(self, other: Schedule) -> bool:
        """Whether both have the same table, whatever they call it."""
        return self.num_train_timesteps == other.num_train_timesteps and bool(
            np.allclose(self.alpha_bar, other.alpha_bar, rtol=1e-9, atol=0)
        )

    def scheduler_config(self, prediction: Prediction = "epsilon") -> dict[str, Any]:
        """The same schedule as diffusers writes it, with what the network predicts."""
        return {"_class_name": "DDPMScheduler", **self.model_dump(exclude_none=True), "prediction_type": prediction}


@lru_cache(maxsize=16)
def _alpha_bar(schedule: Schedule) -> Table:
    table = np.cumprod(1 - _betas(schedule), dtype=np.float64)
    table.flags.writeable = False
    return table


def _betas(schedule: Schedule) -> Table:
    if schedule.trained_betas is not None:
        return np.array(schedule.trained_betas)
    first, last, count = schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps
    if schedule.beta_schedule == "linear":
        return np.linspace(first, last, count)
    if schedule.beta_schedule == "scaled_linear":
        roots: Table = np.linspace(math.sqrt(first), math.sqrt(last), count)
        return roots**2
    # Nichol and Dhariwal 2021, eq. 17
    share = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: Table = np.minimum(1 - share[1:] / share[:-1], 0.999)
    return betas
