"""Does the run support a claim at all? Checks 22 and 29."""

from __future__ import annotations

from collections.abc import Sequence

from udc_ray.checks.base import CheckResult, result, same_attack, show
from udc_ray.metrics.statistics import CellRecords, difference, mean_of

BELOW_CLEAN_DB = 3.0
"""PGD has broken the undefended model when it ends this far below the clean quality ..."""
BELOW_NOISE_DB = 2.0
"""... and this far below random noise of equal size."""


def breakable(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 22: the undefended model is broken by PGD at the run's strongest threat.

    A defence in front of a model that nothing breaks has nothing to show.
    """
    pgd = [c for c in cells if c.head.attack == "pgd" and c.head.defense == "none" and c.per_image("drop_psnr")]
    if not pgd:
        message = "not made: needs PGD on the undefended model"
        return [CheckResult(check="22-breakable", cell=None, verdict="info", message=message)]
    cell = max(pgd, key=lambda c: mean_of(c.per_image("drop_psnr")))
    drop = mean_of(cell.per_image("drop_psnr"))
    margin = mean_of(difference(cell.per_image("psnr_noise"), cell.per_image("psnr_adv")))
    broken = drop >= BELOW_CLEAN_DB and margin >= BELOW_NOISE_DB
    message = f"PGD ends {show(drop)} below clean and {show(margin)} below random noise"
    if not broken:
        message += f"; {BELOW_CLEAN_DB:g} and {BELOW_NOISE_DB:g} dB are needed to call the attack working"
    return [result("22-breakable", cell, "pass" if broken else "fail", drop, BELOW_CLEAN_DB, message)]


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
    lost = difference(undefended.per_image("psnr_clean"), cell.per_image("psnr_clean"))
    recovered = difference(cell.per_image("psnr_adv"), undefended.per_image("psnr_adv"))
    if not lost or not recovered:
        return result("29-quality-cost", cell, "fail", None, 0.0, "no image in common with the undefended run")
    balance = mean_of(recovered) - mean_of(lost)
    message = (
        f"costs {show(mean_of(lost))} on clean images, recovers {show(mean_of(recovered))} under attack; "
        f"{mean_of(cell.per_image('nfe')):.0f} denoiser calls, {mean_of(cell.per_image('seconds')):.2f} s per image"
    )
    return result("29-quality-cost", cell, "pass" if balance > 0 else "warn", balance, 0.0, message)
