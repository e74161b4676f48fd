"""Is it said what the attacker may do, and does the attack meet what is deployed? Checks 1, 4, 21."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from udc_ray.attacks.registry import ATTACKS
from udc_ray.checks.base import CheckResult, not_made, result, same_attack, scale_of
from udc_ray.checks.readings import Measured, Reading
from udc_ray.errors import SpecError
from udc_ray.labels import describe_eps
from udc_ray.metrics.statistics import CellRecords, mean_of
from udc_ray.purifiers.base import is_surrogate

SURROGATE_SHARE = 5
"""A surrogate with fewer than one in so many steps of the defence says little about it."""
FORWARD_GAP = 1e-4
"""Distance of two outputs, in units of the image, from which on they are of two victims: float32 rounding is below."""
KNOWS = {
    "full": "knows model, defence and gradients",
    "blind": "knows the undefended model, not the defence",
    "bpda": "knows model and defence, and takes the defence for the identity in its gradient",
    "full-no-guide": "knows model and defence, and leaves the guide out of its gradient",
    "forward-noise": "knows the model and the noise of the defence, not its way back",
}


def threat_complete(cells: Sequence[CellRecords], random_defences: Collection[str]) -> list[CheckResult]:
    """Check 1: norm, radius, range, knowledge, noise and what was asked are known of every cell."""
    return [_threat_complete(c, c.head.defense.split()[0] in random_defences) for c in cells if c.measured]


def _threat_complete(cell: CellRecords, random: bool) -> CheckResult:
    head, lacking = cell.head, []
    if head.norm not in ("linf", "l2"):
        lacking.append("norm")
    if head.eps is None and not _goes_without_radius(head.attack):
        lacking.append("eps")
    lacking += [name for name in ("queries", "grad_evals") if any(getattr(r, name) is None for r in cell.measured)]
    if lacking:
        message = f"{', '.join(lacking)} not recorded: nobody can say what the attacker was allowed"
        return result("01-threat-model", cell, "fail", len(lacking), 0, message)
    size = "without a radius" if head.eps is None else describe_eps(head.eps)
    noise = "; the noise that it is scored with is unknown to it" if random and cell.kind != "control" else ""
    message = f"{head.norm} {size} in the box [0, 1]; the attacker {_knowledge(cell)}{noise}"
    return result("01-threat-model", cell, "pass", 0, 0, message)


def _knowledge(cell: CellRecords) -> str:
    if cell.kind == "control":
        return "knows nothing"
    if cell.kind == "query" and cell.adaptive:
        budget = cell.head.budget
        return "sees the victim's answers" + (f" to {budget} queries" if budget is not None else "")
    mode = cell.head.grad_mode
    return f"works on a {mode} of the defence" if is_surrogate(mode) else KNOWS.get(mode, f"works in mode {mode}")


def _goes_without_radius(attack: str) -> bool:
    """Whether an attack is bounded by something else: it looks for a minimum, or keeps to a distance of images."""
    try:
        found = ATTACKS.get(attack)
    except SpecError:
        return False
    return found.minimum_norm or beyond_balls(attack)


def beyond_balls(attack: str) -> bool:
    """Whether an attack is bounded by a distance of images in place of an Lp ball."""
    try:
        return ATTACKS.get(attack).model_fields["eps"].annotation in (None, type(None))
    except SpecError:
        return False


def same_target(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 4: the attack works on the plan that is scored, or its cell says on what else."""
    wanted = [c for c in cells if c.measured and c.kind != "control"]
    return [_same_target(cell, measured.of(cell)) for cell in wanted] or [not_made("04-same-target", "no attack")]


def _same_target(cell: CellRecords, reading: Reading | None) -> CheckResult:
    check, mode = "04-same-target", cell.head.grad_mode
    if mode == "blind":
        message = "made against the undefended model: says nothing of an attacker who knows the defence"
        return result(check, cell, "info", None, None, message)
    if cell.kind == "query" or cell.head.defense == "none":
        return result(check, cell, "pass", None, None, "the attack works on the very model that is scored")
    if is_surrogate(mode) or mode == "forward-noise":
        message = f"the attack works on another purification ({mode}) than the one that is deployed"
        return result(check, cell, "warn", None, None, message)
    if reading is None or reading.forward_gap is None:
        return result(check, cell, "info", None, None, f"mode {mode}; the two purifications were not compared")
    if reading.plan != reading.attack_plan or reading.forward_gap > FORWARD_GAP:
        message = f"the attack sees another purification than the one that is deployed, though its mode is {mode}"
        return result(check, cell, "warn", reading.forward_gap, FORWARD_GAP, message)
    message = "the attack's forward pass is the purification that is deployed"
    if mode == "full":
        return result(check, cell, "pass", reading.forward_gap, FORWARD_GAP, message)
    return result(check, cell, "info", reading.forward_gap, FORWARD_GAP, f"{message}; its gradient is {mode}")


def surrogate_gap(cells: Sequence[CellRecords], measured: Measured) -> list[CheckResult]:
    """Check 21: how far the surrogate that was attacked is from the defence; both results side by side."""
    wanted = [c for c in cells if is_surrogate(c.head.grad_mode) and c.measured]
    if not wanted:
        return [not_made("21-surrogate-gap", "no attack on a surrogate")]
    return [_surrogate_gap(cells, cell, measured.of(cell)) for cell in wanted]


def _surrogate_gap(cells: Sequence[CellRecords], cell: CellRecords, reading: Reading | None) -> CheckResult:
    check, scale = "21-surrogate-gap", scale_of(cell)
    exact = same_attack(cells, cell, cell.head.defense, "full")
    left = f"on the deployed plan {scale.show(mean_of(cell.per_image(scale.attacked)))} are left"
    if exact is not None and exact.measured:
        left += f" ({scale.show(mean_of(exact.per_image(scale.attacked)))} in mode full)"
    if reading is None or reading.steps is None or reading.attack_steps is None:
        return result(check, cell, "info", None, None, f"{left}; the steps of the two plans were not compared")
    share = reading.attack_steps / reading.steps
    message = f"the attack differentiates {reading.attack_steps} of {reading.steps} steps; {left}"
    few = reading.attack_steps * SURROGATE_SHARE < reading.steps
    return result(check, cell, "warn" if few else "pass", share, 1 / SURROGATE_SHARE, message)
