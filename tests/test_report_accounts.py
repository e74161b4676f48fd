"""What defences cost and give back, against numbers worked out by hand; and the mark of unconverged attacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from record_factory import QUERY, make_cell, make_record

from udc_ray.checks import CheckResult
from udc_ray.checks.base import Verdict
from udc_ray.records import Record
from udc_ray.report.accounts import make_accounts
from udc_ray.report.build import purification_times
from udc_ray.report.marks import UPPER_BOUND
from udc_ray.report.summary import build_summary
from udc_ray.report.table import Row, make_rows
from udc_ray.spec import RunSpec, parse_spec

SPEC = parse_spec({"attacks": ["pgd", "square"], "defenses": ["none", "jpeg", "ddim"]})


def _defended(values: list[float], defense: str, mode: str, **columns: Any) -> list[Record]:
    return make_cell(values, defense=defense, grad_mode=mode, **columns)


def _run() -> list[Record]:
    calls = {"nfe": 5, "guide_calls": 0, "psnr_clean": 25.0}
    return [
        *make_cell([15.0, 18.0, 16.0]),
        *make_cell([13.0, 13.0, 13.0], **QUERY),  # the defences never met it
        *_defended([20.0, 21.0, 22.0], "jpeg", "blind", psnr_clean=27.0),
        *_defended([19.0, 19.0, 20.0], "jpeg", "bpda", psnr_clean=27.0),
        *_defended([22.0, 23.0, 24.0], "ddim", "blind", **calls),
        *_defended([19.0, 18.0, 20.0], "ddim", "full", **calls),
        *_defended([18.5, 21.0, 21.0], "ddim", "surrogate-3", **calls),
    ]


def _by_metric(records: list[Record], defense: str, checks: tuple[CheckResult, ...] = ()) -> dict[str, Row]:
    rows = [r for r in make_accounts(records, SPEC, checks) if r.defense == defense]
    assert len({r.metric for r in rows}) == len(rows)
    return {r.metric: r for r in rows}


def test_every_number_is_a_paired_difference() -> None:
    found = _by_metric(_run(), "ddim")
    worst = np.array([18.5, 18.0, 20.0])  # per image, over the two modes that knew of it
    bare, jpeg = np.array([15.0, 18.0, 16.0]), np.array([19.0, 19.0, 20.0])
    expected = {
        "lost_psnr": [3.0, 3.0, 3.0],
        "adaptive_psnr": worst,
        "recovered_adaptive_psnr": worst - bare,
        "recovered_adaptive_per_nfe_psnr": (worst - bare) / 5,
        "recovered_blind_psnr": np.array([22.0, 23.0, 24.0]) - bare,
        "over_jpeg_adaptive_psnr": worst - jpeg,
    }
    assert set(found) == set(expected)
    for metric, values in expected.items():
        assert found[metric].mean == pytest.approx(np.mean(values)), metric
        low, high = found[metric].ci_low, found[metric].ci_high
        assert low is not None and high is not None and min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
        assert (found[metric].cell, found[metric].n, found[metric].of) == (None, 3, 3)
    assert (found["lost_psnr"].eps, found["adaptive_psnr"].eps) == (None, 8 / 255)


def test_the_time_of_a_purification_is_over_all_hosts_and_sessions() -> None:
    def devices(images: int, seconds: float) -> dict[str, Any]:
        return {"purified": {"ddim": {"images": images, "seconds": seconds}}, "device": "cpu"}

    environment = {
        "devices": {"a": devices(30, 3.0), "b": devices(10, 5.0), "c": {"device": "cpu"}},
        "earlier": [{"devices": {"a": devices(40, 8.0)}}, {"start": "now"}],
    }
    times = purification_times(environment)
    assert times == {"ddim": pytest.approx(16.0 / 80)}
    assert purification_times(None) == purification_times({}) == purification_times({"devices": None}) == {}
    row = {r.metric: r for r in make_accounts(_run(), SPEC, (), times) if r.defense == "ddim"}["purify_seconds"]
    assert (row.mean, row.ci_low, row.cell, row.n) == (pytest.approx(0.2), None, None, 3)
    assert "purify_seconds" not in {r.metric for r in make_accounts(_run(), SPEC, (), times) if r.defense == "jpeg"}


def test_a_defence_gains_nothing_by_attacks_that_it_did_not_meet() -> None:
    with_square = _by_metric(_run(), "jpeg")["recovered_adaptive_psnr"].mean
    without = [r for r in _run() if r.attack != "square"]
    assert with_square == _by_metric(without, "jpeg")["recovered_adaptive_psnr"].mean == pytest.approx(3.0)


def test_an_attack_that_only_the_defence_met_counts_against_it() -> None:
    own = _defended([10.0, 10.0, 10.0], "ddim", "full", attack="nes", psnr_clean=25.0, nfe=5)
    found = _by_metric([*_run(), *own], "ddim")
    assert found["recovered_adaptive_psnr"].mean == pytest.approx(10.0 - 49 / 3)
    # against JPEG only what both met counts
    assert found["over_jpeg_adaptive_psnr"].mean == pytest.approx(np.mean([-0.5, -1.0, 0.0]))


def test_jpeg_is_compared_blind_where_one_of_the_two_was_not_attacked_adaptively() -> None:
    found = _by_metric([r for r in _run() if r.grad_mode != "bpda"], "ddim")
    assert found["over_jpeg_blind_psnr"].mean == pytest.approx(2.0)
    assert "over_jpeg_adaptive_psnr" not in found


def test_the_best_of_several_jpegs_is_the_rival() -> None:
    weak = [r for r in _run() if r.defense == "jpeg"]
    strong = _defended([19.5, 19.5, 20.5], "jpeg quality=50", "bpda", psnr_clean=26.0)
    found = _by_metric([*_run(), *strong], "ddim")
    assert found["over_jpeg_adaptive_psnr"].mean == pytest.approx(np.mean([-1.0, -1.5, -0.5]))
    assert len(weak) == 6 and not any("jpeg" in m for m in _by_metric([*_run(), *strong], "jpeg quality=50"))


def test_threats_are_accounted_for_one_by_one() -> None:
    l2 = {"norm": "l2", "eps": 5.0}
    records = [*_run(), *make_cell([16.0], **l2), *_defended([18.0], "jpeg", "blind", psnr_clean=27.0, **l2)]
    rows = [r for r in make_accounts(records, SPEC) if r.metric == "recovered_blind_psnr" and r.defense == "jpeg"]
    assert {(r.norm, r.eps): r.mean for r in rows} == {
        ("linf", 8 / 255): pytest.approx(21.0 - 49 / 3),
        ("l2", 5.0): 2.0,
    }


def test_without_a_truth_or_a_bare_model_there_is_less_to_say() -> None:
    blind = [make_record(defense="ddim", grad_mode="blind", psnr_clean=None)]
    assert make_accounts(blind, SPEC) == []
    assert [r.metric for r in make_accounts([make_record(psnr_clean=None), *blind], SPEC)] == ["recovered_blind_psnr"]
    assert make_accounts([make_record()], SPEC) == []


def test_accuracies_are_accounted_for_in_their_own_rows() -> None:
    score = {"objective": "margin", "psnr_clean": None, "psnr_noise": None, "score_clean": 1.0}
    records = [
        make_record(image_id=str(i), defense=d, grad_mode=m, psnr_adv=None, score_adv=v, **score)
        for d, m, values in (("none", "full", (0, 0, 0)), ("ddim", "bpda", (1, 0, 1)))
        for i, v in enumerate(map(float, values))
    ]
    found = _by_metric(records, "ddim")
    assert found["recovered_adaptive_score"].mean == pytest.approx(2 / 3)
    assert found["lost_score"].mean == 0
    # found or missed: a rate, with Wilson's interval
    assert (found["adaptive_score"].ci_low, found["adaptive_score"].ci_high) == pytest.approx(
        (0.2077, 0.9385), abs=1e-4
    )


def test_accounts_are_in_the_summary_and_not_in_that_of_a_campaign() -> None:
    metrics = {r.metric for r in build_summary(_run(), SPEC).rows}
    assert {"lost_psnr", "recovered_adaptive_psnr", "over_jpeg_adaptive_psnr"} <= metrics
    campaign = SPEC.model_copy(update={"campaign": True})
    assert not {r.metric for r in build_summary(_run(), campaign).rows} & {"lost_psnr", "adaptive_psnr"}


def test_failed_checks_of_its_cells_stand_at_an_account() -> None:
    cell = next(r.cell for r in _run() if r.grad_mode == "full" and r.defense == "ddim")
    found = _by_metric(_run(), "ddim", (CheckResult(check="05-gradient", cell=cell, verdict="fail"),))
    assert found["recovered_adaptive_psnr"].failed_checks == ("05-gradient",)
    assert found["recovered_blind_psnr"].failed_checks == found["lost_psnr"].failed_checks == ()


def _checks(cell: str, **verdicts: Verdict) -> list[CheckResult]:
    names = {"eot": "09-eot", "rest": "16-converged", "longer": "16-converged-longer"}
    return [CheckResult(check=names[key], cell=cell, verdict=verdict) for key, verdict in verdicts.items()]


def _bound(records: list[Record], checks: list[CheckResult], spec: RunSpec = SPEC, **columns: Any) -> bool:
    wanted = {"metric": "psnr_adv", "attack": "pgd", **columns}
    rows = [r for r in make_rows(records, spec, checks) if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(rows) == 1
    assert rows[0].upper_bound is (UPPER_BOUND in rows[0].note)
    return rows[0].upper_bound


FULL = "id of pgd linf 8/255 | ddim full"


@pytest.mark.parametrize(
    ("verdicts", "bound"),
    [
        ({}, True),
        ({"eot": "pass"}, True),
        ({"rest": "pass"}, True),
        ({"eot": "pass", "rest": "pass"}, False),
        ({"eot": "warn", "rest": "pass"}, True),
        ({"eot": "pass", "rest": "info"}, True),
        ({"eot": "pass", "rest": "pass", "longer": "pass"}, False),
        ({"eot": "pass", "rest": "pass", "longer": "warn"}, True),
    ],
)
def test_an_adaptive_number_is_an_upper_bound_unless_both_checks_pass(
    verdicts: dict[str, Verdict], bound: bool
) -> None:
    assert _bound(_run(), _checks(FULL, **verdicts), defense="ddim", grad_mode="full") is bound


def test_a_deterministic_victim_needs_no_draws() -> None:
    bare, jpeg = ("id of pgd linf 8/255 | none", "id of pgd linf 8/255 | jpeg bpda")
    checks = [*_checks(bare, rest="pass"), *_checks(jpeg, rest="pass")]
    assert not _bound(_run(), checks, defense="none")
    assert not _bound(_run(), checks, defense="jpeg", grad_mode="bpda")
    assert _bound(_run(), [], defense="none")


def test_blind_numbers_controls_and_campaigns_are_no_bounds() -> None:
    assert not _bound(_run(), [], defense="ddim", grad_mode="blind")
    noise = make_cell([20.0, 20.0], attack="noise", grad_evals=0)
    assert not _bound(noise, [], attack="noise")
    assert not _bound(_run(), [], SPEC.model_copy(update={"campaign": True}), defense="ddim", grad_mode="full")


def test_the_strongest_attack_decides_over_a_worst_of_several() -> None:
    checks = _checks(FULL, eot="pass", rest="pass")
    robust = {"metric": "robust_psnr", "attack": None, "defense": "ddim"}
    assert not _bound(_run(), checks, **robust, grad_mode="full")
    assert not _bound(_run(), checks, **robust, grad_mode=None)
    weaker = _defended([30.0, 30.0, 30.0], "ddim", "full", attack="fgsm", psnr_clean=25.0)
    stronger = _defended([11.0, 11.0, 11.0], "ddim", "full", attack="fgsm", psnr_clean=25.0)
    assert not _bound([*_run(), *weaker], checks, **robust, grad_mode="full")
    assert _bound([*_run(), *stronger], checks, **robust, grad_mode="full")
    assert _by_metric(_run(), "ddim")["recovered_adaptive_psnr"].upper_bound
    assert not _by_metric(_run(), "ddim", tuple(checks))["recovered_adaptive_psnr"].upper_bound


def test_blind_and_full_stand_side_by_side_before_other_modes() -> None:
    modes = ("surrogate-3", "bpda", "full", "blind")
    records = [r for m in modes for r in _defended([18.0], "ddim", m)]
    rows = [r for r in make_rows(records, SPEC) if r.metric == "psnr_adv"]
    assert [r.grad_mode for r in rows] == ["blind", "full", "bpda", "surrogate-3"]
