"""Is the randomness of the victim handled fairly? Checks 9, 11, 24."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from udc_ray.checks.base import CheckResult, Verdict, not_made, result
from udc_ray.checks.gradients import EXACT, by_reading
from udc_ray.checks.readings import Measured, Reading
from udc_ray.metrics.statistics import CellRecords

STEADY = 0.9
"""Cosine of two independent gradients from which on the mean over draws is one direction."""
FROZEN_SHARE = 0.5
"""Of the damage with fresh noise that an attack on frozen noise must reach. In the short attack of the probe honest
victims reached 0.9 to 8 on twelve images; an attack that breaks on frozen noise reaches about 0."""


def enough_draws(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 9: two independent gradients, each averaged over the attack's draws, point the same way."""
    return by_reading("09-eot", cells, measured, _enough_draws)


def _enough_draws(cell: CellRecords, reading: Reading) -> CheckResult | None:
    own = cell.head.eot
    cosines = {n: cosine for n, cosine in reading.eot if n in (own, 2 * own, 4 * own)}
    if own not in cosines:
        return None
    shown = ", ".join(f"{cosine:.2f} at {n}" for n, cosine in cosines.items())
    enough = next((n for n, cosine in cosines.items() if cosine >= STEADY), None)
    message = f"cosine of two independent gradients by draws: {shown}"
    if enough == own:
        return result("09-eot", cell, "pass", own, own, message)
    advice = f"eot {enough} would do" if enough is not None else f"more than eot {max(cosines)} is needed"
    return result("09-eot", cell, "warn", enough, own, f"{message}; {advice} for {STEADY:g}")


def frozen_noise(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 11: an attack that may freeze the noise is at least as strong, and evaluation draws noise of its own."""
    return by_reading("11-frozen-noise", cells, measured, _frozen_noise)


def _frozen_noise(cell: CellRecords, reading: Reading) -> CheckResult | None:
    check = "11-frozen-noise"
    if reading.own_noise is False:
        message = "the noise that numbers are measured with is the noise that the attack saw: a leak"
        return result(check, cell, "fail", None, None, message)
    if reading.repeatable is False:
        message = "noise cannot be frozen: the same keys give another output, or another one with a gradient"
        return result(check, cell, "fail", None, None, message)
    if reading.frozen is None or reading.free is None:
        return None
    if reading.free <= 0:
        message = "not made: the short attack of the probe does no damage with fresh noise"
        return result(check, cell, "info", None, FROZEN_SHARE, message)
    ratio = reading.frozen / reading.free
    if ratio < FROZEN_SHARE:
        message = f"with its noise frozen the attack does {ratio:.2f} of the damage that it does with fresh noise: "
        verdict: Verdict = "fail" if cell.head.grad_mode == EXACT else "warn"  # other modes are weak by design
        return result(check, cell, verdict, ratio, FROZEN_SHARE, f"{message}a leak, or a broken attack")
    message = f"on frozen noise the attack does {ratio:.2f} times the damage that it does with fresh noise"
    return result(check, cell, "pass", ratio, FROZEN_SHARE, message)


def enough_evaluations(
    cells: Sequence[CellRecords], resubmissions: int | None, random_defences: Collection[str]
) -> list[CheckResult]:
    """Check 24: a victim that draws noise is evaluated at least as often as an attacker may submit an image."""
    random = [c for c in cells if c.measured and c.head.defense.split()[0] in random_defences]
    if not random:
        return [not_made("24-n-evaluation", "no victim that draws noise")]
    if resubmissions is None:
        largest = max(c.draws for c in random)
        message = (
            "how often an attacker may submit an image was not declared (run: {resubmissions: M}); "
            f"up to N = {largest} evaluations"
        )
        return [not_made("24-n-evaluation", message)]
    return [_enough_evaluations(cell, resubmissions) for cell in random]


def _enough_evaluations(cell: CellRecords, resubmissions: int) -> CheckResult:
    drawn = cell.draws
    message = f"{drawn} evaluation{'s' if drawn > 1 else ''} an image for {resubmissions} submissions of an attacker"
    if drawn >= resubmissions:
        return result("24-n-evaluation", cell, "pass", drawn, resubmissions, message)
    message += f": the worst of {resubmissions} is not measured; give the defence samples: {resubmissions}"
    return result("24-n-evaluation", cell, "fail", drawn, resubmissions, message)
