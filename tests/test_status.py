"""What a run has done so far, read beside its writer."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from audited_runs import IMAGES, change_records, copy_of, honest_run, parts

from udc_ray.metered.account import Account, Counts
from udc_ray.metered.leases import Leases
from udc_ray.rundir import RunDirectory
from udc_ray.states import save_state
from udc_ray.status import Status, read_status
from udc_ray.storage import Storage
from udc_ray_cli.campaign_status import status

ASKED = IMAGES * (24 + 2 * 16)
"""Of square, and of two restarts of simba; the blind cells ask nothing."""
CELLS = 6


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return copy_of(honest_run(), tmp_path)


def read(run: Path, now: float | None = None) -> Status:
    return read_status(RunDirectory.read(str(run)), now)


def test_a_finished_run(run: Path) -> None:
    found = read(run)
    assert found.ended and found.writer is None and found.accounts == ()
    assert (found.done, found.owed) == (CELLS * IMAGES, CELLS * IMAGES)
    assert (found.queries, found.under_way, found.largest) == (ASKED, 0, ASKED)
    square = next(c for c in found.cells if c.label == "square linf 8/255 | none")
    assert (square.done, square.images, square.queries, square.budget) == (IMAGES, IMAGES, 24 * IMAGES, 24)
    assert found.rate is not None and found.rate > 0 and found.left_s == 0


def test_a_missing_part_is_owed_again(run: Path) -> None:
    whole = read(run)
    gone = parts(run)[0]
    gone.unlink()
    (run / "summary.json").unlink()
    found = read(run)
    assert not found.ended and found.done == whole.done - 2  # undefended, and blind
    assert found.owed == whole.owed and all(c.images == IMAGES for c in found.cells)


def test_a_record_that_was_cut_short_is_not_done(run: Path) -> None:
    for part in parts(run):
        change_records(part, lambda r: replace(r, budget=9, queries=9) if r.attack == "square" else r)
    found = {c.label: c for c in read(run).cells}
    for label in ("square linf 8/255 | none", "square linf 8/255 | jpeg blind"):
        assert (found[label].done, found[label].cut) == (0, IMAGES)
    assert read(run).largest == ASKED and read(run).left_s is not None


def test_a_failed_unit_is_counted(run: Path) -> None:
    change_records(parts(run)[0], lambda r: replace(r, stop_reason="error", error="boom", psnr_adv=None, queries=None))
    assert sum(c.failed for c in read(run).cells) == 2


def test_chains_under_way_count_as_far_as_their_states_say(run: Path) -> None:
    before = read(run)
    cell = next(r.cell for r in RunDirectory.read(str(run)).records() if r.attack == "square")
    storage = Storage(str(run))
    save_state(storage, cell, ("another image", 0), {"asked": 17, "curve": [(1, 0.5)]})
    save_state(storage, cell, ("of another kind", 0), {"walk": 3})
    (run / "state" / "chain-torn.npz").write_bytes(b"PK")
    found = read(run)
    assert (found.under_way, found.queries) == (17, before.queries + 17)


def _lock(run: Path, beat: float, **values: object) -> None:
    (run / "lock").write_text(json.dumps({"owner": "node7:4242", "job": None, "heartbeat": beat, **values}))


def test_the_writer_is_named_and_no_lock_is_taken(run: Path) -> None:
    _lock(run, 1000.0, job="job-1")
    before = (run / "lock").read_bytes()
    found = read(run, now=1012.5)
    assert found.writer is not None and found.writer.alive and not found.ended
    assert (found.writer.owner, found.writer.job, found.writer.silent_s) == ("node7:4242", "job-1", 12.5)
    silent = read(run, now=1400.0).writer
    assert silent is not None and not silent.alive
    assert (run / "lock").read_bytes() == before
    (run / "lock").write_text("{")
    assert read(run).writer is None


def test_the_job_the_account_and_damaged_parts_are_told(run: Path) -> None:
    (run / "job.json").write_text(json.dumps({"submission_id": "job-1", "start": "x", "end": None}))
    parts(run)[0].write_bytes(b"torn")
    account = Account(
        target="http://127.0.0.1/r", budget=50, lease=1, leased=30, parts={("c", "attack"): Counts(answered=20)}
    )
    Leases(Storage(str(run)), account.target).write(account, [])
    found = read(run)
    assert found.job is not None and found.job["submission_id"] == "job-1"
    assert found.damaged == (parts(run)[0].name,)
    [told] = found.accounts
    assert (told.answered, told.in_flight, told.spent, told.budget) == (20, 10, 30, 50)
    json.dumps(found.to_json(), allow_nan=False)


def test_the_table_and_the_document_say_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _lock(run, time.time())
    (run / "job.json").write_text(json.dumps({"submission_id": "job-1", "start": "x", "end": None}))
    status(str(run), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["schema_version"], document["queries"], len(document["cells"])) == (1, ASKED, CELLS)
    status(str(run), as_json=False)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for part in ("at work", f"{ASKED} queries asked", "node7:4242", "job job-1", "square linf 8/255 | none", "2 of 2"):
        assert part in " ".join(text.split()), part  # a long path wraps its line


def test_what_a_stopped_run_has_left_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts(run)[0].unlink()
    (run / "summary.json").unlink()
    status(str(run), as_json=False)
    assert "stopped before its end" in capsys.readouterr().out
