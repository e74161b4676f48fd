"""Checks 9, 11 and 24: the randomness of a victim."""

from __future__ import annotations

from typing import Any

import pytest
from record_factory import make_cell, make_record

from udc_ray.checks.base import CheckResult
from udc_ray.checks.draws import enough_draws, enough_evaluations, frozen_noise
from udc_ray.checks.readings import Measured, Reading
from udc_ray.metrics.statistics import group_cells

DDIM: dict[str, Any] = {"defense": "ddim", "grad_mode": "full"}


def _measured(**values: Any) -> Measured:
    return Measured(gradients=(Reading(**DDIM | values),))


def _only(results: list[CheckResult]) -> CheckResult:
    (found,) = results
    return found


@pytest.mark.parametrize(
    ("eot", "verdict", "value"), [(1, "warn", 4), (2, "warn", 4), (4, "pass", 4), (16, "warn", None)]
)
def test_9_wants_gradients_that_agree(eot: int, verdict: str, value: int | None) -> None:
    cosines = ((1, 0.3), (2, 0.6), (4, 0.91), (8, 0.95), (16, 0.85))
    found = _only(enough_draws(group_cells(make_cell([15.0], eot=eot, **DDIM)), _measured(eot=cosines)))
    assert (found.verdict, found.value, found.threshold) == (verdict, value, eot)
    assert f"at {eot}" in found.message


def test_9_leaves_deterministic_victims_alone() -> None:
    assert _only(enough_draws(group_cells(make_cell([15.0], **DDIM)), _measured())).cell is None


@pytest.mark.parametrize(
    ("values", "verdict", "words"),
    [
        ({"frozen": 2.0, "free": 1.0, "repeatable": True, "own_noise": True}, "pass", "2.00 times"),
        ({"frozen": 0.55, "free": 1.0}, "pass", "0.55 times"),
        ({"frozen": 0.45, "free": 1.0}, "fail", "a leak, or a broken attack"),
        ({"frozen": -1.0, "free": 1.0}, "fail", "broken attack"),
        ({"frozen": 1.0, "free": 0.0}, "info", "no damage"),
        ({"frozen": 2.0, "free": 1.0, "own_noise": False}, "fail", "a leak"),
        ({"frozen": 2.0, "free": 1.0, "repeatable": False}, "fail", "cannot be frozen"),
    ],
)
def test_11_judges_what_freezing_does(values: dict[str, Any], verdict: str, words: str) -> None:
    found = _only(frozen_noise(group_cells(make_cell([15.0], **DDIM)), _measured(**values)))
    assert (found.verdict, words in found.message) == (verdict, True)


def test_11_only_warns_of_gradients_that_are_approximate() -> None:
    cells = group_cells(make_cell([15.0], defense="ddim", grad_mode="bpda"))
    assert _only(frozen_noise(cells, _measured(grad_mode="bpda", frozen=0.4, free=1.0))).verdict == "warn"


def test_24_wants_as_many_evaluations_as_submissions() -> None:
    cells = group_cells([make_record(sample=s, **DDIM) for s in range(4)] + make_cell([15.0]))
    assert _only(enough_evaluations(cells, 4, {"ddim"})).verdict == "pass"
    found = _only(enough_evaluations(cells, 5, {"ddim"}))
    assert (found.verdict, found.value, found.threshold) == ("fail", 4, 5)
    assert "samples: 5" in found.message


def test_24_says_what_was_not_declared() -> None:
    cells = group_cells([make_record(sample=s, **DDIM) for s in range(4)])
    assert "N = 4" in _only(enough_evaluations(cells, None, {"ddim"})).message
    assert "no victim that draws noise" in _only(enough_evaluations(cells, 9, ())).message
