"""What a check returns, and the small tools that checks share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from udc_ray.metrics.statistics import CellRecords, PerImage

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


def result(
    check: str, cell: CellRecords, verdict: Verdict, value: float | None, threshold: float | None, message: str
) -> CheckResult:
    """A result about one cell."""
    return CheckResult(
        check=check, cell=cell.head.cell, verdict=verdict, value=value, threshold=threshold, message=message
    )


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
