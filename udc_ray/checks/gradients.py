"""Do gradients tell the truth about the victim? Checks 5, 6, 7, 8, and 25 and 30, which explain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from udc_ray.checks.base import CheckResult, Verdict, not_made, result
from udc_ray.checks.readings import Measured, Reading
from udc_ray.metrics.statistics import CellRecords

DEAD_IMAGES = 0.01
"""Share of images whose gradient vanishes from which on an attack by gradients is none."""
ZERO_PIXELS = 0.2
"""Share of values without gradient that is said beside a number."""
GUIDE_GAP = 0.01
"""Relative gap between directional derivatives with and without the guide's path that still counts as complete."""
PARITY_DB = 0.1
"""Difference in dB between the score as deployed and in float32 that is said beside a number."""
EXACT = "full"
INCOMPLETE = "full-no-guide"

Judge = Callable[[CellRecords, Reading], CheckResult | None]


def attacked_by_gradients(cells: Sequence[CellRecords]) -> list[CellRecords]:
    """The cells whose attack followed the gradients of the victim that is scored."""
    return [c for c in cells if c.kind == "gradient" and c.adaptive and c.measured]


def by_reading(check: str, cells: Sequence[CellRecords], measured: Measured, judge: Judge) -> list[CheckResult]:
    """Judge every cell of a gradient attack by what was measured of its victim."""
    wanted = attacked_by_gradients(cells)
    if not wanted:
        return [not_made(check, "no attack by gradients")]
    if not measured.gradients:
        return [not_made(check, "the gradients of this run were not probed")]
    found = [(cell, measured.of(cell)) for cell in wanted]
    judged = [judge(cell, reading) for cell, reading in found if reading is not None]
    return [one for one in judged if one is not None] or [not_made(check, "nothing that it applies to")]


def available(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 5: the gradient is there, finite, and equals central differences in float64."""
    return by_reading("05-gradient", cells, measured, _available)


def _available(cell: CellRecords, reading: Reading) -> CheckResult:
    check = "05-gradient"
    if reading.cut:
        return result(check, cell, "fail", 0.0, 1.0, "no gradient reaches the image: the graph is cut on its way")
    if reading.failure:
        return result(check, cell, "info", None, None, f"not made: {reading.failure}")
    if reading.recomputed is False:
        return result(check, cell, "info", None, None, "no gradient to compare: see check 7")
    if reading.finite is False:
        return result(check, cell, "fail", None, None, "the gradient holds values that are no numbers")
    if cell.head.grad_mode != EXACT:
        return result(check, cell, "info", reading.cosine, None, _approximate(cell, reading))
    if reading.no_double:
        return result(check, cell, "info", None, None, f"finite; not compared with differences: {reading.no_double}")
    return _compared(check, cell, reading)


def _approximate(cell: CellRecords, reading: Reading) -> str:
    message = f"approximate by design ({cell.head.grad_mode})"
    return message if reading.cosine is None else f"{message}: cosine {reading.cosine:.2f} with the exact gradient"


def _compared(check: str, cell: CellRecords, reading: Reading) -> CheckResult:
    decided = reading.directions - reading.kinks
    if decided == 0:
        message = f"finite; all {reading.directions} directions meet kinks (clipping, rounding), which decide nothing"
        return result(check, cell, "info", None, 1.0, message)
    share = reading.agreeing / decided
    of = f"{reading.agreeing} of {decided} directions" + (
        f" ({reading.kinks} more meet kinks)" if reading.kinks else ""
    )
    if share < 1:
        gap = "" if reading.gap is None else f", off by {reading.gap:.0%} along the others"
        message = f"equals central differences along {of} only{gap}: part of it is missing or wrong"
        return result(check, cell, "fail", share, 1.0, message)
    return result(check, cell, "pass", share, 1.0, f"equals central differences along {of}")


def vanishing(cells: Sequence[CellRecords], measured: Measured, random_defences: Collection[str]) -> list[CheckResult]:
    """Check 6: gradients that are exactly zero lead nowhere; of the attack itself where it kept count."""
    wanted = attacked_by_gradients(cells)
    if not wanted:
        return [not_made("06-zero-gradient", "no attack by gradients")]
    judged = [_vanishing(c, measured.of(c), c.head.defense.split()[0] in random_defences) for c in wanted]
    return [one for one in judged if one is not None] or [not_made("06-zero-gradient", "no gradient was looked at")]


def _vanishing(cell: CellRecords, reading: Reading | None, random: bool) -> CheckResult | None:
    check, shares = "06-zero-gradient", cell.per_image("grad_zero_share")
    dead = {r.image_id for r in cell.measured if _is_dead(r.grad_dead_steps, r.grad_evals, r.eot if random else 1)}
    if any(r.grad_dead_steps is not None for r in cell.measured):
        images, pixels = len(dead) / len(cell.images), sum(shares.values()) / max(1, len(shares))
        where = f"on {len(dead)} of {len(cell.images)} images"
    elif reading is not None and reading.zero_share is not None:
        images, pixels = float(reading.zero_share == 1), reading.zero_share
        where = f"on the image that was probed ({reading.image_id})"
    else:
        return None
    if images > DEAD_IMAGES:
        message = f"the gradient is exactly zero {where}: rounding, clipping or a constant hides it"
        return result(check, cell, "fail", images, DEAD_IMAGES, message)
    verdict: Verdict = "warn" if pixels > ZERO_PIXELS else "pass"
    return result(check, cell, verdict, pixels, ZERO_PIXELS, f"{pixels:.1%} of the values have no gradient")


def _is_dead(dead_steps: int | None, grad_evals: int | None, eot: int) -> bool:
    """Whether at least half of an image's gradients vanished; one at the start may be a stationary point."""
    return dead_steps is not None and dead_steps > 0 and 2 * dead_steps * eot >= (grad_evals or 0)


def recomputed(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 7: what backward does again has the bits of what forward stored, in the probe and in every unit."""
    drifted = [c for c in cells if any("RecomputeError" in (r.error or "") for r in c.records)]
    message = "a step of the purification gave other bits when it was done again, so its gradient is another chain's"
    failed = [result("07-recompute", c, "fail", None, None, message) for c in drifted]
    judged = by_reading("07-recompute", [c for c in cells if c not in drifted], measured, _recomputed)
    return [*failed, *judged] if not failed or any(one.cell for one in judged) else failed


def _recomputed(cell: CellRecords, reading: Reading) -> CheckResult | None:
    if reading.recomputed is None:
        return None
    if not reading.recomputed:
        message = f"a step gave other bits when it was done again: {reading.failure}"
        return result("07-recompute", cell, "fail", None, None, message)
    return result("07-recompute", cell, "pass", None, None, "every step that was done again had the same bits")


def guide_complete(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 8: a guide's share of the gradient is not left out."""
    return by_reading("08-guide", cells, measured, _guide_complete)


def _guide_complete(cell: CellRecords, reading: Reading) -> CheckResult | None:
    gap, mode = reading.guide_gap, cell.head.grad_mode
    if gap is None or mode not in (EXACT, INCOMPLETE):
        return None
    if mode == INCOMPLETE and gap > GUIDE_GAP:
        message = f"the path through the guide is left out, {gap:.1%} of the gradient: attack it in mode {EXACT}"
        return result("08-guide", cell, "fail", gap, GUIDE_GAP, message)
    if mode == EXACT and gap == 0 and reading.agreeing + reading.kinks < reading.directions:
        message = f"the guide's path is cut: the gradient of mode {EXACT} is that of {INCOMPLETE}, and wrong"
        return result("08-guide", cell, "fail", gap, GUIDE_GAP, message)
    return result("08-guide", cell, "pass", gap, GUIDE_GAP, f"the guide's path makes {gap:.1%} of the gradient")


def parity(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 25: is what was scored what is deployed, in type and compilation?"""
    return by_reading("25-parity", cells, measured, _parity)


def _parity(cell: CellRecords, reading: Reading) -> CheckResult | None:
    if not reading.dtype:
        return None
    how = f"{reading.dtype} {'compiled' if reading.compiled else 'eager'}"
    known = "" if reading.parity is None else f"; a copy in float64 scores within {max(reading.parity, 0.01):.2f} dB"
    other = reading.compiled or reading.dtype != "float32"
    verdict: Verdict = "warn" if other and (reading.parity or 0.0) > PARITY_DB else "info"
    return result("25-parity", cell, verdict, reading.parity, PARITY_DB, f"attacked and scored in {how}{known}")


def inner_gradients(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 30: does the victim itself optimise or differentiate when it is only evaluated?"""
    return by_reading("30-inner-gradients", cells, measured, _inner_gradients)


def _inner_gradients(cell: CellRecords, reading: Reading) -> CheckResult | None:
    count = reading.inner_gradients
    if count is None:
        return None
    if count == 0:
        return result("30-inner-gradients", cell, "info", 0, None, "no gradients are taken inside the victim")
    missing = cell.head.grad_mode == INCOMPLETE
    mode = "that gradient is taken for a constant" if missing else f"in mode {EXACT} second-order gradients are on"
    message = f"the victim takes {count} gradients of its own per evaluation; {mode}"
    return result("30-inner-gradients", cell, "info", count, None, message)
