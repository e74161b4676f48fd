"""Is the attack as strong as a weaker one? Checks 12, 13, 14."""

from __future__ import annotations

from collections.abc import Sequence

from udc_ray.checks.base import CheckResult, lowest, result, same_attack, scale_of, show, threat_of
from udc_ray.metrics.statistics import CellRecords, difference, mean_of

CONTROLS = ("noise", "clean-repeat")
"""Attacks that are no attacks, but what skill is measured against."""
SINGLE_STEP_DB = 0.1
"""By so much may FGSM beat PGD on an image (rounding, the random start)."""


def iterative(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 12: per image, PGD harms at least as much as FGSM on the same victim and threat."""
    results = []
    for cell in (c for c in cells if c.head.attack == "pgd" and c.adaptive and c.head.objective == "mse"):
        single = [c for c in cells if c.head.attack == "fgsm" and _same_victim(c, cell) and _same_goal(c, cell)]
        if single and cell.measured:
            results.append(_iterative(cell, single))
    return results


def _iterative(cell: CellRecords, single: Sequence[CellRecords]) -> CheckResult:
    noise = cell.standard_error("psnr_adv")
    gap = difference(cell.per_image("psnr_adv"), lowest(c.per_image("psnr_adv") for c in single))
    # The mean over purification samples is itself uncertain: two standard errors of room.
    excess = {i: value - 2 * noise[i] for i, value in gap.items()}
    if not excess:
        return result("12-iterative", cell, "warn", None, SINGLE_STEP_DB, "no image in common with FGSM")
    worst = max(excess, key=lambda i: excess[i])
    if excess[worst] > SINGLE_STEP_DB:
        message = f"one step (FGSM) harms {worst} more than PGD, by {show(gap[worst])}: gradients mislead"
        return result("12-iterative", cell, "fail", excess[worst], SINGLE_STEP_DB, message)
    return result("12-iterative", cell, "pass", excess[worst], SINGLE_STEP_DB, "PGD is at least FGSM on every image")


def white_box(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 13: gradients harm at least as much as queries at equal norm and eps, same defence.

    The per-image worst of the gradient attacks is compared with each query attack; the result is
    attached to the strongest gradient cell, whose number would be the wrong one.
    """
    results = []
    queries = [c for c in cells if c.kind == "query" and c.adaptive and c.head.eps is not None]
    for query in queries:
        rivals = [c for c in cells if c.kind == "gradient" and c.adaptive and c.measured and _same_target(c, query)]
        if rivals and query.measured:
            results.append(_white_box(query, rivals))
    return results


def _white_box(query: CellRecords, rivals: Sequence[CellRecords]) -> CheckResult:
    check, name, scale = "13-white-box", query.head.attack, scale_of(query)
    allowed = scale.black_box
    gap = difference(lowest(c.per_image(scale.attacked) for c in rivals), query.per_image(scale.attacked))
    strongest = min(rivals, key=lambda c: mean_of(c.per_image(scale.attacked)))
    if not gap:
        return result(check, strongest, "warn", None, allowed, f"no image in common with {name}")
    mean, ahead = mean_of(gap), sum(value > 0 for value in gap.values())
    by = f"by {scale.show(mean)} on the mean"
    message = f"{name} is ahead of the gradient attacks on {ahead} of {len(gap)} images, {by}"
    return result(check, strongest, "fail" if mean >= allowed else "pass", mean, allowed, message)


def adaptive(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 14: adaptive attack >= transferred images (the blind run) >= random noise."""
    results = []
    for cell in (c for c in cells if c.measured):
        if cell.adaptive and cell.head.defense != "none":
            blind = same_attack(cells, cell, cell.head.defense, "blind")
            results += [_against_transfer(cell, blind)] if blind is not None and blind.measured else []
        if cell.kind != "control" and cell.head.attack not in CONTROLS:
            results.append(_against_noise(cell))
    return results


def _against_transfer(cell: CellRecords, blind: CellRecords) -> CheckResult:
    check, scale = "14-adaptive-transfer", scale_of(cell)
    gap = difference(cell.per_image(scale.attacked), blind.per_image(scale.attacked))
    if not gap:
        return result(check, cell, "warn", None, scale.transfer, "no image in common with the blind run")
    mean = mean_of(gap)
    if mean > scale.transfer:
        more = f"by {scale.show(mean)}: the adaptive attack is weak"
        message = f"images made against the undefended model harm more, {more}"
        return result(check, cell, "fail", mean, scale.transfer, message)
    return result(check, cell, "pass", mean, scale.transfer, "at least as strong as transferred images")


def _against_noise(cell: CellRecords) -> CheckResult:
    scale = scale_of(cell)
    gap = difference(cell.per_image(scale.attacked), cell.per_image(scale.noise))
    if not gap:
        return result("14-adaptive-noise", cell, "fail", None, 0.0, "no noise control to compare with")
    mean = mean_of(gap)
    if mean < 0:
        return result(
            "14-adaptive-noise", cell, "pass", mean, 0.0, f"{scale.show(-mean)} below random noise of equal size"
        )
    # A query attack may simply not have had the queries, and slow waves look smaller than they are; gradients in a
    # ball have no such excuse.
    excuses = {"query": ": too few queries?"} | ({"gradient": ": a tight bound?"} if _beyond_lp(cell) else {})
    why = excuses.get(cell.kind)
    message = f"random noise of equal size harms as much or more, by {scale.show(mean)}{why or ''}"
    return result("14-adaptive-noise", cell, "fail" if why is None else "warn", mean, 0.0, message)


def _beyond_lp(cell: CellRecords) -> bool:
    return cell.head.attack == "low-frequency"


def _same_victim(one: CellRecords, other: CellRecords) -> bool:
    return (one.head.defense, one.head.grad_mode) == (other.head.defense, other.head.grad_mode)


def _same_target(one: CellRecords, other: CellRecords) -> bool:
    return threat_of(one) == threat_of(other) and one.head.defense == other.head.defense


def _same_goal(one: CellRecords, other: CellRecords) -> bool:
    return threat_of(one) == threat_of(other) and one.head.objective == other.head.objective
