"""In what the numbers of a report are shown: dB for restored images, per cent for classes that are found."""

from __future__ import annotations

from dataclasses import dataclass

from udc_ray.report.table import ROBUST, ROBUST_SCORE
from udc_ray.tasks import task_of


@dataclass(frozen=True, kw_only=True)
class Units:
    """The metrics of one task, and the words and digits that they are shown with.

    Attributes:
        legend: what stands in a cell.
        clean, noise, attacked: metrics of a cell.
        beside: metrics that are shown beside clean and attacked, or None.
        drop, drop_heading: clean minus attacked.
        robust: the worst over attacks.
        factor, digits, unit: a value is multiplied, rounded and followed by these.
        of_inputs: whether the untouched inputs have a quality of their own.
        single_images: whether the value of one image says something.
    """

    legend: str
    clean: str
    noise: str
    attacked: str
    beside: tuple[str, str] | None
    drop: str
    drop_heading: str
    robust: str
    factor: float
    digits: int
    unit: str
    of_inputs: bool
    single_images: bool

    def show(self, value: float | None) -> str:
        """A value without its unit."""
        return "none" if value is None else f"{self.factor * value:.{self.digits}f}"

    def interval(self, low: float | None, high: float | None) -> str:
        """An interval without its unit."""
        return "no interval" if low is None or high is None else f"[{self.show(low)},{self.show(high)}]"


DECIBELS = Units(
    legend="In a cell: PSNR in dB and SSIM; below them their 95 % intervals over images.",
    clean="psnr_clean",
    noise="psnr_noise",
    attacked="psnr_adv",
    beside=("ssim_clean", "ssim_adv"),
    drop="drop_psnr",
    drop_heading="drop dB [95 %]",
    robust=ROBUST,
    factor=1.0,
    digits=2,
    unit=" dB",
    of_inputs=True,
    single_images=True,
)
ACCURACY = Units(
    legend="In a cell: accuracy, the share of images whose class is found, in %; below it its 95 % interval.\n"
    "harmed n/m: of the m images whose class was found before the attack, n are missed after it.",
    clean="score_clean",
    noise="score_noise",
    attacked="score_adv",
    beside=None,
    drop="drop_score",
    drop_heading="drop, points [95 %]",
    robust=ROBUST_SCORE,
    factor=100.0,
    digits=1,
    unit=" % accuracy",
    of_inputs=False,
    single_images=False,
)


def units_of(objective: str) -> Units:
    """The units of a run, by its objective."""
    return ACCURACY if task_of(objective).name == "classification" else DECIBELS
