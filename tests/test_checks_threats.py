"""Checks 1, 4, 21 and 26: what the attacker may do and meets."""

from __future__ import annotations

from typing import Any

import pytest
from record_factory import QUERY, make_cell, make_record

from udc_ray.checks.base import CheckResult
from udc_ray.checks.readings import Measured, Reading, measured
from udc_ray.checks.selection import exposed
from udc_ray.checks.threats import same_target, surrogate_gap, threat_complete
from udc_ray.metrics.statistics import group_cells
from udc_ray.spec import RunSpec, parse_spec

DDIM: dict[str, Any] = {"defense": "ddim", "grad_mode": "full"}


def _only(results: list[CheckResult]) -> CheckResult:
    (found,) = results
    return found


def _measured(**values: Any) -> Measured:
    same: dict[str, Any] = {"plan": "a", "attack_plan": "a", "forward_gap": 0.0, "steps": 10, "attack_steps": 10}
    return Measured(gradients=(Reading(**DDIM | same | values),))


@pytest.mark.parametrize(
    "planted", [{"eps": None}, {"norm": "linfinity"}, {"queries": None}, {"grad_evals": None}, {"eps": None, **QUERY}]
)
def test_1_fails_where_the_threat_is_not_whole(planted: dict[str, Any]) -> None:
    found = _only(threat_complete(group_cells([make_record(**planted)]), ()))
    assert (found.verdict, found.threshold) == ("fail", 0)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "linf 8/255 in the box [0, 1]; the attacker knows model, defence and gradients"),
        ({"attack": "cw", "norm": "l2", "eps": None}, "l2 without a radius"),
        ({"attack": "udc_ray.attacks.low_frequency:LowFrequency", "norm": "l2", "eps": None}, "l2 without a radius"),
        (QUERY, "sees the victim's answers to 200 queries"),
        ({"attack": "noise", "grad_evals": 0}, "knows nothing"),
        ({"defense": "jpeg", "grad_mode": "blind"}, "not the defence"),
        ({"defense": "ddim", "grad_mode": "surrogate-2"}, "surrogate-2; the noise that it is scored with is unknown"),
    ],
)
def test_1_says_what_the_attacker_may(columns: dict[str, Any], words: str) -> None:
    found = _only(threat_complete(group_cells([make_record(**columns)]), {"ddim"}))
    assert found.verdict == "pass"
    assert words.partition(";")[0] in found.message and words.rpartition(";")[2] in found.message


@pytest.mark.parametrize(
    ("columns", "values", "verdict", "words"),
    [
        (DDIM, {}, "pass", "deployed"),
        (DDIM, {"attack_plan": "b"}, "warn", "another purification"),
        (DDIM, {"forward_gap": 0.01}, "warn", "another purification"),
        (DDIM | {"grad_mode": "bpda"}, {"grad_mode": "bpda"}, "info", "its gradient is bpda"),
        (DDIM | {"grad_mode": "surrogate-2"}, {"grad_mode": "surrogate-2"}, "warn", "surrogate-2"),
        (DDIM | {"grad_mode": "forward-noise"}, {}, "warn", "forward-noise"),
        (DDIM | {"grad_mode": "blind"}, {}, "info", "undefended model"),
        (DDIM | QUERY, {}, "pass", "very model"),
        ({}, {}, "pass", "very model"),
        (DDIM | {"grad_mode": "bpda"}, {}, "info", "not compared"),
    ],
)
def test_4_labels_what_the_attack_works_on(
    columns: dict[str, Any], values: dict[str, Any], verdict: str, words: str
) -> None:
    found = _only(same_target(group_cells([make_record(**columns)]), _measured(**values)))
    assert (found.verdict, words in found.message) == (verdict, True)


@pytest.mark.parametrize(("steps", "verdict"), [(1, "warn"), (2, "pass"), (10, "pass")])
def test_21_warns_of_a_surrogate_that_is_far_off(steps: int, verdict: str) -> None:
    mode = {"defense": "ddim", "grad_mode": f"surrogate-{steps}"}
    cells = group_cells(make_cell([19.0], **mode) + make_cell([15.5], **DDIM))
    found = _only(surrogate_gap(cells, _measured(**mode, attack_steps=steps)))
    assert (found.verdict, found.value) == (verdict, steps / 10)
    assert "19.00 dB are left (15.50 dB in mode full)" in found.message


def test_21_without_a_surrogate_or_its_steps() -> None:
    assert _only(surrogate_gap(group_cells(make_cell([15.0], **DDIM)), Measured())).cell is None
    cells = group_cells(make_cell([19.0], defense="ddim", grad_mode="surrogate-1"))
    assert _only(surrogate_gap(cells, Measured())).verdict == "info"


def _choice(adaptive: float | None = 14.0, **values: Any) -> Measured:
    candidates = [{"t": 20, "adaptive": adaptive, "blind": 20.0}, {"t": 70, "adaptive": 17.5, "blind": 22.0}]
    return measured(None, [{"label": "ddim", "chosen": 1, "worst": 0, "candidates": candidates} | values])


def _selecting(selector: object) -> RunSpec:
    return parse_spec({"attacks": ["pgd"], "defenses": [{"name": "ddim", "selector": selector}]})


def test_26_shows_the_worst_candidate() -> None:
    cells = group_cells(make_cell([15.0], **DDIM))
    found = _only(exposed(cells, _selecting({"name": "anls"}), _choice()))
    assert (found.verdict, found.value) == ("pass", 14.0)
    assert "chose t = 70 of 2" in found.message and "worst is t = 20, where trial images keep 14.00 dB" in found.message
    assert _only(exposed(cells, _selecting("anls"), _choice(None))).verdict == "warn"
    assert _only(exposed(cells, _selecting("score-norm"), Measured())).verdict == "pass"


def test_26_fails_where_the_selector_is_hidden() -> None:
    blind = group_cells(make_cell([15.0], defense="ddim", grad_mode="blind"))
    for selector in ("anls", "score-norm"):
        assert _only(exposed(blind, _selecting(selector), _choice())).verdict == "fail"
    found = _only(exposed(group_cells(make_cell([15.0], **DDIM)), _selecting("anls"), Measured()))
    assert (found.verdict, "not on record" in found.message) == ("fail", True)


def test_26_has_nothing_to_say_of_fixed_levels() -> None:
    cells = group_cells(make_cell([15.0], **DDIM))
    for selector in (None, "fixed"):
        assert _only(exposed(cells, _selecting(selector), Measured())).cell is None
    twins = parse_spec({"attacks": ["pgd"], "defenses": ["ddim", {"name": "ddim", "selector": "anls"}]})
    mine = group_cells(make_cell([15.0], defense="ddim selector={'name': 'anls'}", grad_mode="full"))
    assert _only(exposed(mine, twins, Measured())).verdict == "fail"
    other = group_cells(make_cell([15.0], defense="ddim selector={'name': 'fixed'}", grad_mode="full"))
    assert _only(exposed(other, twins, Measured())).cell is None
