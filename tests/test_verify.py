"""The audit: an honest run passes, and every kind of planted damage is found where it was planted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited_runs import (
    as_campaign,
    change_curve,
    change_image,
    change_json,
    change_records,
    copy_of,
    failing,
    forge,
    honest_run,
    parts,
    publish,
)
from rundir_doubles import open_run, record, unit

from udc_ray import partfiles
from udc_ray.checks import integrity
from udc_ray.metered.account import Account, Counts
from udc_ray.metered.leases import Leases
from udc_ray.metered.rows import QueryKey, Row
from udc_ray.records import Record
from udc_ray.rundir import RunDirectory
from udc_ray.states import decode_state, encode_state
from udc_ray.verify import verify
from udc_ray.verify.accounts import check_accounts
from udc_ray.verify.base import Finding, same_bits
from udc_ray.verify.evidence import read_evidence

PARTS, PUBLISHED = "parts and results.parquet", "summary.json and checks.json"
FINGERPRINTS, BUDGETS = "fingerprints, cells and hashes of files", "queries, budgets and success"
CURVES, STATES, IMAGES, SCORES = "curves", "states of query chains", "saved adversarial images", "scores"

Damage = Callable[[Path], Any]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return copy_of(honest_run(), tmp_path)


def square(r: Record) -> bool:
    return r.attack == "square" and r.grad_mode == "full"


def last_bit(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {**values, key: math.nextafter(values[key], math.inf)}


def in_row(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Changes the last bit of one number of the first row that holds it."""

    def change(document: dict[str, Any]) -> dict[str, Any]:
        place = next(n for n, row in enumerate(document["rows"]) if row[key] is not None)
        rows = [last_bit(row, key) if n == place else row for n, row in enumerate(document["rows"])]
        return {**document, "rows": rows}

    return change


def test_an_honest_run_holds_and_says_what_it_could_not_recompute(run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    found = verify(RunDirectory.read(str(run)))
    assert found.holds and found.numbers > 1000
    assert {f.name for f in found.findings if f.numbers} == {
        PARTS, PUBLISHED, FINGERPRINTS, BUDGETS, CURVES, STATES, IMAGES,
    }  # fmt: skip
    gaps = {gap.what: gap for f in found.findings for gap in f.gaps}
    assert "--rescore" in gaps["psnr, ssim, lpips and task scores"].why
    assert gaps["columns seconds, host, retries, queries_reexecuted"].count == 4 * len(
        RunDirectory.read(str(run)).records()
    )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before  # an audit writes nothing
    json.dumps(found.to_json(), allow_nan=False)


def test_the_report_of_a_campaign_is_recomputed_too(run: Path) -> None:
    as_campaign(run)
    assert failing(run) == {}
    rows = json.loads((run / "summary.json").read_text())["rows"]
    assert any(row["metric"] == "queries_restricted_mean" for row in rows)
    change_curve(run, "square", lambda curve: [[q + 1 if n else q, v] for n, (q, v) in enumerate(curve)])
    assert PUBLISHED in failing(run)


def test_an_audit_calls_no_target(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the target was called")

    monkeypatch.setattr("doubles.Conv.__init__", refuse)
    monkeypatch.setattr("doubles.Conv.forward", refuse)
    assert failing(run) == {}


RESULTS: dict[str, Damage] = {
    "a number in results.parquet": lambda run: change_records(
        run / "results.parquet", lambda r: replace(r, psnr_clean=math.nextafter(r.psnr_clean or 0.0, 0.0))
    ),
    "a count in results.parquet": lambda run: change_records(
        run / "results.parquet", lambda r: replace(r, grad_evals=1)
    ),
    "no results that can be read": lambda run: (run / "results.parquet").write_bytes(b"PAR1"),
    "a row less": lambda run: (run / "results.parquet").write_bytes(
        partfiles.encode_records(partfiles.decode_records((run / "results.parquet").read_bytes())[1:])
    ),
    "a missing part": lambda run: parts(run)[0].unlink(),
    "a torn part": lambda run: parts(run)[0].write_bytes(parts(run)[0].read_bytes()[:-40]),
    "a part of another name": lambda run: parts(run)[0].rename(run / "parts" / f"{'0' * 20}.parquet"),
    "a part twice": lambda run: (run / "parts" / f"{'0' * 20}.parquet").write_bytes(parts(run)[0].read_bytes()),
    "a foreign part": lambda run: _foreign_part(run),
    "a changed part": lambda run: change_records(parts(run)[0], lambda r: replace(r, psnr_noise=20.0)),
}


def _foreign_part(run: Path) -> None:
    records = partfiles.decode_records(parts(run)[0].read_bytes())
    foreign = [replace(r, run_fingerprint="0" * 64, image_id=f"{r.image_id}-2") for r in records]
    path = run / "parts" / f"{partfiles.part_name(foreign)}.parquet"
    path.write_bytes(partfiles.encode_records(foreign))


@pytest.mark.parametrize("damage", RESULTS)
def test_damage_to_parts_and_results_is_found(run: Path, damage: str) -> None:
    RESULTS[damage](run)
    assert PARTS in failing(run)


PUBLICATIONS: dict[str, Damage] = {
    "the last bit of a mean": lambda run: change_json(run, "summary.json", in_row("mean")),
    "the last bit of an interval": lambda run: change_json(run, "summary.json", in_row("ci_high")),
    "a note": lambda run: change_json(
        run, "summary.json", lambda d: {**d, "rows": [{**d["rows"][0], "note": ""}, *d["rows"][1:]]}
    ),
    "a row less": lambda run: change_json(run, "summary.json", lambda d: {**d, "rows": d["rows"][1:]}),
    "another seed": lambda run: change_json(run, "summary.json", lambda d: {**d, "seed": 1}),
    "a verdict": lambda run: change_json(run, "checks.json", lambda d: [{**d[0], "verdict": "info"}, *d[1:]]),
    "no checks": lambda run: change_json(run, "checks.json", lambda d: []),
}


@pytest.mark.parametrize("damage", PUBLICATIONS)
def test_damage_to_published_numbers_is_found_there_alone(run: Path, damage: str) -> None:
    PUBLICATIONS[damage](run)
    assert set(failing(run)) == {PUBLISHED}


COUNTS: dict[str, dict[str, Any]] = {
    "queries above the budget": {"queries": 25},
    "no count of queries": {"queries": None},
    "a success that is none": {"success": True},
    "a reason that no query attack has": {"stop_reason": "iterations"},
    "gradients": {"grad_evals": 3},
}


@pytest.mark.parametrize("damage", COUNTS)
def test_forged_counts_are_found_though_everything_published_agrees(run: Path, damage: str) -> None:
    was = forge(run, lambda r: square(r) and r.success is False, **COUNTS[damage])
    assert was.queries == was.budget == 24
    found = failing(run)
    assert BUDGETS in found and not {PARTS, PUBLISHED} & set(found)


def test_a_blind_cell_that_counts_otherwise_is_found(run: Path) -> None:
    forge(run, lambda r: r.attack == "simba" and r.grad_mode == "blind", queries=15)
    assert set(failing(run)) == {BUDGETS}


def test_a_failed_unit_with_a_score_is_found(run: Path) -> None:
    forge(run, square, stop_reason="error", error="boom")
    assert any("with scores" in m.message for m in failing(run)[BUDGETS].mismatches)


@pytest.mark.parametrize("bound", ["max_queries", "max_queries_per_cell", "max_queries_per_target"])
def test_an_account_that_was_exceeded_is_found(run: Path, bound: str) -> None:
    text = (run / "spec.yaml").read_text()
    (run / "spec.yaml").write_text(text.replace(f"{bound}: null", f"{bound}: 47"))
    found = failing(run)
    assert set(found) == {BUDGETS} and bound in found[BUDGETS].mismatches[0].message


IMAGE_DAMAGE: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], None]]] = {
    "a pixel elsewhere in the ball": ("square", lambda x, x_adv: x_adv.__setitem__((0, 0, 0), x[0, 0, 0])),
    "a value that is no number": ("square", lambda x, x_adv: x_adv.__setitem__((0, 0, 0), np.nan)),
    "a value outside the box": ("square", lambda x, x_adv: x_adv.__setitem__((0, 0, 0), -0.001)),
    "a value off the 8-bit grid": ("simba", lambda x, x_adv: x_adv.__setitem__((0, 0, 0), 0.4501)),
    "another untouched image": ("square", lambda x, x_adv: x.__iadd__(np.float32(1e-3))),
}


@pytest.mark.parametrize("damage", IMAGE_DAMAGE)
def test_damage_to_a_saved_image_is_found_there_alone(run: Path, damage: str) -> None:
    change_image(run, *IMAGE_DAMAGE[damage])
    assert set(failing(run)) == {IMAGES}


def test_an_image_outside_eps_is_found_though_its_norms_are_forged_to_fit(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "within_budget", lambda cells: [])  # the check that would mark the number
    norms: dict[str, float] = {}

    def push(x: np.ndarray, x_adv: np.ndarray) -> None:
        x_adv[0, 0, 0] = x[0, 0, 0] + np.float32(9 / 255) * (1 if x[0, 0, 0] < 0.5 else -1)
        delta = x_adv.astype(np.float64) - x
        norms.update(linf=float(np.abs(delta).max()), l2=float(np.linalg.norm(delta)))

    part, image_id = change_image(run, "square", push)
    change_records(part, lambda r: replace(r, **norms) if r.image_id == image_id else r)
    publish(run)
    found = failing(run)
    assert set(found) == {IMAGES}
    assert [m.message for m in found[IMAGES].mismatches] == [
        f"linf norm {norms['linf']:.9g} is outside eps {8 / 255:.9g}"
    ]


def test_an_image_that_was_not_saved_is_found(run: Path) -> None:
    change_image(run, "square", lambda x, x_adv: None)[0]
    next((run / "artifacts").iterdir()).unlink()
    found = failing(run)
    assert set(found) == {IMAGES} and "is not" in found[IMAGES].mismatches[0].message


CURVE_DAMAGE: dict[str, Callable[[list[list[float]]], list[list[float]] | None]] = {
    "a curve that decreases": lambda curve: [[curve[0][0], curve[1][1]], [curve[1][0], curve[0][1]], *curve[2:]],
    "queries that do not grow": lambda curve: [curve[0], [curve[0][0], curve[1][1]], *curve[2:]],
    "a point beyond what was asked": lambda curve: [*curve[:-1], [25, curve[-1][1]]],
    "a point before the first query": lambda curve: [[0, curve[0][1]], *curve[1:]],
    "an end that the record does not know": lambda curve: [*curve[:-1], [curve[-1][0], curve[-1][1] * 1.01]],
    "an infinite score": lambda curve: [*curve[:-1], [curve[-1][0], math.inf]],
    "no point": lambda curve: [],
    "no curve": lambda curve: None,
}


@pytest.mark.parametrize("damage", CURVE_DAMAGE)
def test_damage_to_a_curve_is_found(run: Path, damage: str) -> None:
    change_curve(run, "square", CURVE_DAMAGE[damage])
    found = failing(run)
    assert CURVES in found and set(found) <= {CURVES, STATES}


def test_a_forged_quality_does_not_meet_the_end_of_its_curve(run: Path) -> None:
    was = next(r for r in RunDirectory.read(str(run)).records() if square(r))
    assert was.psnr_adv is not None
    forge(run, lambda r: r.key == was.key, psnr_adv=was.psnr_adv + 0.001)
    found = failing(run)
    assert set(found) == {CURVES}
    assert found[CURVES].mismatches[0].recomputed == pytest.approx(was.psnr_adv, abs=1e-9)


def _some_state(run: Path) -> Path:
    return sorted((run / "state").glob("chain-*.npz"))[0]


def test_a_state_behind_its_record_or_with_another_curve_is_found(run: Path) -> None:
    path = _some_state(run)
    state = decode_state(path.read_bytes())
    path.write_bytes(encode_state({**state, "asked": 3}))
    assert set(failing(run)) == {STATES}
    path.write_bytes(encode_state({**state, "curve": state["curve"][:-1]}))
    assert set(failing(run)) == {STATES}
    path.write_bytes(encode_state({**state, "asked": 10_000}))  # it has gone on, and has no record of that yet
    assert failing(run) == {}
    path.write_bytes(b"torn")
    assert set(failing(run)) == {STATES}


def _replace_in(run: Path, name: str, old: str, new: str) -> None:
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new, 1))


def test_a_spec_that_was_changed_is_found(run: Path) -> None:
    _replace_in(run, "spec.yaml", "drop_db: 3.0", "drop_db: 2.0")
    assert FINGERPRINTS in failing(run)


def test_files_that_changed_since_are_found_by_their_hash(run: Path) -> None:
    document = json.loads((run / "fingerprint.json").read_text())
    name = next(key for key in document["files"] if key.startswith("data:"))
    document["files"][name] = "0" * 64
    (run / "fingerprint.json").write_text(json.dumps(document))
    messages = [m.message for m in failing(run)[FINGERPRINTS].mismatches]
    assert "the file has changed since" in messages and any("is not the hash" in m for m in messages)


def test_records_that_name_another_attack_are_found(run: Path) -> None:
    forge(run, square, eps=16 / 255)
    assert any(m.where.endswith("eps") for m in failing(run)[FINGERPRINTS].mismatches)


def test_a_run_without_its_document_does_not_hold(run: Path) -> None:
    (run / "fingerprint.json").unlink()
    assert FINGERPRINTS in failing(run)


def test_rescoring_gives_every_score_again_and_finds_what_nothing_else_can(run: Path) -> None:
    found = verify(RunDirectory.read(str(run)), rescore=True)
    scores = next(f for f in found.findings if f.name == SCORES)
    assert found.holds and scores.numbers > 200 and not scores.gaps
    was = forge(run, lambda r: r.grad_mode == "blind" and r.attack == "simba", psnr_noise=20.0)
    assert failing(run) == {}
    [mismatch] = failing(run, rescore=True)[SCORES].mismatches
    assert (mismatch.published, mismatch.recomputed) == (20.0, was.psnr_noise)


def test_another_model_is_not_asked_to_score(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_json(run, "fingerprint.json", lambda d: {**d, "files": {**d["files"], "model": "0" * 64}})
    found = verify(RunDirectory.read(str(run)), rescore=True)
    [gap] = next(f for f in found.findings if f.name == SCORES).gaps
    assert gap.count > 0 and "files.model" in gap.why


def test_a_run_that_has_not_ended_holds_with_gaps(run: Path) -> None:
    for name in ("results.parquet", "summary.json", "checks.json"):
        (run / name).unlink()
    parts(run)[0].unlink()
    found = verify(RunDirectory.read(str(run)))
    assert found.holds
    assert {"results.parquet", "summary.json"} <= {gap.what for f in found.findings for gap in f.gaps}


TARGET = "http://127.0.0.1:8000/restore"


def _metered(tmp_path: Path, steps: list[int], point: float = 0.5, *, ended: bool = True, **account: Any) -> Finding:
    """The audit of a ledger with one answered row a step, and a record of three queries."""
    r = record(queries=3, budget=100, stop_reason="budget", attack="square")
    curves = {f"{r.cell}/{r.image_id}/{r.restart}": [(1, point), (3, 0.75)]}
    with open_run(tmp_path / "run") as opened:
        opened.append(unit(r, curves=curves))
        rows = [_row(n, r, step) for n, step in enumerate(steps)]
        parts_of = {(r.cell, "attack"): Counts(answered=len(steps), unknown=1)}
        values = {"target": TARGET, "budget": 10, "lease": 1, "leased": len(steps) + 1, "parts": parts_of} | account
        Leases(opened.storage, TARGET).write(Account(**values), [*rows, _row(99, r, 2, state="unknown")])
        opened.update_environment(end="2026-01-01T00:00:00Z" if ended else None)
    found = check_accounts(read_evidence(RunDirectory.read(str(tmp_path / "run"))))
    assert found is not None
    return found


def _row(number: int, r: Record, step: int, state: Any = "answered") -> Row:
    key = QueryKey(purpose="attack", cell=r.cell, image_id=r.image_id, restart=r.restart, step=step)
    return Row(
        row=number, key=key, attempt=1, candidate="0" * 64, state=state, reason=None,
        answer=(0.5, 0.25, 0.75, 0.1)[step] if state == "answered" else None,
        lease=1, reserved_at=1.0, sent_at=2.0, settled_at=3.0,
    )  # fmt: skip


def test_a_ledger_is_summed_again(tmp_path: Path) -> None:
    assert _metered(tmp_path, [0, 1, 2]).mismatches == ()
    assert _metered(tmp_path / "resent", [0, 1, 1]).mismatches  # a step less was answered than the record says
    assert _metered(tmp_path / "less", [0, 1]).mismatches
    assert _metered(tmp_path / "more", [0, 1, 2, 3]).mismatches
    going_on = _metered(tmp_path / "going on", [0, 1, 2, 3], ended=False)
    assert not going_on.mismatches and [g.count for g in going_on.gaps] == [1]
    miscounted = {("c", "attack"): Counts(answered=2, unknown=2)}
    assert _metered(tmp_path / "miscounted", [0, 1, 2], parts=miscounted).mismatches
    assert _metered(tmp_path / "broke", [0, 1, 2], budget=3).mismatches
    assert _metered(tmp_path / "lost", [0, 1, 2], leased=9).gaps  # leased and not accounted for
    [other] = _metered(tmp_path / "curve", [0, 1, 2], point=0.6).mismatches
    assert (other.published, other.recomputed) == (0.6, 0.5)
    assert check_accounts(read_evidence(RunDirectory.read(str(honest_run())))) is None


def test_bits_are_compared() -> None:
    assert same_bits(0.1, 0.1) and same_bits(math.nan, math.nan) and same_bits([1], [1])
    assert not same_bits(0.0, -0.0) and not same_bits(1, 1.0) and not same_bits(None, 0.0)
    assert not same_bits(0.1, math.nextafter(0.1, 1)) and not same_bits(True, 1)
