from __future__ import annotations

from typing import Any

import pytest
from record_factory import QUERY, make_cell, make_record

from udc_ray.checks import run_checks
from udc_ray.checks.base import CheckResult
from udc_ray.checks.claims import breakable, quality_cost
from udc_ray.checks.probes import budget, unbounded
from udc_ray.checks.strength import adaptive, iterative, white_box
from udc_ray.metrics.statistics import group_cells
from udc_ray.records import Record
from udc_ray.spec import parse_spec

BLIND: dict[str, Any] = {"defense": "jpeg", "grad_mode": "blind"}
BPDA: dict[str, Any] = {"defense": "jpeg", "grad_mode": "bpda"}


def _only(results: list[CheckResult], check: str = "") -> CheckResult:
    found = [r for r in results if r.check.startswith(check)]
    assert len(found) == 1
    return found[0]


def _verdict(results: list[CheckResult], check: str = "") -> str:
    return _only(results, check).verdict


def test_12_fails_where_fgsm_beats_pgd_on_one_image() -> None:
    pgd = make_cell([15.0, 16.0])
    assert _verdict(iterative(group_cells(pgd + make_cell([19.0, 16.0], attack="fgsm")))) == "pass"
    found = _only(iterative(group_cells(pgd + make_cell([19.0, 15.8], attack="fgsm"))))
    assert (found.verdict, found.value, "0001" in found.message) == ("fail", pytest.approx(0.2), True)
    assert found.cell == pgd[0].cell


@pytest.mark.parametrize(
    "other", [{"eps": 4 / 255}, {"norm": "l2"}, {"defense": "jpeg", "grad_mode": "bpda"}, {"objective": "ssim"}]
)
def test_12_compares_like_with_like_only(other: dict[str, Any]) -> None:
    assert iterative(group_cells(make_cell([15.0]) + make_cell([5.0], attack="fgsm", **other))) == []


def test_12_leaves_transfer_alone() -> None:
    assert iterative(group_cells(make_cell([15.0], **BLIND) + make_cell([5.0], attack="fgsm", **BLIND))) == []


def test_13_fails_where_queries_beat_gradients_on_the_mean() -> None:
    gradient = make_cell([15.0, 16.0])
    honest = make_cell([14.9, 16.2], **QUERY)
    assert _verdict(white_box(group_cells(gradient + honest))) == "pass"
    found = _only(white_box(group_cells(gradient + make_cell([14.0, 16.2], **QUERY))))
    assert (found.verdict, found.value, found.cell) == ("fail", pytest.approx(0.4), gradient[0].cell)
    assert "1 of 2 images" in found.message


def test_13_takes_the_per_image_worst_of_the_gradient_attacks() -> None:
    pair = make_cell([15.0, 20.0]) + make_cell([20.0, 15.0], attack="ssim-pgd", objective="ssim")
    assert _verdict(white_box(group_cells(pair + make_cell([15.0, 15.0], **QUERY)))) == "pass"


def test_13_needs_the_same_radius_and_defence() -> None:
    weaker = make_cell([20.0], eps=4 / 255) + make_cell([20.0], **BPDA) + make_cell([20.0], norm="l2")
    assert white_box(group_cells(weaker + make_cell([5.0], **QUERY))) == []


def test_14_fails_where_transferred_images_beat_the_adaptive_attack() -> None:
    blind = make_cell([18.0, 19.0], **BLIND)
    assert _verdict(adaptive(group_cells(blind + make_cell([16.0, 19.0], **BPDA))), "14-adaptive-transfer") == "pass"
    weak = make_cell([19.0, 20.0], **BPDA)
    found = _only(adaptive(group_cells(blind + weak)), "14-adaptive-transfer")
    assert (found.verdict, found.value, found.cell) == ("fail", pytest.approx(1.0), weak[0].cell)


def test_an_attack_on_frozen_noise_is_no_attack_to_judge_by() -> None:
    blind = make_cell([18.0, 19.0], **BLIND)
    control = make_cell([26.5, 27.0], label="pgd linf 8/255 frozen_noise=true | jpeg bpda", **BPDA)
    spec = parse_spec({"attacks": ["pgd"], "defenses": ["none", "jpeg"]})
    bare = make_cell([15.0, 16.0]) + make_cell([15.0, 16.0], label="pgd linf 8/255 frozen_noise=true | none")
    failed = {r.check for r in run_checks(bare + blind + control, spec) if r.verdict == "fail"}
    assert failed == set()


def test_14_does_not_guess_between_twin_entries() -> None:
    twins = make_cell([18.0], cell="a", **BLIND) + make_cell([10.0], cell="b", **BLIND)
    results = adaptive(group_cells(twins + make_cell([16.0], **BPDA)))
    assert [r for r in results if r.check == "14-adaptive-transfer"] == []


def test_14_fails_where_noise_harms_as_much() -> None:
    assert _verdict(adaptive(group_cells(make_cell([25.9])))) == "pass"
    assert _verdict(adaptive(group_cells(make_cell([26.1])))) == "fail"
    assert _verdict(adaptive(group_cells(make_cell([26.1], **QUERY)))) == "warn"
    assert adaptive(group_cells(make_cell([26.0], attack="noise", grad_evals=0))) == []


def _ladder(*steps: tuple[float, float]) -> list[Record]:
    return [r for eps, psnr in steps for r in make_cell([psnr], eps=eps)]


def test_15_fails_where_a_larger_radius_harms_less() -> None:
    assert _verdict(budget(group_cells(_ladder((0.01, 25.0), (0.02, 18.0), (0.04, 14.0))), True)) == "pass"
    found = _only(budget(group_cells(_ladder((0.01, 25.0), (0.02, 14.0), (0.04, 18.0))), True))
    assert (found.verdict, found.value) == ("fail", pytest.approx(4.0))


def test_15_fails_where_a_wide_radius_leaves_something() -> None:
    assert _verdict(budget(group_cells(_ladder((0.01, 25.0), (0.5, 6.0))), True)) == "pass"
    assert _verdict(budget(group_cells(_ladder((0.01, 25.0), (0.5, 20.0))), True)) == "fail"
    assert _verdict(budget(group_cells(_ladder((0.01, 25.0), (0.02, 20.0))), True)) == "pass"


def test_15_two_attacks_at_one_radius_count_once() -> None:
    twins = make_cell([14.0], eps=0.02, cell="long") + make_cell([19.0], eps=0.02, cell="short")
    assert _verdict(budget(group_cells(_ladder((0.01, 25.0)) + twins + _ladder((0.04, 13.0))), True)) == "pass"


def test_15_and_18_say_when_they_were_not_made() -> None:
    cells = group_cells(make_cell([15.0]))
    for check in (budget, unbounded):
        assert "not requested" in _only(check(cells, False)).message
        assert (_verdict(check(cells, True)), "needs" in _only(check(cells, True)).message) == ("info", True)


def test_18_fails_where_an_unbounded_attack_fails() -> None:
    free = [make_record(image_id=str(i), eps=1.0, success=True) for i in range(4)]
    assert _verdict(unbounded(group_cells(free), True)) == "pass"
    missed = [*free, make_record(image_id="x", eps=1.0, success=False)]
    assert _only(unbounded(group_cells(missed), True)).value == pytest.approx(0.8)
    assert _verdict(unbounded(group_cells(missed), True)) == "fail"


def test_22_fails_where_the_undefended_model_stands() -> None:
    assert _verdict(breakable(group_cells(make_cell([15.0, 17.0])))) == "pass"
    assert _verdict(breakable(group_cells(make_cell([25.5], psnr_noise=28.0)))) == "fail"
    near_noise = make_cell([20.0], psnr_noise=21.0)
    assert _verdict(breakable(group_cells(near_noise))) == "fail"


def test_22_looks_at_the_strongest_pgd_of_the_undefended_model() -> None:
    small, large = make_cell([27.0], eps=1 / 255), make_cell([12.0])
    found = _only(breakable(group_cells(small + large)))
    assert (found.verdict, found.cell) == ("pass", large[0].cell)
    assert _verdict(breakable(group_cells(make_cell([12.0], **BLIND)))) == "info"


def test_29_weighs_what_a_defence_costs_against_what_it_recovers() -> None:
    bare = make_cell([15.0, 16.0])
    found = _only(quality_cost(group_cells(bare + make_cell([19.0, 20.0], psnr_clean=27.0, **BLIND))))
    assert (found.verdict, found.value) == ("pass", pytest.approx(4.0 - 1.0))
    assert "costs 1.00 dB" in found.message
    costly = make_cell([15.5, 16.5], psnr_clean=27.0, **BLIND)
    assert _verdict(quality_cost(group_cells(bare + costly))) == "warn"


@pytest.mark.parametrize("column", ["nfe", "seconds"])
def test_29_fails_where_the_cost_is_missing(column: str) -> None:
    bare = make_cell([15.0])
    found = _only(quality_cost(group_cells(bare + make_cell([19.0], **BLIND | {column: None}))))
    assert (found.verdict, column in found.message) == ("fail", True)


def test_29_fails_without_an_undefended_run() -> None:
    assert _verdict(quality_cost(group_cells(make_cell([19.0], **BLIND)))) == "fail"
