"""Does the attacker meet what chooses the noise level? Check 26."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from udc_ray.checks.base import CheckResult, not_made, result, scale_of
from udc_ray.checks.readings import Measured
from udc_ray.metrics.statistics import CellRecords
from udc_ray.spec import RunSpec

CHECK = "26-selector"
FIXED = "fixed"
PER_IMAGE = "score-norm"


def exposed(cells: Sequence[CellRecords], spec: RunSpec, beside: Measured) -> list[CheckResult]:
    """Check 26: a level that is chosen is known to the attacker, and the worst candidate stands beside it."""
    found = []
    for label in dict.fromkeys(c.head.defense for c in cells if c.measured):
        selector = _selector_of(label, spec)
        if selector != FIXED:
            mine = [c for c in cells if c.head.defense == label and c.measured]
            found.append(_exposed(mine, selector, beside.choices.get(label)))
    return found or [not_made(CHECK, "every noise level is fixed")]


def _selector_of(label: str, spec: RunSpec) -> str:
    """Name of the selector of a defence; entries that differ in it say so in their labels."""
    kinds = dict.fromkeys(_name(e.params.get("selector")) for e in spec.defenses if e.name == label.split()[0])
    if len(kinds) > 1:
        return next((kind for kind in kinds if f"'{kind}'" in label), FIXED)
    return next(iter(kinds), FIXED)


def _name(selector: Any) -> str:
    return str(selector.get("name", FIXED)) if isinstance(selector, Mapping) else str(selector or FIXED)


def _exposed(mine: Sequence[CellRecords], selector: str, choice: Mapping[str, Any] | None) -> CheckResult:
    adaptive = [c for c in mine if c.adaptive and c.kind != "control"]
    if not adaptive:
        message = f"{selector} chooses the noise level and no attack meets it: only blind cells are listed"
        return result(CHECK, mine[0], "fail", None, None, message)
    cell = adaptive[0]
    if selector == PER_IMAGE:
        message = f"the attack meets {selector} as it is: every image that it tries gets its own level"
        return result(CHECK, cell, "pass", None, None, message)
    candidates = (choice or {}).get("candidates") or ()
    if choice is None or not candidates:
        return result(CHECK, cell, "fail", None, None, f"how {selector} came to its level is not on record")
    return _candidates(cell, selector, choice, candidates)


def _candidates(
    cell: CellRecords, selector: str, choice: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]
) -> CheckResult:
    scale = scale_of(cell)
    chosen, worst = candidates[choice["chosen"]], candidates[choice["worst"]]
    message = f"{selector} chose t = {chosen['t']} of {len(candidates)}, and the attack knows it"
    if worst.get("adaptive") is None:
        message += "; no candidate was attacked through the purifier (exposed: 0), so the worst is not known"
        return result(CHECK, cell, "warn", None, None, message)
    message += (
        f"; attacked at every candidate the worst is t = {worst['t']}, where trial images keep "
        f"{scale.show(worst['adaptive'])} ({scale.show(chosen['adaptive'])} at t = {chosen['t']})"
    )
    return result(CHECK, cell, "pass", worst["adaptive"], None, message)
