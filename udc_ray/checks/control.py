"""Do the checks notice a defence that is known to be broken? Check 23."""

from __future__ import annotations

from collections.abc import Sequence

from udc_ray.checks.base import CheckResult, not_made
from udc_ray.metrics.statistics import CellRecords

CONTROL = "broken-control"
"""The defence that is known to be broken; see `udc_ray.purifiers.broken`."""
JUDGES = range(5, 15)
"""Numbers of the checks of which at least one must flag it."""


def known_broken(cells: Sequence[CellRecords], results: Sequence[CheckResult]) -> list[CheckResult]:
    """Check 23: where the known-broken defence is in the run, one of checks 5 to 14 fails at its cells.

    Args:
        cells: all cells.
        results: what the other checks found.
    """
    check = "23-known-broken"
    entry = f"defenses: {{name: {CONTROL}, grad_mode: [full, bpda]}}"
    mine = [c for c in cells if c.head.defense.split()[0] == CONTROL and c.head.grad_mode == "full"]
    if not any(c.kind == "gradient" or not c.measured for c in mine):
        return [not_made(check, f"no attack by gradients meets a defence that is known to be broken; add {entry}")]
    ids = {c.head.cell for c in mine}
    flags = sorted({r.check for r in results if r.cell in ids and r.verdict == "fail" and int(r.check[:2]) in JUDGES})
    if flags:
        message = f"flagged, as it must be, by {', '.join(flags)}"
        return [CheckResult(check=check, cell=None, verdict="pass", value=len(flags), threshold=1, message=message)]
    message = f"{CONTROL} hides its gradients and none of checks 5 to 14 noticed: do not rely on their verdicts"
    return [CheckResult(check=check, cell=None, verdict="fail", value=0, threshold=1, message=message)]
