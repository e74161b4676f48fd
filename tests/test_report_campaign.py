"""The rows of a campaign and its report on the console."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from audited_runs import honest_run
from record_factory import QUERY, make_cell, make_record
from rich.console import Console

from udc_ray.checks import CheckResult, run_checks
from udc_ray.metered.account import Account, Counts
from udc_ray.metrics.survival import clopper_pearson
from udc_ray.records import Record
from udc_ray.report.campaign import BILL, Sends, build_campaign_summary
from udc_ray.report.campaign_console import print_campaign
from udc_ray.report.curves import Curve, psnr
from udc_ray.report.summary import Summary, build_summary, dumps
from udc_ray.report.table import Row
from udc_ray.rundir import RunDirectory
from udc_ray.spec import parse_spec

SPEC = parse_spec(
    {
        "attacks": ["noise", {"name": "square", "budget": 1000}, {"name": "simba", "budget": 300}],
        "defenses": ["none", "jpeg", "gaussian-noise"],
    }
)
QUICK: Curve = [(1, 0.004), (40, 0.01), (800, 0.02)]
"""23.98, 20 and 16.99 dB."""
SLOW: Curve = [(1, 0.0017), (290, 0.0025)]
"""27.7 and 26.02 dB: 1.98 below the clean 28."""


def cell(curves: Sequence[Curve], budget: int = 1000, **columns: Any) -> tuple[list[Record], dict[str, Curve]]:
    """A cell of a query attack that was evaluated where its curves end."""
    records = [
        make_record(
            **QUERY
            | {"image_id": f"{i:04d}", "budget": budget, "queries": budget, "psnr_adv": psnr(curve[-1][1])}
            | {"success": 28.0 - psnr(curve[-1][1]) >= 3.0}
            | columns
        )
        for i, curve in enumerate(curves)
    ]
    return records, {f"{r.cell}/{r.image_id}/0": curve for r, curve in zip(records, curves, strict=True)}


def campaign(n: int = 4) -> tuple[list[Record], dict[str, Curve]]:
    half = n // 2
    square, curves = cell([QUICK] * half + [SLOW] * (n - half))
    simba, more = cell([SLOW] * n, budget=300, attack="simba", norm="linf")
    seen, others = cell([QUICK] * n, defense="gaussian-noise", grad_mode="full", success=True)
    noise = make_cell([26.0] * n, attack="noise", grad_evals=0, success=False)
    blind = make_cell([22.0] * n, **QUERY | {"defense": "jpeg", "grad_mode": "blind", "queries": 1000, "budget": 1000})
    return [*noise, *square, *simba, *blind, *seen], {**curves, **more, **others}


def find(summary: Summary, metric: str, **columns: Any) -> Row:
    rows = [r for r in summary.rows if r.metric == metric and all(getattr(r, k) == v for k, v in columns.items())]
    assert len(rows) == 1, rows
    return rows[0]


def summarised(n: int = 4, **options: Any) -> Summary:
    records, curves = campaign(n)
    return build_campaign_summary(records, curves, SPEC, run_checks(records, SPEC), **options)


def test_quality_is_read_at_every_budget_and_the_last_is_the_evaluations() -> None:
    summary = summarised()
    mine = [r for r in summary.rows if r.metric == "psnr_adv" and r.attack == "square" and r.defense == "none"]
    assert [r.budget for r in mine] == [100, 300, 1000]
    assert mine[0].mean == pytest.approx((20.0 + psnr(0.0017)) / 2)
    assert mine[1].mean == pytest.approx((20.0 + psnr(0.0025)) / 2)
    assert mine[2].mean == pytest.approx((psnr(0.02) + psnr(0.0025)) / 2)
    assert (mine[0].worst, mine[0].worst_image, mine[0].n, mine[0].of) == (pytest.approx(20.0), "0000", 4, 4)
    assert mine[0].ci_low is not None and mine[0].note == "n = 4, too few for a claim"


def test_success_counts_the_failures_with_an_exact_interval_at_every_budget() -> None:
    summary = summarised()
    for budget, harmed in ((100, 2), (300, 2), (1000, 2)):
        row = find(summary, "success", attack="square", defense="none", grad_mode="full", budget=budget)
        exact = clopper_pearson(harmed, 4)
        assert (row.mean, row.ci_low, row.ci_high, row.n) == (0.5, exact.ci_low, exact.ci_high, 4)


def test_queries_to_success_count_failures_as_the_budget() -> None:
    summary = summarised()
    mine = {"attack": "square", "defense": "none"}
    assert find(summary, "queries_restricted_mean", budget=1000, **mine).mean == (1 + 1 + 1000 + 1000) / 4
    assert find(summary, "queries_restricted_mean", budget=100, **mine).mean == (1 + 1 + 100 + 100) / 4
    median = find(summary, "queries_median", budget=1000, **mine)
    assert (median.mean, median.ci_low, median.ci_high) == (1, 1, None)  # half of the images: just a median
    never = find(summary, "queries_median", budget=300, attack="simba")
    assert never.mean is None and "fewer than half succeeded: 0 of 4 images" in never.note
    three, six = (find(summary, f"queries_to_{d}db", budget=1000, **mine) for d in (3, 6))
    assert three.mean == 500.5 and "reached on 2 of 4 images, median 1; others count as 1000" in three.note
    assert six.mean == (40 + 40 + 1000 + 1000) / 4
    assert find(summary, "queries_to_1db", attack="simba").mean == 290


def test_a_cut_short_image_counts_as_a_failure_and_it_is_said() -> None:
    records, curves = cell([QUICK, SLOW])
    short = [r if r.image_id == "0000" else make_record(**vars(r) | {"budget": 290, "queries": 290}) for r in records]
    summary = build_campaign_summary(short, curves, SPEC)
    row = find(summary, "queries_restricted_mean", budget=1000)
    assert row.mean == 500.5 and "1 images were cut short before 1000 queries and count as failures" in row.note
    reading = find(summary, "psnr_adv", budget=300)
    assert (reading.n, reading.of) == (1, 2) and "1 of 2 images" in reading.note
    assert "1 images were cut short and stand as they were" in find(summary, "psnr_adv", budget=1000).note


def test_what_the_attacker_of_a_random_victim_saw_is_no_psnr_adv() -> None:
    summary = summarised()
    seen = [r for r in summary.rows if r.defense == "gaussian-noise" and r.cell is not None]
    assert [r.budget for r in seen if r.metric == "psnr_seen"] == [100, 300, 1000]
    assert [r.budget for r in seen if r.metric == "psnr_adv"] == [1000]
    assert [r.budget for r in seen if r.metric == "success_seen"] == [100, 300, 1000]
    assert all("random" in r.note for r in seen if r.metric in {"psnr_seen", "success_seen", "queries_median"})
    assert not [r for r in summary.rows if r.defense == "gaussian-noise" and r.metric == "robust_psnr" and r.budget]


def test_the_worst_over_attacks_is_read_at_every_budget() -> None:
    summary = summarised()
    mine = [r for r in summary.rows if r.metric == "robust_psnr" and r.defense == "none"]
    assert [r.budget for r in mine] == [100, 300, None]
    # Per image: square found more on two images, and both attacks as much on the others.
    assert mine[0].mean == pytest.approx((20.0 + psnr(0.0017)) / 2)
    assert mine[1].mean == pytest.approx((20.0 + psnr(0.0025)) / 2)


def test_the_bill_counts_a_chain_once_and_a_blind_cell_not_at_all() -> None:
    records, curves = campaign()
    doubled = [make_record(**vars(r) | {"sample": 1}) for r in records if r.defense == "gaussian-noise"]
    summary = build_campaign_summary([*records, *doubled], curves, SPEC)
    totals = {r.metric: r.mean for r in summary.rows if r.cell is None and r.metric in BILL}
    assert totals == {
        "queries_asked": 4 * (1000 + 300 + 1000),
        "queries_from_memory": 0,
        "queries_sent": 4 * (1000 + 300 + 1000),
        "queries_unknown": 0,
        "queries_harness": 6 * 4 * 5,
        "queries_reexecuted": 0,
    }
    assert find(summary, "queries_asked", attack="simba").mean == 1200


def test_a_metered_target_is_billed_by_its_account() -> None:
    account = Account(
        target="http://h/r",
        budget=99,
        parts={("c", "attack"): Counts(answered=40, unknown=2), ("", "harness"): Counts(answered=5)},
        outstanding=3,
    )
    assert Sends.of([]) is None and Sends.from_devices({"local": {"device": "cpu"}}) is None
    assert Sends.from_devices({"local": {"account": account.document()}}) == Sends.of([account])
    summary = summarised(sends=Sends.of([account]))
    totals = {r.metric: r.mean for r in summary.rows if r.cell is None}
    assert (totals["queries_sent"], totals["queries_unknown"]) == (50, 5)
    assert not [r for r in summary.rows if r.cell is not None and r.metric == "queries_sent"]


def test_rows_of_an_evaluation_stay_as_they_are() -> None:
    records, curves = campaign()
    plain = build_summary(records, SPEC).rows
    ours = build_campaign_summary(records, curves, SPEC).rows
    kept = [r for r in ours if r in plain]
    assert kept == [r for r in plain if r.metric != "success" or r.attack == "noise" or r.grad_mode == "blind"]


def test_the_summary_depends_on_no_order_and_reads_back() -> None:
    records, curves = campaign()
    shuffled = random.Random(0).sample(records, len(records))
    turned = dict(reversed(curves.items()))
    one, other = (build_campaign_summary(r, c, SPEC) for r, c in ((records, curves), (shuffled, turned)))
    text = dumps(one.to_json())
    assert text == dumps(other.to_json())
    assert Summary.from_json(json.loads(text)) == one


def printed(summary: Summary, checks: Sequence[CheckResult] = (), width: int = 100) -> str:
    out = io.StringIO()
    print_campaign(Console(file=out, width=width, no_color=True, force_terminal=False), summary, checks, "runs/demo")
    return out.getvalue()


def test_the_report_reads_well_at_100_columns() -> None:
    text = printed(summarised(8))
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for part in (
        "campaign on default · data shipped · 8 images",
        "Target: default, undefended",
        "Target: default, behind jpeg, with images made against the undefended model",
        "Target: default, behind gaussian-noise, attacked as a whole (full)",
        "as the attacker saw it",
        "100 queries",
        "1000 queries",
        "within 300",
        "4/8",
        "[0.16,0.84]",
        "never",
        "asked by the attacks",
        "answered from memory",
        "re-executed after a loss",
        "robust: worst",
        "Under linf 8/255 the undefended model keeps",
        "run: runs/demo",
    ):
        assert part in text, part


def test_many_budgets_are_put_below_one_another() -> None:
    curve: Curve = [(1, 0.002), (9000, 0.01)]
    records, curves = cell([curve] * 2, budget=20_000)
    text = printed(build_campaign_summary(records, curves, SPEC))
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"{q} queries" in text for q in (100, 300, 1000, 3000, 10_000, 20_000))


def test_a_failed_check_marks_the_numbers_of_its_cell() -> None:
    records, curves = campaign()
    failed = CheckResult(check="13-white-box", cell=records[4].cell, verdict="fail", message="weak")
    text = printed(build_campaign_summary(records, curves, SPEC, [failed]), [failed])
    assert "! fail 13-white-box" in text and "20.79!" not in text and "22.03!" not in text.split("jpeg")[1]
    assert "!" not in printed(build_campaign_summary(records, curves, SPEC)).replace("[!", "")


def test_a_campaign_of_failures_or_of_controls_only_is_printed() -> None:
    failed = make_record(**QUERY | {"psnr_adv": None, "error": "boom", "stop_reason": "error", "queries": None})
    assert "0 of 1 images" in printed(build_campaign_summary([failed], {}, SPEC))
    noise = make_cell([26.0, 25.0], attack="noise", grad_evals=0, success=False)
    assert "25.50" in printed(build_campaign_summary(noise, {}, SPEC))


def test_minimum_norm_searches_show_their_distances() -> None:
    distance: Curve = [(7, 9.0), (90, 2.5)]
    records, curves = cell([distance] * 2, budget=300, attack="hopskipjump", norm="l2", eps=None, psnr_adv=25.0)
    summary = build_campaign_summary(records, curves, SPEC)
    assert [(r.budget, r.mean) for r in summary.rows if r.metric == "l2"] == [(100, 2.5), (300, 2.5)]
    assert find(summary, "queries_median", budget=300).mean == 7
    assert "l2 distance of the closest success so far" in printed(summary)


def test_the_smallest_harmful_eps_is_shown_in_255ths_with_those_that_were_not_harmed() -> None:
    records, curves = cell([[(7, 12 / 255), (90, 4 / 255)]] * 2, attack="find-eps", eps=None, psnr_adv=25.0)
    censored = make_record(**vars(records[0]) | {"image_id": "z", "psnr_adv": 27.9, "success": False})
    summary = build_campaign_summary([*records, censored], curves, SPEC)
    row = find(summary, "eps", budget=100)
    assert (row.mean, row.n, row.of) == (pytest.approx(4 / 255), 2, 3) and "upper bound" in row.note
    text = printed(summary)
    assert "Smallest eps so far that harmed" in text and "4.00/255" in text and "2 of 3" in text


def test_a_classifier_is_reported_in_accuracy() -> None:
    columns: dict[str, Any] = {
        "objective": "margin", "psnr_clean": None, "psnr_adv": None, "psnr_noise": None, "psnr_degraded": None,
        "ssim_clean": None, "ssim_adv": None, "score_clean": 1.0, "score_noise": 1.0,
    }  # fmt: skip
    lost: Curve = [(1, -3.0), (200, 0.5)]
    kept: Curve = [(1, -3.0), (900, -0.5)]
    records, curves = cell([lost] * 6 + [kept] * 4, **columns)
    scored = [
        make_record(**vars(r) | {"score_adv": float(n >= 6), "success": n < 6, "psnr_adv": None})
        for n, r in enumerate(records)
    ]
    summary = build_campaign_summary(scored, curves, parse_spec({"attacks": ["square"], "objective": "margin"}))
    mine = [(r.budget, r.mean) for r in summary.rows if r.metric == "score_adv"]
    assert mine == [(100, 1.0), (300, 0.4), (1000, 0.4)]
    robust = [(r.budget, r.mean, r.ci_low) for r in summary.rows if r.metric == "robust_score"]
    assert [r[:2] for r in robust] == [(100, 1.0), (300, 0.4), (None, 0.4)]
    assert robust[1][2] == robust[2][2] != robust[0][2]  # the interval of a rate, at every budget
    assert find(summary, "queries_median", budget=1000).mean == 200
    text = printed(summary)
    assert "Accuracy in %" in text and "40.0" in text and "6/10" in text and "dB" not in text


def test_on_a_real_run_the_curve_meets_the_evaluation() -> None:
    run = RunDirectory.read(str(honest_run()))
    summary = build_campaign_summary(run.records(), run.curves(), run.header.spec)
    square = [r for r in summary.rows if r.metric == "psnr_adv" and r.attack == "square" and r.defense == "none"]
    assert [r.budget for r in square] == [10, 24]
    assert square[0].mean is not None and square[1].mean is not None and square[0].mean > square[1].mean
    by_hand = [r.psnr_adv for r in run.records() if r.attack == "square" and r.defense == "none"]
    assert square[1].mean == pytest.approx(np.mean([p for p in by_hand if p is not None]))
