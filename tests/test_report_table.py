from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from record_factory import QUERY, make_cell, make_record

from udc_ray.checks import CheckResult, run_checks
from udc_ray.errors import RunDirectoryError
from udc_ray.records import Record
from udc_ray.report.summary import Summary, build_summary, dumps
from udc_ray.report.table import Row, make_rows
from udc_ray.spec import parse_spec

SPEC = parse_spec({"attacks": ["pgd", "square", "cw"], "defenses": ["none", "jpeg"]})


def _find(rows: list[Row], metric: str, **columns: Any) -> Row:
    found = [r for r in rows if r.metric == metric and all(getattr(r, k) == v for k, v in columns.items())]
    assert len(found) == 1, found
    return found[0]


def _run() -> list[Record]:
    return [
        *make_cell([15.0, 18.0, 16.0]),
        *make_cell([17.0, 14.0, 19.0], **QUERY),
        *make_cell([9.0, 9.0, 9.0], attack="cw", norm="l2", eps=None),
        *make_cell([20.0, 21.0, 22.0], defense="jpeg", grad_mode="blind"),
        *make_cell([17.0, 23.0, 16.0], defense="jpeg", grad_mode="bpda"),
    ]


def test_a_cell_is_the_mean_over_images_with_its_worst_image() -> None:
    row = _find(make_rows(_run(), SPEC), "psnr_adv", attack="pgd", defense="none")
    assert (row.mean, row.n, row.of) == (pytest.approx(49 / 3), 3, 3)
    assert (row.worst, row.worst_image) == (15.0, "0000")
    assert row.ci_low is not None and row.ci_high is not None and 15 <= row.ci_low < row.ci_high <= 18
    assert row.note == "upper bound on robustness, not converged; n = 3, too few for a claim"


def test_a_drop_has_its_own_paired_interval() -> None:
    records = [make_record(image_id=str(i), psnr_clean=20.0 + 3 * i, psnr_adv=15.0 + 3 * i) for i in range(8)]
    rows = make_rows(records, SPEC)
    drop = _find(rows, "drop_psnr")
    assert (drop.mean, drop.ci_low, drop.ci_high) == pytest.approx((5.0, 5.0, 5.0))
    assert drop.note == "upper bound on robustness, not converged"


def test_the_worst_of_a_drop_is_the_largest() -> None:
    row = _find(make_rows(make_cell([15.0, 12.0]), SPEC), "drop_psnr")
    assert (row.worst, row.worst_image) == (16.0, "0001")


def test_robust_is_the_per_image_worst_over_attacks_without_minimum_norm_ones() -> None:
    row = _find(make_rows(_run(), SPEC), "robust_psnr", defense="none")
    assert row.mean == pytest.approx(np.mean([15.0, 14.0, 16.0]))
    assert (row.cell, row.norm, row.eps, row.grad_mode) == (None, "linf", 8 / 255, "full")
    assert row.label == "robust linf 8/255 | none"


def test_robust_has_a_row_a_mode_and_one_over_all_modes() -> None:
    rows = make_rows(_run(), SPEC)
    means = {r.grad_mode: r.mean for r in rows if r.metric == "robust_psnr" and r.defense == "jpeg"}
    assert means == {
        "blind": pytest.approx(21.0),
        "bpda": pytest.approx(56 / 3),
        None: pytest.approx(np.mean([17.0, 21.0, 16.0])),
    }


def test_robust_takes_the_worst_restart_and_keeps_radii_apart() -> None:
    records = [make_record(restart=r, psnr_adv=v) for r, v in enumerate((15.0, 13.0))] + make_cell([20.0], eps=1 / 255)
    robust = {r.eps: r.mean for r in make_rows(records, SPEC) if r.metric == "robust_psnr"}
    assert robust == {8 / 255: 13.0, 1 / 255: 20.0}


def test_failed_units_are_counted_not_averaged() -> None:
    failed = make_record(image_id="x", psnr_adv=None, psnr_clean=None, error="boom", stop_reason="error")
    rows = make_rows([*make_cell([15.0, 16.0]), failed], SPEC)
    row = _find(rows, "psnr_adv")
    assert (row.n, row.of, row.mean) == (2, 3, 15.5)
    assert "2 of 3 images" in row.note
    assert "1 images lack an attack" in _find(rows, "robust_psnr").note
    alone = _find(make_rows([failed], SPEC), "psnr_adv")
    assert (alone.mean, alone.n, alone.of) == (None, 0, 1)


def test_a_success_rate_has_a_wilson_interval() -> None:
    records = [make_record(image_id=str(i), success=i < 3) for i in range(4)]
    row = _find(make_rows(records, SPEC), "success")
    assert (row.mean, row.ci_low, row.ci_high) == pytest.approx((0.75, 0.3006, 0.9544), abs=1e-4)


def test_failed_checks_stand_at_the_number_and_at_the_worst_over_it() -> None:
    records = _run()
    check = CheckResult(check="12-iterative", cell=records[0].cell, verdict="fail")
    warn = CheckResult(check="27-sample-size", cell=records[0].cell, verdict="warn")
    rows = make_rows(records, SPEC, [check, warn])
    assert _find(rows, "psnr_adv", attack="pgd", defense="none").failed_checks == ("12-iterative",)
    assert _find(rows, "psnr_adv", attack="square").failed_checks == ()
    assert _find(rows, "robust_psnr", defense="none").failed_checks == ("12-iterative",)
    assert _find(rows, "robust_psnr", defense="jpeg", grad_mode="blind").failed_checks == ()


def test_rows_stand_in_the_order_of_the_spec() -> None:
    rows = make_rows(list(reversed(_run())), SPEC)
    assert list(dict.fromkeys((r.defense, r.attack) for r in rows)) == [
        ("none", "pgd"), ("none", "square"), ("none", "cw"), ("none", None), ("jpeg", "pgd"), ("jpeg", None),
    ]  # fmt: skip


def test_the_summary_does_not_depend_on_the_order_of_records() -> None:
    records = _run()
    shuffled = random.Random(0).sample(records, len(records))
    documents = [dumps(build_summary(r, SPEC, run_checks(r, SPEC)).to_json()) for r in (records, shuffled)]
    assert documents[0] == documents[1]


def test_the_summary_reads_back_and_holds_no_nan() -> None:
    records = [*_run(), *make_cell([math.nan, 15.0], attack="fgsm", seconds=math.inf)]
    summary = build_summary(records, SPEC)
    text = dumps(summary.to_json())
    document = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert document["schema_version"] == 1
    assert Summary.from_json(document) == summary
    assert (
        Summary.from_json({**document, "later": 1, "rows": [{**document["rows"][0], "later": 2}]}).rows[0]
        == summary.rows[0]
    )


def test_a_broken_summary_is_one_message() -> None:
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        Summary.from_json({"schema_version": 1})
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        Summary.from_json({"rows": [3]})


def test_a_run_without_records_is_one_message() -> None:
    with pytest.raises(RunDirectoryError, match="no results yet"):
        build_summary([], SPEC)
