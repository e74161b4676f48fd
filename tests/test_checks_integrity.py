from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from record_factory import make_cell, make_record

from udc_ray.checks import CheckResult, run_checks
from udc_ray.checks.integrity import best_iterate, clean_metrics, randomness, sample_size, within_budget
from udc_ray.errors import SpecError
from udc_ray.metrics.statistics import group_cells
from udc_ray.records import Record
from udc_ray.spec import parse_spec


def _cells(*records: Record) -> Any:
    return group_cells(records)


@pytest.mark.parametrize("column", ["psnr_degraded", "psnr_clean", "psnr_noise", "psnr_adv", "ssim_clean"])
def test_2_fails_where_one_clean_number_is_missing(column: str) -> None:
    good = make_cell([15.0, 16.0])
    (honest,) = clean_metrics(_cells(*good))
    assert honest.verdict == "pass"
    (planted,) = clean_metrics(_cells(good[0], make_record(image_id="0001", **{column: None})))
    assert (planted.verdict, column in planted.message) == ("fail", True)


def test_2_lets_a_run_without_reference_and_tiny_images_pass() -> None:
    bare: dict[str, Any] = {"psnr_degraded": None, "psnr_clean": None, "ssim_clean": None, "objective": "mse-clean"}
    assert clean_metrics(_cells(make_record(**bare)))[0].verdict == "pass"
    assert clean_metrics(_cells(make_record(**bare | {"objective": "mse"})))[0].verdict == "fail"
    assert clean_metrics(_cells(make_record(ssim_clean=None, ssim_adv=None)))[0].verdict == "pass"


def test_2_names_the_worst_clean_sample() -> None:
    rows = [make_record(sample=s, psnr_clean=v) for s, v in enumerate((28.0, 19.5, 27.0))]
    assert "19.50 dB" in clean_metrics(_cells(*rows))[0].message


@pytest.mark.parametrize(
    ("planted", "honest"),
    [
        ({"linf": 8 / 255 + 2e-6}, {"linf": 8 / 255 + 5e-7}),
        (
            {"norm": "l2", "eps": 5.0, "l2": 5.00002, "linf": 0.5},
            {"norm": "l2", "eps": 5.0, "l2": 5.000003, "linf": 0.5},
        ),
        ({"eps": None, "norm": "l2", "linf": 1.01, "l2": 9.0}, {"eps": None, "norm": "l2", "linf": 1.0, "l2": 9.0}),
        ({"l2": 0.01}, {"l2": 0.04}),
        ({"linf": None}, {}),
        ({"linf": math.nan}, {}),
    ],
)
def test_3_recomputes_the_budget(planted: dict[str, Any], honest: dict[str, Any]) -> None:
    assert within_budget(_cells(make_record(**honest)))[0].verdict == "pass"
    rows = [make_record(image_id="ok", **honest), make_record(image_id="bad", **planted)]
    # One cell, though a planted threat may differ: the cell is the same.
    assert within_budget(_cells(*[_same_cell(r) for r in rows]))[0].verdict == "fail"


def _same_cell(record: Record) -> Record:
    from dataclasses import replace

    return replace(record, cell="c")


def test_10_tells_random_from_deterministic() -> None:
    deterministic = [make_record(sample=s) for s in range(3)]
    spread = [make_record(sample=s, psnr_adv=15 + 0.1 * s) for s in range(3)]
    assert "deterministic" in randomness(_cells(*deterministic), ())[0].message
    found = randomness(_cells(*spread), ())[0]
    assert (found.verdict, found.value, "3 evaluations" in found.message) == ("info", pytest.approx(0.2), True)
    assert "random victim" in randomness(_cells(make_record(nfe=3)), ())[0].message
    assert "random victim" in randomness(_cells(make_record(defense="shaky")), {"shaky"})[0].message


def test_17_an_attack_that_ends_above_clean_lost_its_best_iterate() -> None:
    assert best_iterate(_cells(*make_cell([15.0, 28.0])))[0].verdict == "pass"
    found = best_iterate(_cells(*make_cell([15.0, 28.2])))[0]
    assert (found.verdict, found.value, "0001" in found.message) == ("fail", 1, True)


@pytest.mark.parametrize("objective", ["mse", "ssim"])
def test_17_takes_the_attack_at_its_word(objective: str) -> None:
    rows = [make_record(image_id=str(i), lost=lost, objective=objective) for i, lost in enumerate((False, True, None))]
    found = best_iterate(_cells(*rows))[0]
    assert (found.verdict, found.value, "(first: 1)" in found.message) == ("fail", 1, True)
    kept = best_iterate(_cells(*(replace(r, lost=False) for r in rows)))
    assert [one.verdict for one in kept] == (["pass"] if objective == "mse" else [])


def test_17_warns_where_too_few_queries_were_asked() -> None:
    found = best_iterate(_cells(*(replace(r, grad_evals=0, queries=12) for r in make_cell([15.0, 28.2]))))[0]
    assert (found.verdict, "too few queries" in found.message) == ("warn", True)


def test_17_allows_for_the_noise_of_random_victims_and_for_transfer() -> None:
    noisy = [make_record(sample=s, psnr_adv=v) for s, v in enumerate((27.0, 29.4))]
    assert best_iterate(_cells(*noisy))[0].verdict == "pass"
    assert best_iterate(_cells(make_record(psnr_adv=30.0, defense="jpeg", grad_mode="blind"))) == []
    assert best_iterate(_cells(make_record(psnr_adv=30.0, attack="noise", grad_evals=0))) == []


@pytest.mark.parametrize(("n", "verdict"), [(1, "fail"), (2, "warn"), (7, "warn"), (8, "pass")])
def test_27_sample_size(n: int, verdict: str) -> None:
    found = sample_size(_cells(*make_cell([15.0] * n, seed=5)))[0]
    assert (found.verdict, found.value) == (verdict, n)
    assert "seed 5" in found.message
    assert ("too few for a claim" in found.message) == (verdict == "warn")


def test_27_counts_failed_images() -> None:
    rows = make_cell([15.0] * 9) + [make_record(image_id="x", psnr_adv=None, error="boom", stop_reason="error")]
    found = sample_size(_cells(*rows))[0]
    assert (found.verdict, "n = 9 of 10" in found.message) == ("warn", True)


def test_results_are_plain_json_and_read_back() -> None:
    spec = parse_spec({"attacks": ["pgd"], "defenses": ["none", "gaussian-noise"]})
    records = make_cell([15.0, 16.0]) + make_cell(
        [20.0, 20.0], defense="gaussian-noise", grad_mode="blind", linf=math.nan
    )
    results = run_checks(records, spec)
    documents = [r.to_json() for r in results]
    assert [CheckResult.from_json(d) for d in json.loads(json.dumps(documents, allow_nan=False))] == [
        CheckResult.from_json(d) for d in documents
    ]
    # The defence's own declaration is enough: one sample shows no spread.
    assert any(r.check == "10-randomness" and "random victim" in r.message for r in results)
    assert results == run_checks(list(reversed(records)), spec)


def test_a_failed_cell_leaves_no_verdict_but_its_size() -> None:
    records = [make_record(psnr_adv=None, error="boom", stop_reason="error", linf=None, grad_evals=None)]
    results = run_checks(records, parse_spec({"attacks": ["pgd"]}))
    assert {r.check for r in results if r.cell} == {"27-sample-size"}


def test_an_unknown_check_on_request_is_refused() -> None:
    with pytest.raises(SpecError, match="did you mean budget"):
        run_checks([], parse_spec({"attacks": ["pgd"], "checks": ["bugdet"]}))
