"""Does the run support a claim at all? Checks 22 and 29."""

from __future__ import annotations

from collections.abc import Sequence

from udc_ray.checks.base import CheckResult, result, same_attack, scale_of
from udc_ray.metrics.statistics import CellRecords, difference, mean_of


def breakable(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 22: the undefended model is broken by PGD at the run's strongest threat.

    A defence in front of a model that nothing breaks has nothing to show.
    """
    pgd = [c for c in cells if c.head.attack == "pgd" and c.head.defense == "none" and scale_of(c).drop(c)]
    if not pgd:
        message = "not made: needs PGD on the undefended model"
        return [CheckResult(check="22-breakable", cell=None, verdict="info", message=message)]
    scale = scale_of(pgd[0])
    cell = max(pgd, key=lambda c: mean_of(scale.drop(c)))
    drop = mean_of(scale.drop(cell))
    margin = mean_of(difference(cell.per_image(scale.noise), cell.per_image(scale.attacked)))
    broken = drop >= scale.below_clean and margin >= scale.below_noise
    message = f"PGD ends {scale.show(drop)} below clean and {scale.show(margin)} below random noise"
    if not broken:
        needed = " and ".join(f"{scale.factor * value:g}" for value in (scale.below_clean, scale.below_noise))
        message += f"; {needed} {scale.unit} are needed to call the attack working"
    return [result("22-breakable", cell, "pass" if broken else "fail", drop, scale.below_clean, message)]


def quality_cost(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 29: what a defence costs on clean images against what it recovers, with NFE and time."""
    defended = [c for c in cells if c.head.defense != "none" and c.measured]
    return [_quality_cost(c, same_attack(cells, c, "none", "full")) for c in defended]


def _quality_cost(cell: CellRecords, undefended: CellRecords | None) -> CheckResult:
    lacking = [name for name in ("nfe", "seconds") if any(getattr(r, name) is None for r in cell.measured)]
    if lacking:
        return result("29-quality-cost", cell, "fail", None, 0.0, f"{' and '.join(lacking)} not recorded")
    if undefended is None or not undefended.measured:
        return result("29-quality-cost", cell, "fail", None, 0.0, "no undefended run of this attack to compare with")
    scale = scale_of(cell)
    lost = difference(undefended.per_image(scale.clean), cell.per_image(scale.clean))
    recovered = difference(cell.per_image(scale.attacked), undefended.per_image(scale.attacked))
    if not lost or not recovered:
        return result("29-quality-cost", cell, "fail", None, 0.0, "no image in common with the undefended run")
    balance = mean_of(recovered) - mean_of(lost)
    message = (
        f"costs {scale.show(mean_of(lost))} on clean images, recovers {scale.show(mean_of(recovered))} under attack; "
        f"{mean_of(cell.per_image('nfe')):.0f} denoiser calls, {mean_of(cell.per_image('seconds')):.2f} s per image"
    )
    return result("29-quality-cost", cell, "pass" if balance > 0 else "warn", balance, 0.0, message)
