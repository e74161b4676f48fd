"""Checks on request, which need the attack at several radii: 15 and 18."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from udc_ray.checks.base import CheckResult, result, scale_of
from udc_ray.metrics.statistics import CellRecords, PerImage, mean_of

WIDE = 16.0
"""Ratio of the largest to the smallest radius from which on the floor must be reached."""
UNBOUNDED_LINF = 1.0
"""The radius that holds the whole box."""
UNBOUNDED_RATE = 0.95


def budget(cells: Sequence[CellRecords], requested: bool) -> list[CheckResult]:
    """Check 15: damage never falls as the radius grows, and at large radii nothing is left."""
    if not requested:
        return [_info("15-budget", "not requested")]
    families: dict[tuple[str, ...], list[CellRecords]] = defaultdict(list)
    for cell in cells:
        head = cell.head
        if head.eps is not None and cell.adaptive and cell.kind != "control" and _left(cell):
            families[(head.attack, head.norm, head.defense, head.grad_mode, head.objective)].append(cell)
    ladders = [_strongest_by_radius(family) for family in families.values()]
    return [_ladder(ladder) for ladder in ladders if len(ladder) > 1] or [
        _info("15-budget", "needs one attack at several radii")
    ]


def _strongest_by_radius(family: list[CellRecords]) -> list[CellRecords]:
    ladder: dict[float, CellRecords] = {}
    for cell in sorted(family, key=lambda c: (c.head.eps or 0.0, -mean_of(_left(c)))):
        ladder[cell.head.eps or 0.0] = cell
    return list(ladder.values())


def _left(cell: CellRecords) -> PerImage:
    """Attacked quality per image."""
    return cell.per_image(scale_of(cell).attacked)


def _ladder(ladder: list[CellRecords]) -> CheckResult:
    scale, left = scale_of(ladder[0]), [mean_of(_left(c)) for c in ladder]
    rise, step = max((left[k] - left[k - 1], k) for k in range(1, len(left)))
    last = ladder[-1]
    if rise > scale.monotone:
        message = f"a larger radius harms less, by {scale.show(rise)}: the attack or its gradients are broken"
        return result("15-budget", ladder[step], "fail", rise, scale.monotone, message)
    if (last.head.eps or 0.0) >= WIDE * (ladder[0].head.eps or 1.0) and left[-1] > scale.floor:
        message = f"{scale.show(left[-1])} are left at the largest radius, where nothing should be"
        return result("15-budget", last, "fail", left[-1], scale.floor, message)
    message = f"damage grows with the radius, down to {scale.show(left[-1])}"
    return result("15-budget", last, "pass", rise, scale.monotone, message)


def unbounded(cells: Sequence[CellRecords], requested: bool) -> list[CheckResult]:
    """Check 18: with the whole box to move in, an attack that follows gradients always succeeds."""
    if not requested:
        return [_info("18-unbounded", "not requested")]
    free = [
        c
        for c in cells
        if c.kind == "gradient" and c.adaptive and c.head.norm == "linf" and c.head.eps == UNBOUNDED_LINF
    ]
    results = [_unbounded(c, c.per_image("success")) for c in free]
    return results or [_info("18-unbounded", "needs a gradient attack with linf eps 1")]


def _unbounded(cell: CellRecords, success: PerImage) -> CheckResult:
    if not success:
        return result("18-unbounded", cell, "fail", None, UNBOUNDED_RATE, "success was not recorded")
    rate = sum(v >= 0.5 for v in success.values()) / len(success)
    message = f"success on {rate:.0%} of the images without a bound"
    return result("18-unbounded", cell, "pass" if rate >= UNBOUNDED_RATE else "fail", rate, UNBOUNDED_RATE, message)


def _info(check: str, message: str) -> CheckResult:
    return CheckResult(check=check, cell=None, verdict="info", message=message)
