"""What a check returns, and the small tools that checks share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from udc_ray.metrics.statistics import CellRecords, PerImage, difference
from udc_ray.tasks import task_of

Verdict = Literal["pass", "warn", "fail", "info"]
Threat = tuple[str, float | None]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One line of ``checks.json``.

    Attributes:
        check: number and name, such as ``14-adaptive``.
        cell: the cell whose number it concerns; None for the whole run.
        verdict: ``fail`` blocks the claim, ``warn`` stands beside it, ``info`` explains.
        value, threshold: what was measured and where the line is; None where neither is a number.
        message: one sentence for people.
    """

    check: str
    cell: str | None
    verdict: Verdict
    value: float | None = None
    threshold: float | None = None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that JSON cannot hold becomes null."""
        plain = asdict(self)
        for key in ("value", "threshold"):
            if plain[key] is not None and not math.isfinite(plain[key]):
                plain[key] = None
        return plain

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CheckResult:
        """Read back what `to_json` wrote; keys of later versions are left out."""
        return cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Scale:
    """In what the quality of a cell is measured, and how much of it counts.

    Attributes:
        clean, noise, attacked: columns of the records.
        black_box: by so much may a query attack beat the gradient attacks on the mean over images.
        transfer: by so much may transferred images beat the adaptive attack on the mean over images.
        monotone: by so much may the mean rise when the radius grows.
        floor: an attack with a wide radius ends below it.
        below_clean, below_noise: PGD has broken a model when it ends so far below both.
        factor, unit: for messages.
    """

    clean: str
    noise: str
    attacked: str
    black_box: float
    transfer: float
    monotone: float
    floor: float
    below_clean: float
    below_noise: float
    factor: float
    unit: str

    def show(self, value: float) -> str:
        """A value in a message."""
        return f"{self.factor * value:.2f} {self.unit}"

    def drop(self, cell: CellRecords) -> PerImage:
        """Clean minus attacked, per image."""
        return difference(cell.per_image(self.clean), cell.per_image(self.attacked))


DECIBELS = Scale(
    clean="psnr_clean",
    noise="psnr_noise",
    attacked="psnr_adv",
    black_box=0.2,
    transfer=0.1,
    monotone=0.1,
    floor=12.0,  # about the PSNR of a flat grey image
    below_clean=3.0,
    below_noise=2.0,
    factor=1.0,
    unit="dB",
)
ACCURACY = Scale(
    clean="score_clean",
    noise="score_noise",
    attacked="score_adv",
    black_box=0.02,
    transfer=0.02,
    monotone=0.02,
    floor=0.1,
    below_clean=0.5,
    below_noise=0.25,
    factor=100.0,
    unit="points",
)


def scale_of(cell: CellRecords) -> Scale:
    """What a cell's quality is measured in, by its objective."""
    return ACCURACY if task_of(cell.head.objective).quality == "score_adv" else DECIBELS


def result(
    check: str, cell: CellRecords, verdict: Verdict, value: float | None, threshold: float | None, message: str
) -> CheckResult:
    """A result about one cell."""
    return CheckResult(
        check=check, cell=cell.head.cell, verdict=verdict, value=value, threshold=threshold, message=message
    )


def not_made(check: str, reason: str) -> CheckResult:
    """A check of the run that could not be made, and why."""
    return CheckResult(check=check, cell=None, verdict="info", message=f"not made: {reason}")


def threat_of(cell: CellRecords) -> Threat:
    """Norm and radius of a cell."""
    return (cell.head.norm, cell.head.eps)


def same_attack(cells: Sequence[CellRecords], cell: CellRecords, defense: str, grad_mode: str) -> CellRecords | None:
    """The one cell with the same attack entry on another victim; None if there is none or several."""
    found = [
        c
        for c in cells
        if c.attack_label == cell.attack_label
        and (c.head.attack, threat_of(c), c.head.objective) == (cell.head.attack, threat_of(cell), cell.head.objective)
        and (c.head.defense, c.head.grad_mode) == (defense, grad_mode)
    ]
    return found[0] if len(found) == 1 else None


def follows_fresh_noise(cell: CellRecords) -> bool:
    """Whether an attack is one in earnest: on frozen noise it is a control, weak by design against fresh noise."""
    return "frozen_noise=true" not in cell.attack_label


def lowest(values: Iterable[PerImage]) -> PerImage:
    """Per image the lowest value of several cells."""
    worst: PerImage = {}
    for per_image in values:
        for image, value in per_image.items():
            worst[image] = min(value, worst.get(image, value))
    return worst


def show(value: float) -> str:
    """A number of dB in a message."""
    return f"{value:.2f} dB"
