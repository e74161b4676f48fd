"""Whole runs of query attacks: budgets raised, cut by time, saved by a signal, bounded by accounts."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_doubles import Notes, Wrapped, small_run, stable

from udc_ray import in_process
from udc_ray import run as run_module
from udc_ray.errors import Interrupted
from udc_ray.host import Host
from udc_ray.in_process import InProcessPool
from udc_ray.models.base import Restorer
from udc_ray.prepare import Prepared
from udc_ray.run import Finished, Settings, execute
from udc_ray.rundir import RunDirectory

ATTACKS = ("square:budget={0},restarts=2", "simba:budget={0}")
BUDGET, CHAINS = 25, 9
"""Three images, (2 + 1) restarts, one victim."""


@pytest.fixture(autouse=True)
def _no_pictures_and_quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_draw", lambda *_: None, raising=False)
    monkeypatch.setattr(in_process, "LOOK_SECONDS", 0.001)


def campaign(*sets: str, budget: int = BUDGET, attacks: tuple[str, ...] = ATTACKS) -> Prepared:
    cheap = ("perceptual=none", "data.size=24", "run.save=all")
    return small_run(*cheap, *sets, attacks=tuple(a.format(budget) for a in attacks))


class Session:
    """One execution, and how many candidates passed the restorer in each of its batches."""

    def __init__(self, prepared: Prepared, out: Path, **settings: Any) -> None:
        self.prepared, self.out, self.notes = prepared, out, Notes()
        self.settings = Settings(out=str(out), **settings)
        self.look: Callable[[int], None] = lambda count: None
        self.judged = 0

    def run(self) -> Finished:
        restorer = self.prepared.restorer
        assert restorer is not None
        return execute(self.prepared, lambda setup: self.pool(setup, restorer), self.notes, self.settings)

    def pool(self, setup: Any, restorer: Restorer) -> InProcessPool:
        host = Host(setup, restorer=Wrapped(restorer, lambda x: None))
        score = host.score

        def watched(request: Any) -> Any:
            self.look(self.judged)
            self.judged += len(request.rows)
            return score(request)

        host.score = watched  # type: ignore[method-assign]  # looks and passes on
        return InProcessPool(host)


def outcome(out: Path) -> tuple[Any, ...]:
    """All that a run keeps: records, curves and images."""
    run = RunDirectory.read(str(out))
    images = {(i.cell, i.image_id, i.restart): i.x_adv.tobytes() for i in run.images()}
    return stable(run.records()), run.curves(), images


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_draw", lambda *_: None, raising=False)
        out = tmp_path_factory.mktemp("whole") / "run"
        session = Session(campaign(), out)
        assert session.run().complete and session.judged == CHAINS * BUDGET
    yield outcome(out)


def test_a_raised_budget_goes_on_to_what_it_would_have_been_at_once(tmp_path: Path, whole: tuple[Any, ...]) -> None:
    first = Session(campaign(budget=10), tmp_path)
    assert first.run().complete and first.judged == CHAINS * 10
    assert {row["budget"] for row in outcome(tmp_path)[0]} == {10}
    raised = Session(campaign(), tmp_path)
    assert raised.run().complete and raised.judged == CHAINS * (BUDGET - 10), "a query was asked again"
    assert outcome(tmp_path) == whole
    again = Session(campaign(budget=10), tmp_path)
    assert again.run().complete and again.judged == 0, "a budget that was lowered asks nothing"


class Clock:
    """Time that stands still until the test lets it pass."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("after", [1, 120])
def test_when_the_time_is_up_what_there_is_is_scored_and_goes_on_later(
    tmp_path: Path, whole: tuple[Any, ...], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    cut = Session(campaign("run.chunk=1"), tmp_path, max_hours=1, cut=True)
    cut.look = lambda judged: setattr(clock, "now", clock.now + (3601 if judged >= after else 0))
    cut.run()
    rows = outcome(tmp_path)[0]
    assert all(row["budget"] == row["queries"] <= BUDGET and row["stop_reason"] == "budget" for row in rows)
    assert sum(row["queries"] for row in rows) == cut.judged < CHAINS * BUDGET
    assert any("the time is up" in note for note in cut.notes.notes)
    later = Session(campaign("run.chunk=2"), tmp_path)
    assert later.run().complete and later.judged == CHAINS * BUDGET - cut.judged
    assert outcome(tmp_path) == whole


def test_without_cut_what_is_begun_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(in_process, "BATCHES_LIVE", 1, raising=False)
    ending = Session(campaign("run.chunk=1"), tmp_path, max_hours=1)
    ending.look = lambda judged: setattr(clock, "now", clock.now + (3601 if judged >= 3 else 0))
    ending.run()
    assert {row["budget"] for row in outcome(tmp_path)[0]} == {BUDGET}


@pytest.mark.parametrize("after", [1, 120])
def test_a_signal_saves_states_and_no_half_record(tmp_path: Path, whole: tuple[Any, ...], after: int) -> None:
    stopped, sent = Session(campaign("run.chunk=1"), tmp_path), list[int]()

    def look(judged: int) -> None:
        if judged >= after and not sent:
            sent.append(judged)
            os.kill(os.getpid(), signal.SIGTERM)

    stopped.look = look
    with pytest.raises(Interrupted):
        stopped.run()
    rows = outcome(tmp_path)[0]
    assert {row["budget"] for row in rows} <= {BUDGET}
    assert list((tmp_path / "state").glob("chain-*")), "nothing was saved"
    resumed = Session(campaign("run.chunk=3"), tmp_path)
    assert resumed.run().complete and resumed.judged == CHAINS * BUDGET - stopped.judged
    assert outcome(tmp_path) == whole


def test_states_are_kept_from_time_to_time_so_that_a_crash_loses_little(
    tmp_path: Path, whole: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "KEEP_SECONDS", 0.0)
    killed, session = tmp_path / "killed", Session(campaign(), tmp_path / "run")

    def look(judged: int) -> None:
        if judged >= 150 and not killed.exists():
            shutil.copytree(tmp_path / "run", killed)  # what a kill would leave on the disk

    session.look = look
    session.run()
    assert outcome(killed)[0] == []
    (killed / "lock").unlink()
    resumed = Session(campaign(), killed)
    assert resumed.run().complete
    assert CHAINS * BUDGET - 150 - resumed.prepared.setup.resolved.micro_batch < resumed.judged < CHAINS * BUDGET
    assert outcome(killed) == whole


SHORT = ("square:budget={0},stop=success", "simba:budget={0}")


def spent_by_chain(out: Path) -> Counter[tuple[str, str, int]]:
    rows = outcome(out)[0]
    return Counter({(row["attack"], row["image_id"], row["restart"]): row["queries"] for row in rows})


@pytest.mark.parametrize(("account", "chunks"), [("total", (1, 2, 16)), ("cell", (1, 16)), ("target", (2, 3))])
def test_an_account_is_used_up_in_rounds_whatever_the_chunk(
    tmp_path: Path, account: str, chunks: tuple[int, ...]
) -> None:
    """Square succeeds early on some images; what that leaves goes to the others, and never a query more."""
    key = {"total": "max_queries", "cell": "max_queries_per_cell", "target": "max_queries_per_target"}[account]
    bound = 34 if account == "cell" else 60
    sets = ("success.drop_db=1.1", f"run.{key}={bound}")
    found = []
    for chunk in chunks:
        out = tmp_path / str(chunk)
        session = Session(campaign(*sets, f"run.chunk={chunk}", attacks=SHORT), out)
        session.run()
        spent = spent_by_chain(out)
        by_attack = Counter[str]()
        for (attack, _, _), asked in spent.items():
            by_attack[attack] += asked
        assert sum(spent.values()) == session.judged, "what was asked is what is on record"
        assert len(session.notes.begun) > 1, "one round only"
        if account == "cell":
            assert by_attack["simba"] == bound and by_attack["square"] <= bound
        else:
            assert session.judged == bound
        assert any("the queries are spent" in note for note in session.notes.notes)
        found.append(outcome(out))
    assert all(other == found[0] for other in found[1:])
    assert "success" in {row["stop_reason"] for row in found[0][0]}, "no image ended early: nothing was left over"


def test_a_larger_account_goes_on_with_the_same_run(tmp_path: Path) -> None:
    bounded = Session(campaign("run.max_queries=40", attacks=SHORT), tmp_path / "run")
    bounded.run()
    assert bounded.judged == 40
    larger = Session(campaign("run.max_queries=90", attacks=SHORT), tmp_path / "run")
    larger.run()
    assert larger.judged == 50 and sum(spent_by_chain(tmp_path / "run").values()) == 90
    free = Session(campaign(attacks=SHORT), tmp_path / "run")
    assert free.run().complete
    Session(campaign(attacks=SHORT), tmp_path / "at once").run()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "at once")


def test_the_spec_or_the_command_bounds_the_queries(tmp_path: Path) -> None:
    prepared = campaign("run.max_queries=40", attacks=SHORT)
    session = Session(replace(prepared), tmp_path, max_queries=20)
    session.run()
    assert session.judged == 20
