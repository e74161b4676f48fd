"""Checks 16, 19, 20, 23 and 28: was enough tried, and do the checks notice what is broken?"""

from __future__ import annotations

from typing import Any

import pytest
from record_factory import QUERY, make_cell, make_record

from udc_ray.checks.base import CheckResult
from udc_ray.checks.control import known_broken
from udc_ray.checks.effort import beyond_lp, converged, losses, restarts
from udc_ray.metrics.statistics import group_cells


def _only(results: list[CheckResult]) -> CheckResult:
    (found,) = results
    return found


@pytest.mark.parametrize(("moves", "verdict"), [((0.0, 0.1), "pass"), ((0.06, 0.06), "warn"), ((1.0, 1.0), "warn")])
def test_16_warns_while_the_loss_still_rises(moves: tuple[float, float], verdict: str) -> None:
    rows = [make_record(image_id=str(i), loss_move=move) for i, move in enumerate(moves)]
    found = _only(converged(group_cells(rows)))
    assert (found.check, found.verdict, found.value) == ("16-converged", verdict, sum(moves) / 2)


def test_16_catches_a_short_attack_that_flatters() -> None:
    # PGD-20 leaves 20.1 dB, PGD-100 with three starts 14.8 dB
    short = make_cell([20.3, 19.9], cell="short", label="pgd steps=20 | none", grad_evals=20)
    long = [
        make_record(image_id=i, cell="long", label="pgd steps=100 | none", grad_evals=100, restart=r, psnr_adv=v)
        for i, v in (("0000", 14.9), ("0001", 14.7))
        for r in range(3)
    ]
    found = _only(converged(group_cells(short + long)))
    assert (found.verdict, found.cell, found.value) == ("warn", "short", pytest.approx(5.3))
    assert "pgd steps=100 leaves 5.30 dB less" in found.message


def test_16_is_content_where_twice_as_many_steps_change_nothing() -> None:
    short = make_cell([15.0], cell="short", grad_evals=20)
    long = make_cell([14.95], cell="long", grad_evals=40)
    assert _only(converged(group_cells(short + long))).verdict == "pass"
    other = make_cell([5.0], cell="long", grad_evals=40, objective="ssim")
    assert _only(converged(group_cells(short + other))).cell is None


def test_16_leaves_single_steps_and_queries_alone() -> None:
    single = make_cell([15.0], attack="fgsm", grad_evals=1, loss_move=1.0)
    found = _only(converged(group_cells(single + make_cell([15.0], **QUERY | {"loss_move": 1.0}))))
    assert (found.verdict, found.cell) == ("info", None)


def test_19_wants_three_starts() -> None:
    def with_starts(count: int) -> CheckResult:
        return _only(restarts(group_cells([make_record(restart=r) for r in range(count)])))

    assert [with_starts(n).verdict for n in (1, 2, 3, 4)] == ["warn", "warn", "pass", "pass"]
    assert with_starts(2).value == 2
    for other in ({"attack": "cw", "eps": None, "norm": "l2"}, {"attack": "fgsm", "grad_evals": 1}, QUERY):
        assert _only(restarts(group_cells(make_cell([15.0], **other)))).cell is None


def test_20_wants_two_losses_for_every_victim() -> None:
    one = make_cell([15.0], cell="weak") + make_cell([12.0], cell="strong", norm="l2")
    found = _only(losses(group_cells(one)))
    assert (found.verdict, found.cell, found.value) == ("warn", "strong", 1)
    two = make_cell([16.0], attack="ssim-pgd", objective="ssim")
    assert _only(losses(group_cells(one + two))).verdict == "pass"
    assert _only(losses(group_cells(one + make_cell([16.0], attack="cw", norm="l2", eps=None)))).verdict == "pass"
    blind: dict[str, Any] = {"defense": "jpeg", "grad_mode": "blind", "objective": "ssim"}
    assert _only(losses(group_cells(one + make_cell([16.0], **blind)))).verdict == "warn"


def test_28_wants_an_attack_beyond_balls() -> None:
    inside = make_cell([15.0]) + make_cell([15.0], attack="cw", norm="l2", eps=None)
    found = _only(beyond_lp(group_cells(inside)))
    assert (found.verdict, found.cell, "low-frequency" in found.message) == ("warn", None, True)
    waves = make_cell([15.0], attack="udc_ray.attacks.low_frequency:LowFrequency", norm="l2", eps=None)
    assert _only(beyond_lp(group_cells(inside + waves))).verdict == "pass"
    controls = make_cell([26.0], attack="noise", grad_evals=0)
    assert _only(beyond_lp(group_cells(controls))).verdict == "info"


BROKEN: dict[str, Any] = {"defense": "broken-control", "grad_mode": "full"}


def _flag(check: str, verdict: Any, cell: str) -> CheckResult:
    return CheckResult(check=check, cell=cell, verdict=verdict)


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        ([("06-zero-gradient", "fail")], "pass"),
        ([("14-adaptive-noise", "fail")], "pass"),
        ([("06-zero-gradient", "warn"), ("05-gradient", "pass")], "fail"),
        ([("16-converged", "fail"), ("03-within-budget", "fail")], "fail"),
    ],
)
def test_23_fails_where_nothing_notices_the_broken_defence(flags: list[tuple[str, Any]], verdict: str) -> None:
    cells = group_cells(make_cell([25.0], **BROKEN))
    results = [_flag(check, found, cells[0].head.cell) for check, found in flags]
    assert _only(known_broken(cells, results)).verdict == verdict
    elsewhere = [_flag("06-zero-gradient", "fail", "another cell")]
    assert _only(known_broken(cells, elsewhere)).verdict == "fail"


def test_23_says_how_to_add_it() -> None:
    bpda = make_cell([15.0], defense="broken-control", grad_mode="bpda")
    for rows in (make_cell([15.0]), bpda):
        found = _only(known_broken(group_cells(rows), []))
        assert (found.verdict, "{name: broken-control, grad_mode: [full, bpda]}" in found.message) == ("info", True)
