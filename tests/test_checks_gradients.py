"""Checks 5 to 8, 25 and 30, as functions of what a probe measured."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from record_factory import QUERY, make_cell, make_record

from udc_ray.checks.base import CheckResult
from udc_ray.checks.gradients import available, guide_complete, inner_gradients, parity, recomputed, vanishing
from udc_ray.checks.readings import Measured, Reading, measured
from udc_ray.metrics.statistics import group_cells

DDIM: dict[str, Any] = {"defense": "ddim", "grad_mode": "full"}


def _reading(**values: Any) -> Measured:
    honest: dict[str, Any] = {"defense": "none", "grad_mode": "full", "finite": True, "zero_share": 0.0}
    return Measured(gradients=(Reading(**honest | {"directions": 8, "agreeing": 8, "gap": 0.0} | values),))


def _only(results: list[CheckResult]) -> CheckResult:
    (found,) = results
    return found


CELLS = group_cells(make_cell([15.0, 16.0]))
GUIDED = group_cells(make_cell([15.0, 16.0], **DDIM))


def test_5_passes_where_the_gradient_equals_differences() -> None:
    found = _only(available(CELLS, _reading()))
    assert (found.verdict, found.value, found.cell) == ("pass", 1.0, CELLS[0].head.cell)
    assert "8 of 8 directions" in found.message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cut": True, "finite": None}, "graph is cut"),
        ({"finite": False}, "no numbers"),
        ({"agreeing": 7, "gap": 0.5}, "7 of 8 directions only, off by 50%"),
        ({"agreeing": 2, "kinks": 5, "gap": 0.1}, "2 of 3 directions (5 more meet kinks)"),
    ],
)
def test_5_fails_where_the_gradient_is_wrong(values: dict[str, Any], words: str) -> None:
    found = _only(available(CELLS, _reading(**values)))
    assert found.verdict == "fail"
    assert words in found.message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"agreeing": 0, "kinks": 8}, "decide nothing"),
        ({"failure": "SpecError: too small"}, "not made: SpecError"),
        ({"no_double": "no copy in float64"}, "no copy in float64"),
        ({"recomputed": False, "finite": None}, "see check 7"),
    ],
)
def test_5_says_what_it_could_not_decide(values: dict[str, Any], words: str) -> None:
    found = _only(available(CELLS, _reading(**values)))
    assert (found.verdict, words in found.message) == ("info", True)


@pytest.mark.parametrize("mode", ["bpda", "surrogate-2", "forward-noise", "full-no-guide"])
def test_5_calls_other_modes_approximate(mode: str) -> None:
    cells = group_cells(make_cell([15.0], defense="ddim", grad_mode=mode))
    found = _only(available(cells, _reading(defense="ddim", grad_mode=mode, cosine=0.31, agreeing=0)))
    assert (found.verdict, found.value, "cosine 0.31" in found.message) == ("info", 0.31, True)


def test_checks_of_gradients_say_why_they_were_not_made() -> None:
    for check in (available, recomputed, guide_complete, parity, inner_gradients):
        queries = _only(check(group_cells(make_cell([15.0], **QUERY)), _reading()))
        assert (queries.verdict, queries.cell, queries.message) == ("info", None, "not made: no attack by gradients")
        assert "not probed" in _only(check(CELLS, Measured())).message
    assert "nothing that it applies to" in _only(guide_complete(GUIDED, _reading())).message


def test_6_takes_the_attack_at_its_word() -> None:
    sound = make_cell([15.0] * 200, grad_zero_share=0.1, grad_dead_steps=0)
    found = _only(vanishing(group_cells(sound), _reading(zero_share=1.0), ()))
    assert (found.verdict, found.value) == ("pass", pytest.approx(0.1))
    dead = [make_record(image_id=f"dead{i}", grad_zero_share=1.0, grad_dead_steps=10) for i in range(3)]
    assert _only(vanishing(group_cells(sound + dead[:2]), Measured(), ())).verdict == "pass"
    found = _only(vanishing(group_cells(sound + dead), Measured(), ()))
    assert (found.verdict, "3 of 203 images" in found.message) == ("fail", True)


def test_6_forgives_one_stationary_start() -> None:
    start = make_cell([15.0], grad_zero_share=1.0, grad_dead_steps=1)
    assert _only(vanishing(group_cells(start), Measured(), ())).verdict == "warn"
    half = make_cell([15.0], grad_zero_share=1.0, grad_dead_steps=5)
    assert _only(vanishing(group_cells(half), Measured(), ())).verdict == "fail"


def test_6_counts_steps_and_not_draws_of_a_random_victim() -> None:
    cells = group_cells(make_cell([15.0], eot=5, grad_evals=20, grad_zero_share=1.0, grad_dead_steps=2, **DDIM))
    assert _only(vanishing(cells, Measured(), {"ddim"})).verdict == "fail"
    assert _only(vanishing(cells, Measured(), ())).verdict == "warn"


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "fail"), (0.3, "warn"), (0.2, "pass"), (0.0, "pass")])
def test_6_falls_back_on_the_probe(share: float, verdict: str) -> None:
    assert _only(vanishing(CELLS, _reading(zero_share=share), ())).verdict == verdict


def test_6_has_nothing_to_say_of_a_gradient_that_is_missing() -> None:
    assert _only(vanishing(CELLS, _reading(zero_share=None), ())).verdict == "info"


def test_7_fails_where_a_step_drifts() -> None:
    probed = {"defense": "ddim", "recomputed": True}
    assert _only(recomputed(GUIDED, _reading(**probed))).verdict == "pass"
    found = _only(recomputed(GUIDED, _reading(**probed | {"recomputed": False, "failure": "step 2 differs"})))
    assert (found.verdict, "step 2 differs" in found.message) == ("fail", True)
    assert _only(recomputed(CELLS, _reading())).verdict == "info"


def test_7_fails_where_units_failed_by_it() -> None:
    broken = make_record(psnr_adv=None, error="RecomputeError: step 3", stop_reason="error", **DDIM)
    found = _only(recomputed(group_cells([broken]), Measured()))
    assert (found.verdict, found.cell) == ("fail", broken.cell)


@pytest.mark.parametrize(
    ("mode", "gap", "verdict"),
    [("full", 0.3, "pass"), ("full-no-guide", 0.3, "fail"), ("full-no-guide", 0.009, "pass"), ("full", 0.0, "pass")],
)
def test_8_fails_where_the_guide_is_left_out(mode: str, gap: float, verdict: str) -> None:
    cells = group_cells(make_cell([15.0], defense="gdmp", grad_mode=mode))
    found = _only(guide_complete(cells, _reading(defense="gdmp", grad_mode=mode, guide_gap=gap)))
    assert (found.verdict, found.value) == (verdict, gap)


def test_8_fails_where_the_exact_mode_has_lost_its_guide() -> None:
    found = _only(guide_complete(GUIDED, _reading(defense="ddim", guide_gap=0.0, agreeing=3)))
    assert (found.verdict, "cut" in found.message) == ("fail", True)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"dtype": "float32", "parity": 0.5}, "info"),
        ({"dtype": "bfloat16", "parity": 0.05}, "info"),
        ({"dtype": "bfloat16", "parity": 0.2}, "warn"),
        ({"dtype": "float32", "compiled": True, "parity": 0.2}, "warn"),
    ],
)
def test_25_compares_precisions(values: dict[str, Any], verdict: str) -> None:
    found = _only(parity(CELLS, _reading(**values)))
    assert (found.verdict, str(values["dtype"]) in found.message) == (verdict, True)


def test_30_counts_gradients_inside_the_victim() -> None:
    assert "no gradients" in _only(inner_gradients(CELLS, _reading(inner_gradients=0))).message
    found = _only(inner_gradients(GUIDED, _reading(defense="ddim", inner_gradients=5)))
    assert (found.verdict, found.value, "second-order gradients are on" in found.message) == ("info", 5, True)
    cut = group_cells(make_cell([15.0], defense="ddim", grad_mode="full-no-guide"))
    incomplete = _reading(defense="ddim", grad_mode="full-no-guide", inner_gradients=5)
    assert "constant" in _only(inner_gradients(cut, incomplete)).message


def test_readings_are_plain_json_and_read_back() -> None:
    reading = Reading(defense="ddim", grad_mode="full", eot=((1, 0.5), (2, 0.75)), gap=math.inf, seconds=1.5)
    document = {"probes": {"gradients": [json.loads(json.dumps(reading.to_json(), allow_nan=False)) | {"later": 1}]}}
    (back,) = measured(document).gradients
    assert (back.eot, back.gap, back.seconds) == (reading.eot, None, 1.5)
    resumed = {"probes": {"position_invariance": []}, "earlier": [{"probes": {}}, document]}
    assert measured(resumed).gradients == (back,)


@pytest.mark.parametrize("document", [None, [], {"probes": None}, {"probes": {"gradients": [{"eot": 3}]}}])
def test_what_cannot_be_read_was_not_measured(document: object) -> None:
    assert measured(document, document) == Measured()
