"""Whole runs in this process: complete, failing, interrupted anywhere, resumed, refused."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_doubles import Notes, StoppedPool, poisoned, small_device, small_run, stable

from udc_ray.errors import Interrupted, RunDirectoryError
from udc_ray.host import Host
from udc_ray.plan import Unit
from udc_ray.pool import Outcome, keep_nothing, never
from udc_ray.prepare import Prepared
from udc_ray.probe import Resolved
from udc_ray.run import Finished, Settings, execute
from udc_ray.rundir import RunDirectory
from udc_ray.setup import HostSetup

UNITS = 6
"""Two attacks on three images, one image a unit."""


def small(*sets: str) -> Prepared:
    return small_run(
        "run.chunk=1", "run.save=none", *sets, attacks=("fgsm", "square:budget=6"), defenses=("none", "jpeg")
    )


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return small()


class Session:
    """One execution, with what came of it."""

    def __init__(self, prepared: Prepared, out: Path, *, stop_after: int | None = None, **settings: Any) -> None:
        self.prepared, self.stop_after = prepared, stop_after
        self.notes = Notes()
        self.settings = Settings(out=str(out), **settings)
        self.pool: StoppedPool | None = None
        self.restorer = prepared.restorer

    def make_pool(self, setup: HostSetup) -> StoppedPool:
        self.pool = StoppedPool(Host(setup, restorer=self.restorer), self.stop_after)
        return self.pool

    def run(self) -> Finished:
        return execute(self.prepared, self.make_pool, self.notes, self.settings)

    @property
    def units(self) -> int:
        return self.pool.done if self.pool is not None else 0


def table(out: Path) -> list[dict[str, Any]]:
    """results.parquet, less what may differ between executions."""
    import pyarrow.parquet as pq

    from udc_ray.records import from_table

    return stable(from_table(pq.read_table(out / "results.parquet")))


@pytest.fixture(scope="module")
def whole(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    finished = Session(prepared, out).run()
    assert finished.complete and finished.failed == 0
    return out


def test_a_complete_run_leaves_every_file(tmp_path: Path) -> None:
    out = tmp_path / "run"
    session = Session(small("run.chunk=3", "run.save=best"), out, arguments=("udc-ray", "evaluate"))
    finished = session.run()
    assert finished.complete and finished.failed == 0 and finished.where == str(out)
    assert (session.notes.begun, len(session.notes.outcomes), session.notes.ended) == ([2], 2, 1)
    assert session.pool is not None and session.pool.closed
    assert json.loads((out / "summary.json").read_text()) == finished.summary.to_json()
    assert json.loads((out / "checks.json").read_text()) == [c.to_json() for c in finished.checks]
    assert finished.checks and {row.metric for row in finished.summary.rows} >= {"psnr_adv", "drop_psnr"}
    environment = json.loads((out / "environment.json").read_text())
    assert environment["devices"]["local"]["device"] == "cpu" and environment["end"]
    figures = sorted((out / "figures").iterdir())
    assert len(figures) == 2 * 3 + 1 and {f.suffix for f in figures} == {".png"}
    assert all(f.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for f in figures)
    names = {p.name for p in out.iterdir() if p.is_file()}
    assert names == {
        "spec.yaml",
        "fingerprint.json",
        "environment.json",
        "results.parquet",
        "checks.json",
        "summary.json",
        "report.html",
    }
    assert len(list((out / "parts").iterdir())) == len(list((out / "artifacts").iterdir())) == 2


def test_pictures_that_an_interruption_cost_are_drawn_by_the_resume(tmp_path: Path) -> None:
    prepared, out = small("run.chunk=3", "run.save=best"), tmp_path / "run"
    with pytest.raises(Interrupted):
        Session(prepared, out, stop_after=1).run()
    stopped = Session(prepared, out)

    def asked_after_the_last(outcome: Outcome) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    stopped.notes.unit = asked_after_the_last  # type: ignore[method-assign]  # a double of one test
    with pytest.raises(Interrupted):
        stopped.run()
    assert len(list((out / "parts").iterdir())) == 2 and not (out / "summary.json").exists()
    resumed = Session(prepared, out)
    assert resumed.run().complete and resumed.units == 0
    assert (out / "figures").is_dir() and (out / "summary.json").exists()
    again = Session(prepared, out)
    assert again.run().complete and again.pool is None, "a finished run needs no host"


@pytest.mark.parametrize("stop_after", range(UNITS))
def test_resume_after_an_interruption_appends_only_what_is_missing(
    prepared: Prepared, whole: Path, tmp_path: Path, stop_after: int
) -> None:
    with pytest.raises(Interrupted):
        (first := Session(prepared, tmp_path, stop_after=stop_after)).run()
    assert first.pool is not None and first.pool.closed and first.notes.ended == 1
    parts = {p.name: p.read_bytes() for p in (tmp_path / "parts").iterdir()} if stop_after else {}
    assert len(parts) == stop_after and not (tmp_path / "lock").exists()
    resumed = Session(prepared, tmp_path)
    assert resumed.run().complete
    assert resumed.notes.begun == [UNITS - stop_after] and resumed.units == UNITS - stop_after
    assert all((tmp_path / "parts" / name).read_bytes() == data for name, data in parts.items())
    assert table(tmp_path) == table(whole)


@pytest.mark.parametrize("seed", [0, 1])
def test_lost_parts_are_made_again(prepared: Prepared, whole: Path, tmp_path: Path, seed: int) -> None:
    Session(prepared, tmp_path).run()
    parts = sorted((tmp_path / "parts").iterdir())
    lost, damaged = random.Random(seed).sample(parts, 3), parts[seed]
    for part in {*lost, damaged}:
        part.unlink()
    damaged.write_bytes(b"PAR1 and then nothing")
    resumed = Session(prepared, tmp_path)
    assert resumed.run().complete
    assert resumed.units == len({*lost, damaged})
    assert any("cannot be read and is done again" in note for note in resumed.notes.notes)
    assert table(tmp_path) == table(whole)


def test_a_signal_drains(prepared: Prepared, whole: Path, tmp_path: Path) -> None:
    session = Session(prepared, tmp_path)
    count = iter(range(10))

    def second_time(outcome: Outcome) -> None:
        if next(count) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    session.notes.unit = second_time  # type: ignore[method-assign]  # a double of one test
    with pytest.raises(Interrupted) as raised:
        session.run()
    assert raised.value.signal_number == signal.SIGTERM and 2 <= session.units < UNITS
    assert json.loads((tmp_path / "environment.json").read_text())["end"]
    ended = len(list((tmp_path / "parts").iterdir()))
    assert 2 <= ended <= session.units, "those that were saved only have no part"
    assert (resumed := Session(prepared, tmp_path)).run().complete and resumed.units == UNITS - ended
    assert table(tmp_path) == table(whole)


def test_a_finished_run_is_only_reported(prepared: Prepared, whole: Path) -> None:
    before = table(whole)
    again = Session(prepared, whole)
    finished = again.run()
    assert finished.complete and again.pool is None and table(whole) == before
    assert "everything is done already" in again.notes.notes


def test_another_run_is_refused_and_left_alone(prepared: Prepared, whole: Path) -> None:
    files = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    with pytest.raises(RunDirectoryError, match="holds another run: it differs in seed"):
        Session(small("seed=1"), whole).run()
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == files


def test_a_poisoned_image_costs_its_own_units_only(prepared: Prepared, whole: Path, tmp_path: Path) -> None:
    bad = prepared.setup.dataset.image_ids[1]
    session = Session(prepared, tmp_path)
    session.restorer = poisoned(prepared.restorer, prepared.setup.dataset.load(bad).degraded)
    finished = session.run()
    assert finished.failed == 2 and not finished.complete
    assert sum("a unit failed and is skipped: ArithmeticError" in note for note in session.notes.notes) == 2
    rows, sound = table(tmp_path), table(whole)
    assert [r for r in rows if r["image_id"] != bad] == [r for r in sound if r["image_id"] != bad]
    failures = [r for r in rows if r["image_id"] == bad]
    assert len(failures) == 2 * 2
    for row in failures:
        assert row["error"] == "ArithmeticError: a poisoned image" and row["stop_reason"] == "error"
        assert all(row[c] is None for c in row if c.startswith(("psnr", "ssim", "success")) or c in {"l2", "queries"})
    quiet = Session(prepared, tmp_path)
    assert quiet.run().failed and quiet.units == 0, "a poisoned unit was tried again unasked"
    retried = Session(prepared, tmp_path, retry_failed=True)
    assert retried.run().complete and retried.units == 2
    assert table(tmp_path) == sound


def test_a_unit_that_does_not_fit_is_an_error_row(prepared: Prepared, tmp_path: Path) -> None:
    """The probe passes at one image; the units then meet a smaller device."""
    session = Session(prepared, tmp_path)
    session.restorer = small_device(prepared.restorer, 2)
    setup = replace(prepared.setup, resolved=replace(prepared.setup.resolved, micro_batch=4))

    class Unprobed(StoppedPool):
        def resolve(self, shapes: Any) -> Resolved:
            return setup.resolved

    finished = execute(
        prepared, lambda made: Unprobed(Host(made, restorer=session.restorer)), session.notes, session.settings
    )
    assert finished.failed == UNITS
    assert all("micro_batch 2 fits" in row["error"] for row in table(tmp_path))


def test_no_time_begins_nothing_and_says_so(prepared: Prepared, whole: Path, tmp_path: Path) -> None:
    session = Session(prepared, tmp_path, max_hours=0)
    with pytest.raises(RunDirectoryError, match="no results yet"):
        session.run()
    assert session.units == 0 and "the time is up; no new work is begun" in session.notes.notes
    assert not (tmp_path / "lock").exists() and not (tmp_path / "summary.json").exists()
    with pytest.raises(Interrupted):
        Session(prepared, tmp_path, stop_after=2).run()
    later = Session(prepared, tmp_path, max_hours=0)
    finished = later.run()
    assert later.units == 0 and not finished.complete and finished.failed == 0
    assert finished.summary.images == 2
    assert Session(prepared, tmp_path, max_hours=1).run().complete and table(tmp_path) == table(whole)


def test_what_the_probes_settled_is_kept_by_every_resume(prepared: Prepared, tmp_path: Path) -> None:
    class Careful(StoppedPool):
        asked = 0

        def resolve(self, shapes: Any) -> Resolved:
            type(self).asked += 1
            return Resolved(micro_batch=2, threads=1, device_type="cpu", notes=("went down to 2",))

        def map_unordered(self, units: Any, stop: Any = never, keep: Any = keep_nothing) -> Iterator[Outcome]:
            assert self.host.slots == 2
            return super().map_unordered(units, stop, keep)

    for stop_after in (1, None):
        notes = Notes()
        try:
            execute(
                prepared,
                lambda setup, stop=stop_after: Careful(Host(setup, restorer=prepared.restorer), stop),
                notes,
                Settings(out=str(tmp_path)),
            )
        except Interrupted:
            assert stop_after == 1
        assert "note: went down to 2" in notes.notes
    assert Careful.asked == 1
    header = RunDirectory.read(str(tmp_path)).header
    assert header.resolved is not None and header.resolved["micro_batch"] == 2


def test_a_pool_that_cannot_be_made_leaves_the_run_to_others(prepared: Prepared, whole: Path, tmp_path: Path) -> None:
    def broken(setup: HostSetup) -> StoppedPool:
        raise OSError("no cluster")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="no cluster"):
        execute(prepared, broken, Notes(), Settings(out=str(tmp_path)))
    assert not (tmp_path / "lock").exists() and signal.getsignal(signal.SIGTERM) is before
    assert Session(prepared, tmp_path).run().complete and table(tmp_path) == table(whole)


def test_units_are_one_image_each(prepared: Prepared) -> None:
    units: list[Unit] = list(prepared.setup.plan.units(prepared.setup.dataset.image_ids, 1))
    assert len(units) == UNITS and all(len(u.image_ids) == 1 and len(u.cells) == 2 for u in units)
