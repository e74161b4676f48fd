"""Readings of curves, and the figures that are drawn from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_factory import QUERY, make_record
from skimage.metrics import peak_signal_noise_ratio

from udc_ray.records import Record
from udc_ray.report.curve_plots import campaign_figures, quality_against_queries, query_grid, success_against_queries
from udc_ray.report.curves import CellCurves, Curve, best_at, budgets_read, cell_curves, first_within, psnr
from udc_ray.spec import parse_spec

CURVE: Curve = [(1, 0.001), (4, 0.004), (50, 0.01)]
"""30, 23.98 and 20 dB."""


def spec(**values: Any) -> Any:
    return parse_spec({"attacks": [{"name": "square", "budget": 200}], "defenses": ["none", "gaussian-noise"]} | values)


def query_record(**columns: Any) -> Record:
    return make_record(**QUERY | {"psnr_clean": 28.0, "psnr_adv": 20.0} | columns)


def read(
    records: list[Record], curves: dict[str, Curve], *, read_at: tuple[int, ...] = (), **values: Any
) -> CellCurves:
    """The curves of the only cell; curves by ``image/restart``."""
    named = {f"{records[0].cell}/{key}": curve for key, curve in curves.items()}
    [found] = cell_curves(records, named, spec(**values), read_at).values()
    return found


def test_a_score_is_read_as_scikit_images_psnr() -> None:
    rng = np.random.default_rng(0)
    truth, output = rng.random((3, 8, 8)), rng.random((3, 8, 8))
    score = float(((truth - output) ** 2).mean())
    assert psnr(score) == pytest.approx(peak_signal_noise_ratio(truth, output, data_range=1), abs=1e-10)
    assert psnr(0.0) == psnr(1e-12) == 100.0


def test_the_best_so_far_is_that_of_the_last_point_before() -> None:
    assert [best_at(CURVE, q) for q in (0, 1, 3, 4, 49, 50, 10**9)] == [None, 0.001, 0.001, 0.004, 0.004, 0.01, 0.01]
    assert first_within(CURVE, lambda v: v >= 0.004) == 4
    assert first_within(CURVE, lambda v: v > 0.01) is None


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 1)), max_size=20), st.integers(0, 400))
def test_readings_agree_with_a_plain_search(points: list[tuple[int, float]], queries: int) -> None:
    best, curve = -math.inf, []
    for asked, value in sorted(dict(points).items()):
        if value > best:
            best = value
            curve.append((asked, value))
    known = [v for q, v in sorted(dict(points).items()) if q <= queries]
    assert best_at(curve, queries) == max(known, default=None)


@pytest.mark.parametrize(
    ("budget", "others", "expected"),
    [
        (200, (), (100, 200)),
        (10_000, (), (100, 300, 1000, 3000, 10_000)),
        (60, (20, 60, 500), (20, 60)),
        (20_000, (50,), (50, 100, 300, 1000, 3000, 10_000, 20_000)),
    ],
)
def test_budgets_are_read_below_their_own(budget: int, others: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert budgets_read(budget, others) == expected


def test_quality_at_a_budget_is_the_psnr_of_the_best_so_far() -> None:
    found = read([query_record()], {"0000/0": CURVE}, read_at=(3,))
    assert found.meaning.metric == "psnr_adv" and not found.meaning.note
    assert found.read_at == (3, 100, 200)
    assert found.at(3) == pytest.approx({"0000": 30.0})
    assert found.at(200) == pytest.approx({"0000": 20.0})


def test_smaller_budgets_of_the_spec_are_read() -> None:
    attacks = [{"name": "square", "budget": 200}, {"name": "square", "budget": 70}, {"name": "simba", "budget": 30}]
    assert read([query_record()], {"0000/0": CURVE}, attacks=attacks).read_at == (70, 100, 200)


def test_queries_to_a_drop_are_counted_from_the_clean_psnr_of_the_image() -> None:
    found = read([query_record()], {"0000/0": CURVE})
    assert found.to_drop(1.0) == {"0000": 4}
    assert found.to_drop(8.0) == {"0000": 50}
    assert found.to_drop(8.001) == {"0000": None}
    assert found.to_success() == {"0000": 4}
    assert read([query_record()], {"0000/0": CURVE}, success={"drop_db": 6}).to_success() == {"0000": 50}
    assert read([query_record()], {"0000/0": CURVE}, success={"psnr_below": 25}).to_success() == {"0000": 4}


def test_per_image_the_worst_restart_counts() -> None:
    records = [query_record(restart=r) for r in range(2)]
    found = read(records, {"0000/0": CURVE, "0000/1": [(1, 0.0005), (9, 0.02)]})
    assert found.restarts == 2
    assert found.at(4) == pytest.approx({"0000": psnr(0.004)})
    assert found.at(20) == pytest.approx({"0000": psnr(0.02)})
    assert found.to_drop(10.0) == {"0000": 9} and found.to_drop(1.0) == {"0000": 4}


def test_before_its_first_scored_candidate_an_attack_has_the_untouched_image() -> None:
    found = read([query_record()], {"0000/0": CURVE[1:]})
    assert found.at(2) == {"0000": 28.0}


def test_an_image_that_was_cut_short_is_no_reading_beyond() -> None:
    records = [query_record(), query_record(image_id="b", budget=60, queries=60)]
    found = read(records, {"0000/0": CURVE, "b/0": CURVE})
    assert set(found.at(60)) == {"0000", "b"} and set(found.at(100)) == {"0000"}
    assert set(found.at(200)) == {"0000", "b"}  # at the last budget it stands as it was
    assert found.cut_short(100) == {"b"} and not found.cut_short(60)
    ended = [query_record(), query_record(image_id="b", budget=60, queries=5, stop_reason="success")]
    assert set(read(ended, {"0000/0": CURVE, "b/0": CURVE}).at(200)) == {"0000", "b"}


def test_failed_units_and_borrowed_images_have_no_curve() -> None:
    failed = query_record(image_id="b", stop_reason="error", error="boom", queries=None, psnr_adv=None)
    assert [c.image_id for c in read([query_record(), failed], {"0000/0": CURVE}).chains] == ["0000"]
    blind = query_record(defense="jpeg", grad_mode="blind")
    assert cell_curves([blind], {f"{blind.cell}/0000/0": CURVE}, spec()) == {}


def test_what_an_attacker_of_a_random_victim_saw_is_no_evaluation() -> None:
    found = read([query_record(defense="gaussian-noise", grad_mode="full")], {"0000/0": CURVE})
    assert found.meaning.metric == "psnr_seen" and found.meaning.seen and "random" in found.meaning.note
    assert found.to_success() == {"0000": 4}
    declared = read([query_record()], {"0000/0": CURVE}, model={"name": "http://h/restore", "random": True})
    assert declared.meaning.metric == "psnr_seen"


@pytest.mark.parametrize(
    ("columns", "metric", "times"),
    [
        ({"objective": "mse-clean"}, "psnr_seen", None),  # against its own output: the truth is another reference
        ({"objective": "mse-clean", "psnr_clean": None}, "psnr_adv", None),  # no truth: that is what is evaluated
        ({"protocol": "discnet"}, "psnr_seen", {"0000": 4}),  # which rounds, as the attacker does not
        ({"protocol": "udc2020"}, "psnr_adv", {"0000": 4}),
        ({"objective": "ssim"}, "score_seen", None),
    ],
)
def test_the_reading_is_named_after_what_it_is(
    columns: dict[str, Any], metric: str, times: dict[str, int | None] | None
) -> None:
    found = read([query_record(**columns)], {"0000/0": CURVE})
    assert found.meaning.metric == metric and found.meaning.seen is metric.endswith("_seen")
    assert found.to_success() == times


def test_without_truth_an_absolute_level_decides() -> None:
    record = query_record(objective="mse-clean", psnr_clean=None)
    assert read([record], {"0000/0": CURVE}, success={"psnr_below": 21}).to_success() == {"0000": 50}
    against_itself = query_record(objective="mse-clean")
    assert read([against_itself], {"0000/0": CURVE}, success={"psnr_below": 21}).to_success() is None


def test_minimum_norm_searches_are_read_as_distances() -> None:
    columns: dict[str, Any] = {"attack": "hopskipjump", "norm": "l2", "eps": None}
    records = [query_record(**columns), query_record(image_id="b", **columns)]
    found = read(records, {"0000/0": [(7, 9.0), (90, 2.5)]})
    assert found.meaning.metric == "l2"
    assert found.at(6) == {} and found.at(50) == {"0000": 9.0} and found.at(200) == {"0000": 2.5}
    assert found.to_success() == {"0000": 7, "b": None}


def test_a_search_for_the_smallest_eps_is_read_as_an_upper_bound() -> None:
    found = read([query_record(attack="find-eps", eps=None)], {"0000/0": [(7, 12 / 255), (90, 4 / 255)]})
    assert found.meaning.metric == "eps" and "upper bound" in found.meaning.note
    assert found.at(50) == {"0000": 12 / 255} and found.at(200) == {"0000": 4 / 255}


CLASSES: dict[str, Any] = {"objective": "margin", "psnr_clean": None, "psnr_adv": None, "psnr_degraded": None}


def test_a_classifier_is_read_by_its_margin_and_images_missed_before_are_left_out() -> None:
    columns = {"score_clean": 1.0, "score_adv": 0.0, "success": True}
    records = [
        query_record(**CLASSES | columns),
        query_record(image_id="b", **CLASSES | columns | {"score_adv": 1.0, "success": False}),
        query_record(image_id="missed", **CLASSES | columns | {"score_clean": 0.0, "success": None}),
    ]
    curves: dict[str, Curve] = {
        "0000/0": [(3, -2.0), (9, 0.0)],  # a tie is missed
        "b/0": [(1, -5.0), (60, -1e-9)],
        "missed/0": [(1, 4.0)],
    }
    found = read(records, curves, objective="margin")
    assert found.meaning.metric == "score_adv" and not found.meaning.note
    assert found.at(2) == {"0000": 1.0, "b": 1.0, "missed": 0.0}
    assert found.at(200) == {"0000": 0.0, "b": 1.0, "missed": 0.0}
    assert found.to_success() == {"0000": 9, "b": None}
    assert found.to_drop(1.0) is None


def test_the_grid_is_whole_grows_and_ends_at_the_budget() -> None:
    for largest in (1, 2, 60, 10_000):
        grid = query_grid(largest)
        assert grid[0] == 1 and grid[-1] == largest and grid == sorted(set(grid))


def test_figures_are_drawn_where_there_is_something_to_draw(tmp_path: Path) -> None:
    images = ("0000", "b")
    found = read([query_record(image_id=i) for i in images], {f"{i}/0": CURVE for i in images})
    distances = read([query_record(eps=None, norm="l2", attack="rays")], {"0000/0": [(7, 9.0)]})
    nothing = read([query_record(objective="ssim")], {"0000/0": []})
    assert quality_against_queries(tmp_path / "a.png", {"square": found, "rays": distances}, seed=0)
    assert quality_against_queries(tmp_path / "b.png", {"rays": distances}, seed=0)
    assert success_against_queries(tmp_path / "c.png", {"square": found, "rays": distances, "x": nothing})
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert not quality_against_queries(tmp_path / "d.png", {}, seed=0)
    assert not success_against_queries(tmp_path / "d.png", {"x": nothing})
    assert not (tmp_path / "d.png").exists()


def test_a_campaign_has_figures_for_every_target_and_reading(tmp_path: Path) -> None:
    records = [
        query_record(),
        query_record(attack="simba", label="simba linf 8/255 | none"),
        query_record(attack="rays", eps=None),
        query_record(defense="gaussian-noise", grad_mode="full"),
    ]
    curves = {f"{r.cell}/0000/0": CURVE for r in records[:2] + records[3:]}
    curves[f"{records[2].cell}/0000/0"] = [(7, 9.0)]
    figures = campaign_figures(cell_curves(records, curves, spec()).values(), seed=0)
    assert set(figures) == {
        "none-psnr_adv-against-queries.png",
        "none-linf-against-queries.png",
        "none-success-against-queries.png",
        "gaussian-noise-full-psnr_seen-against-queries.png",
        "gaussian-noise-full-success-against-queries.png",
    }
    name = "none-success-against-queries.png"
    assert figures[name](tmp_path / name) and (tmp_path / name).stat().st_size > 1000
