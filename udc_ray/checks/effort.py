"""Was enough tried? Checks 16, 19, 20, 28."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from udc_ray.checks.base import CheckResult, Verdict, not_made, result, scale_of, threat_of
from udc_ray.checks.gradients import attacked_by_gradients
from udc_ray.checks.threats import beyond_balls
from udc_ray.metrics.statistics import CellRecords, difference, mean_of

MOVED = 0.05
"""Share of the whole rise of the best loss that the last ten iterations may still add (Pintor et al. 2022)."""
RESTARTS = 3
LOSSES = 2
OWN_LOSSES = {"cw": "hinge"}
"""Attacks that follow a loss of their own, whatever the objective."""


def converged(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 16: the loss has come to rest, and a longer run of the same attack harms no more."""
    iterative = [c for c in attacked_by_gradients(cells) if not _single_step(c)]
    resting = [_resting(cell) for cell in iterative if cell.per_image("loss_move")]
    longer = [_against_longer(cell, twins) for cell in iterative if (twins := _longer(cells, cell))]
    return [*resting, *longer] or [not_made("16-converged", "no iterations of an attack by gradients are on record")]


def _single_step(cell: CellRecords) -> bool:
    return all((r.grad_evals or 0) <= r.eot for r in cell.measured)


def _resting(cell: CellRecords) -> CheckResult:
    moved = mean_of(cell.per_image("loss_move"))
    message = f"the last ten iterations bring {moved:.0%} of the rise of the loss"
    if moved <= MOVED:
        return result("16-converged", cell, "pass", moved, MOVED, message)
    message += ": not converged, a longer attack may leave much less"
    return result("16-converged", cell, "warn", moved, MOVED, message)


def _longer(cells: Sequence[CellRecords], cell: CellRecords) -> list[CellRecords]:
    """Runs of the same attack on the same victim that spend at least twice the gradients on an image."""
    spent = mean_of(cell.per_image("grad_evals"))
    return [
        c
        for c in attacked_by_gradients(cells)
        if (c.head.attack, threat_of(c), c.head.objective) == (cell.head.attack, threat_of(cell), cell.head.objective)
        and (c.head.defense, c.head.grad_mode) == (cell.head.defense, cell.head.grad_mode)
        and mean_of(c.per_image("grad_evals")) >= 2 * spent
    ]


def _against_longer(cell: CellRecords, twins: Sequence[CellRecords]) -> CheckResult:
    check, scale = "16-converged-longer", scale_of(cell)
    gaps = [difference(cell.per_image(scale.attacked), c.per_image(scale.attacked)) for c in twins]
    gap, longest = max((mean_of(found), c.attack_label) for found, c in zip(gaps, twins, strict=True) if found)
    if gap < scale.monotone:
        return result(check, cell, "pass", gap, scale.monotone, f"{longest} harms no more, though longer")
    message = f"{longest} leaves {scale.show(gap)} less: this attack has not converged"
    return result(check, cell, "warn", gap, scale.monotone, message)


def restarts(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 19: several random starts, of which the worst is kept per image."""
    found = [_restarts(c) for c in attacked_by_gradients(cells) if c.head.eps is not None and not _single_step(c)]
    return found or [not_made("19-restarts", "no iterative attack by gradients inside a radius")]


def _restarts(cell: CellRecords) -> CheckResult:
    count = len({r.restart for r in cell.measured})
    message = f"{count} start{'s' if count > 1 else ''} per image, the worst is kept"
    if count >= RESTARTS:
        return result("19-restarts", cell, "pass", count, RESTARTS, message)
    return result("19-restarts", cell, "warn", count, RESTARTS, f"{message}; restarts: {RESTARTS} are the custom")


def losses(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 20: a victim meets attacks along more than one loss; said at its strongest attack."""
    victims: dict[tuple[str, str], list[CellRecords]] = defaultdict(list)
    for cell in attacked_by_gradients(cells):
        if cell.per_image(scale_of(cell).attacked):
            victims[cell.head.defense, cell.head.grad_mode].append(cell)
    return [_losses(met) for met in victims.values()] or [not_made("20-losses", "no attack by gradients")]


def _losses(met: Sequence[CellRecords]) -> CheckResult:
    names = sorted({OWN_LOSSES.get(c.head.attack, c.head.objective) for c in met})
    strongest = min(met, key=lambda c: mean_of(c.per_image(scale_of(c).attacked)))
    if len(names) >= LOSSES:
        return result("20-losses", strongest, "pass", len(names), LOSSES, f"attacked along {', '.join(names)}")
    message = f"attacked along {names[0]} only: another objective may harm more"
    return result("20-losses", strongest, "warn", len(names), LOSSES, message)


def beyond_lp(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 28: an attack that no Lp ball bounds is among them."""
    if all(c.kind == "control" for c in cells if c.measured):
        return [not_made("28-beyond-lp", "no attack")]
    found = sorted({c.attack_label for c in cells if c.measured and c.adaptive and beyond_balls(c.head.attack)})
    if found:
        return [_beyond_lp("pass", len(found), f"beyond Lp balls: {', '.join(found)}")]
    return [_beyond_lp("warn", 0, "every attack keeps to an Lp ball; low-frequency does not, and passes purifiers")]


def _beyond_lp(verdict: Verdict, count: int, message: str) -> CheckResult:
    return CheckResult(check="28-beyond-lp", cell=None, verdict=verdict, value=count, threshold=1, message=message)
