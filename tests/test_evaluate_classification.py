"""A classifier through the whole of an evaluation: records, rows, checks and the console."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from run_doubles import make_host, run_all, small_run, stable

import udc_ray
from udc_ray.checks import run_checks
from udc_ray.failures import failed_records
from udc_ray.prepare import Prepared
from udc_ray.records import Record
from udc_ray.report.console import print_report
from udc_ray.report.summary import Summary, build_summary

IMAGES = Path(__file__).parent / "data" / "cifar10_test20.npz"
ATTACKS = ("noise:eps=0.05", "pgd:eps=0.05,steps=5", "square:eps=0.05,budget=120")
MISSED = "0001"
"""The image whose class is wrong in the file, so that no model finds it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images, one of them with a wrong class."""
    with np.load(IMAGES) as stored:
        images, labels = stored["x"][:9], stored["y"][:9].copy()
    labels[int(MISSED)] = (labels[int(MISSED)] + 5) % 10
    path = tmp_path_factory.mktemp("data") / "nine.npz"
    np.savez(path, x=images, y=labels)
    return path


def prepared(data: Path, *sets: str, **more: Any) -> Prepared:
    return small_run(*sets, **{"attacks": ATTACKS, "model": "cifar-resnet20", "data": str(data), **more})


@pytest.fixture(scope="module")
def run(data: Path) -> tuple[Prepared, list[Record]]:
    made = prepared(data)
    return made, run_all(make_host(made), made)


def of(records: Sequence[Record], attack: str) -> list[Record]:
    return [r for r in records if r.attack == attack]


def test_records_hold_scores_and_no_decibels(run: tuple[Prepared, list[Record]]) -> None:
    _, records = run
    assert len(records) == 27
    for record in records:
        assert all(
            getattr(record, name) is None for name in vars(record) if name.startswith(("psnr", "ssim_", "lpips"))
        )
        assert record.score_clean == float(record.image_id != MISSED)
        assert record.score_adv in (0.0, 1.0) and record.score_noise in (0.0, 0.25, 0.5, 0.75, 1.0)
        assert (record.objective, record.protocol, record.perceptual) == ("margin", "top-1", None)
        assert record.linf is not None and record.linf <= 0.05 + 1e-6
        assert record.error is None


def test_success_is_known_for_images_that_were_right(run: tuple[Prepared, list[Record]]) -> None:
    _, records = run
    for record in records:
        right = record.image_id != MISSED
        assert record.success == ((record.score_adv == 0.0) if right else None)
    assert all(r.success for r in of(records, "pgd") if r.image_id != MISSED)


def test_a_query_attack_ends_at_its_success(run: tuple[Prepared, list[Record]], data: Path) -> None:
    _, records = run
    for record in of(records, "square"):
        assert record.queries is not None and record.queries <= 120
        assert (record.stop_reason == "success") == (record.score_adv == 0.0)
        assert record.stop_reason == "success" or record.queries == 120
    assert min(r.queries or 0 for r in of(records, "square")) < 60
    on = prepared(data, attacks=("square:eps=0.05,budget=12,stop=never",))
    assert [r.queries for r in run_all(make_host(on), on)] == [12] * 9


def test_the_scores_are_those_of_the_kept_images(run: tuple[Prepared, list[Record]]) -> None:
    made, records = run
    host = make_host(made)
    unit = next(
        u
        for u in made.setup.plan.units(made.setup.dataset.image_ids, 9)
        if made.setup.plan.attacks[u.attack].name == "pgd"
    )
    model = udc_ray.load("cifar-resnet20")
    for kept in host.run(unit).images:
        with torch.no_grad():
            found = int(model(torch.from_numpy(kept.x_adv)[None]).argmax())
        label = made.setup.dataset.load(kept.image_id).truth
        (record,) = [r for r in of(records, "pgd") if r.image_id == kept.image_id]
        assert record.score_adv == float(found == int(label if label is not None else -1))


def test_chunks_change_nothing(run: tuple[Prepared, list[Record]], data: Path) -> None:
    made = prepared(data)
    assert stable(run_all(make_host(made), made, chunk=2)) == stable(run[1])


def test_cross_entropy_guides_pgd_and_is_judged_by_the_margin(data: Path) -> None:
    made = prepared(
        data, attacks=("pgd:eps=0.05,steps=5,objective=cross-entropy", "fgsm:eps=0.05,objective=cross-entropy")
    )
    records = run_all(make_host(made), made)
    assert {r.objective for r in records} == {"cross-entropy"}
    assert all(r.success for r in of(records, "pgd") if r.image_id != MISSED)


def test_a_random_defence_is_scored_draw_by_draw(data: Path) -> None:
    made = prepared(
        data,
        "limit=3",
        attacks=("pgd:eps=0.05,steps=2",),
        defenses=("gaussian-noise:sigma=8,samples=3,grad_mode=bpda",),
    )
    records = [r for r in run_all(make_host(made), made) if r.defense != "none"]
    assert {r.sample for r in records} == {0, 1, 2} and len(records) == 9
    assert all(r.success is None or r.score_clean == 1.0 for r in records)


def test_the_worst_restart_is_kept(data: Path) -> None:
    made = prepared(data, attacks=("pgd:eps=0.004,steps=1,restarts=3",))
    records = run_all(make_host(made), made)
    (unit,) = made.setup.plan.units(made.setup.dataset.image_ids, 9)
    for kept in make_host(made).run(unit).images:
        mine = [r for r in records if r.image_id == kept.image_id]
        assert len(mine) == 3
        assert [r.score_adv for r in mine if r.restart == kept.restart] == [min(r.score_adv or 0.0 for r in mine)]


@cache
def _summary_key() -> frozenset[str]:
    return frozenset(
        {"score_clean", "score_noise", "score_adv", "drop_score", "queries", "grad_evals", "seconds", "success"}
    )


def summarised(run: tuple[Prepared, list[Record]]) -> Summary:
    made, records = run
    return build_summary(records, made.setup.spec, run_checks(records, made.setup.spec))


def test_rows_are_accuracies(run: tuple[Prepared, list[Record]]) -> None:
    _, records = run
    summary = summarised(run)
    rows = {(r.attack, r.metric): r for r in summary.rows}
    for attack in ("noise", "pgd", "square"):
        assert {metric for name, metric in rows if name == attack} == _summary_key()
        clean, adv = rows[attack, "score_clean"], rows[attack, "score_adv"]
        assert clean.mean == pytest.approx(8 / 9)
        assert adv.mean == pytest.approx(np.mean([r.score_adv for r in of(records, attack)]))
        assert rows[attack, "drop_score"].mean == pytest.approx((clean.mean or 0) - (adv.mean or 0))
    harmed = rows["pgd", "success"]
    assert (harmed.mean, harmed.n, harmed.of) == (1.0, 8, 9)
    (robust,) = [r for r in summary.rows if r.cell is None]
    worst = np.min([[r.score_adv for r in of(records, a)] for a in ("noise", "pgd", "square")], axis=0)
    assert robust.metric == "robust_score" and robust.mean == pytest.approx(worst.mean())
    # All missed: a bootstrap of equal values has no width, Wilson's interval has.
    assert rows["pgd", "score_adv"].mean == 0.0 and (rows["pgd", "score_adv"].ci_high or 0) == pytest.approx(
        0.2992, abs=1e-4
    )


def test_checks_are_made_on_accuracies(run: tuple[Prepared, list[Record]]) -> None:
    made, records = run
    found = {(c.check, c.verdict) for c in run_checks(records, made.setup.spec)}
    assert not [check for check, verdict in found if verdict == "fail"]
    # a short run of one attack from one start: said, and no fault of the task
    thin = {"16-converged", "19-restarts", "20-losses", "28-beyond-lp"}
    assert {check for check, verdict in found if verdict == "warn"} <= thin
    assert {("14-adaptive-noise", "pass"), ("22-breakable", "pass"), ("13-white-box", "pass")} <= found


def test_the_console_speaks_of_accuracy(run: tuple[Prepared, list[Record]]) -> None:
    out = io.StringIO()
    checks = run_checks(run[1], run[0].setup.spec)
    print_report(Console(file=out, width=100, no_color=True), summarised(run), checks)
    text = out.getvalue()
    assert "accuracy" in text and "dB" not in text and "degraded" not in text
    assert "88.9" in text and "8/8" in text and "Under linf 0.05 the undefended model keeps 0.0 % accuracy" in text
    assert all(len(line.rstrip()) <= 100 for line in text.splitlines())


def test_a_unit_that_failed_still_has_its_row(run: tuple[Prepared, list[Record]]) -> None:
    made, _ = run
    (unit, *_) = made.setup.plan.units(made.setup.dataset.image_ids, 9)
    records = failed_records(made.setup, unit, "boom", "host", 0)
    rows = build_summary(records, made.setup.spec).rows
    assert [(r.metric, r.n, r.of) for r in rows if r.cell is not None] == [("score_adv", 0, 9)]
    print_report(Console(file=io.StringIO(), width=100), build_summary(records, made.setup.spec), [])
