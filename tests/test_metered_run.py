"""Whole campaigns against a target behind HTTP that fails as it is told: nothing is lost, nothing counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Answer, call
from faulty_server import FaultyServer

from udc_ray.metered import gate, host
from udc_ray.metered.account import Account
from udc_ray.metered.attempts import Patience
from udc_ray.metered.canary import Canaries
from udc_ray.metered.reading import read_account, read_rows
from udc_ray.records import VOLATILE
from udc_ray.storage import Storage

SMALL = ("--in-process", "--set", "data.size=32", "--limit", "2", "--set", "run.save=none")
ATTACKS = ("--attack", "square:budget=8", "--attack", "simba:budget=6")
CANARIES = 2 + 1
"""Asked at the start, the first one twice."""
HARNESS = CANARIES + 2 * (1 + 1 + 4) + 4
"""Goals, clean images and draws of noise, and the attacked image of every chain."""
QUERIES = 2 * (8 + 6)
Rows = list[dict[str, Any]]


def uneven(image_HWC: Any) -> Any:
    """A model whose damage depends on where and how an image was changed."""
    weights = np.linspace(0.2, 0.9, image_HWC.size, dtype=np.float32).reshape(image_HWC.shape)
    return image_HWC * weights


@dataclass(frozen=True)
class Run:
    """A campaign against one server, in a run directory of its own."""

    server: FaultyServer
    out: Path

    def go(self, *more: str, attacks: tuple[str, ...] = ATTACKS) -> Answer:
        """Give the command; again, to go on."""
        target = ("--target", self.server.url, "--set", "model.budget=400")
        return call("campaign", *target, *SMALL, *attacks, "--out", self.out, *more)

    @property
    def account(self) -> Account:
        """As the run's storage has it."""
        return read_account(Storage(str(self.out)))

    @property
    def sequences(self) -> dict[tuple[str, str, int], list[tuple[str, object]]]:
        """Candidates and answers of every chain, in the order of its steps."""
        found: dict[tuple[str, str, int], list[tuple[str, object]]] = {}
        rows = [r for r in read_rows(Storage(str(self.out))) if r.state == "answered" and r.key.purpose == "attack"]
        for row in sorted(rows, key=lambda row: row.key.step):
            found.setdefault((row.key.cell, row.key.image_id, row.key.restart), []).append((row.candidate, row.answer))
        return found

    @property
    def table(self) -> Rows:
        rows = pq.read_table(self.out / "results.parquet").to_pylist()
        return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with FaultyServer(uneven) as running:
        yield running


@pytest.fixture(scope="module")
def whole(server: FaultyServer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The campaign without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(host.LEDGERS_VARIABLE, str(folder / "ledgers"))
        run, before = Run(server, folder / "run"), server.evaluated
        assert run.go().code == 0
    assert server.evaluated - before == run.account.answered == run.account.spent == QUERIES + HARNESS
    return run


@pytest.fixture
def run(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv(host.LEDGERS_VARIABLE, str(tmp_path / "ledgers"))
    monkeypatch.setattr(gate, "PATIENCE", Patience(first_pause_s=0.001, longest_pause_s=5))
    yield Run(server, tmp_path / "run")
    server.plan.clear()


def planned(faults: dict[int, str]) -> list[str]:
    """A plan with these faults at these requests, counted from the first of the campaign."""
    return [faults.get(n, "ok") for n in range(max(faults) + 1)]


UNEVALUATED = {4: "500", 9: "503", 10: "502", 20: "429:0"}
EVALUATED = {5: "lost", 12: "truncate", 13: "cut", 14: "garbage", 18: "small", 24: "huge", 30: "hang"}


def test_transient_faults_change_nothing(whole: Run, run: Run) -> None:
    run.server.plan = planned(UNEVALUATED | EVALUATED)
    evaluated, asked = run.server.evaluated, len(run.server.bodies)
    answer = run.go("--set", "model.timeout_s=1")
    assert answer.code == 0, answer.err
    account = run.account
    assert account.answered == QUERIES + HARNESS
    assert account.unknown == len(UNEVALUATED) + len(EVALUATED)
    assert len(run.server.bodies) - asked == account.spent
    assert run.server.evaluated - evaluated == account.answered + len(EVALUATED)
    assert run.table == whole.table
    assert run.sequences == whole.sequences


def test_refusals_cost_nothing_where_the_owner_says_so(whole: Run, run: Run) -> None:
    run.server.plan = planned({3: "429:0", 7: "503:0", 8: "429", 22: "429"})
    asked = len(run.server.bodies)
    assert run.go("--set", "model.refusals_are_free=true").code == 0
    account = run.account
    assert (account.answered, account.unknown, account.refused) == (QUERIES + HARNESS, 0, 4)
    assert len(run.server.bodies) - asked == account.spent + account.refused
    assert run.table == whole.table


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("redirect", "the target redirects (307)"),
        ("page", "text/html"),
        ("429:86400", "asks to be left alone for 86400 s"),
        ("500", "look after it; the run keeps what was answered"),
    ],
)
def test_what_no_attempt_mends_ends_the_run_and_a_resume_completes_it(
    fault: str, said: str, whole: Run, run: Run
) -> None:
    evaluated = run.server.evaluated
    run.server.plan = ["ok"] * 25 + [fault] * 60
    answer = run.go()
    assert answer.code == 2 and answer.out == ""
    assert said in answer.err and "what to change" in answer.err and "Traceback" not in answer.err
    told, account = run.server.evaluated - evaluated, run.account
    assert account.answered <= told <= account.spent and account.in_flight == 0
    run.server.plan.clear()
    assert run.go().code == 0
    assert run.account.answered <= run.server.evaluated - evaluated <= run.account.spent
    assert run.table == whole.table
    assert run.sequences == whole.sequences
    attack = [r for r in read_rows(Storage(str(run.out))) if r.state == "answered" and r.key.purpose == "attack"]
    assert len(attack) == QUERIES, "a query that was answered was sent again"


def test_drift_between_two_sessions_stops_the_second(whole: Run, run: Run) -> None:
    run.server.plan = ["ok"] * 25 + ["redirect"] * 8
    assert run.go().code == 2
    spent = run.account.spent
    run.server.plan = ["drift"] * 100
    answer = run.go()
    assert answer.code == 2
    assert "the target has changed since the answers of an earlier session" in answer.err
    assert run.account.spent == spent + 2, "more than the canaries was asked of another model"
    run.server.plan.clear()
    assert run.go().code == 0
    assert run.table == whole.table and run.sequences == whole.sequences


def test_drift_during_the_run_stops_it(whole: Run, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "Canaries", partial(Canaries, every_s=0.0))
    run.server.plan = ["ok"] * 40 + ["drift"] * 400
    answer = run.go()
    assert answer.code == 2
    assert "the target has changed during the run" in answer.err and "what to change" in answer.err
    run.server.plan.clear()
    monkeypatch.undo()


def test_a_budget_that_ends_in_mid_attack_is_never_exceeded_and_a_raised_one_completes_the_run(
    whole: Run, run: Run
) -> None:
    asked, budget = len(run.server.bodies), HARNESS + 17
    answer = run.go("--set", f"model.budget={budget}")
    assert answer.code == 1 and "not all is done" in answer.err
    assert len(run.server.bodies) - asked == run.account.spent <= budget
    cut = [row for row in run.table if row["stop_reason"] == "budget" and row["budget"] == row["queries"]]
    assert cut and all(row["psnr_adv"] is not None for row in cut)
    first = run.sequences
    assert run.go().code == 0
    assert run.table == whole.table and run.sequences == whole.sequences
    assert all(run.sequences[chain][: len(rows)] == rows for chain, rows in first.items())
    assert len(run.server.bodies) - asked == run.account.spent == run.account.answered


@pytest.mark.parametrize("budget", [2, 9, HARNESS + 1])
def test_no_budget_is_exceeded_by_one(budget: int, run: Run) -> None:
    asked = len(run.server.bodies)
    answer = run.go("--set", f"model.budget={budget}")
    assert answer.code in {1, 2} and "Traceback" not in answer.err
    assert len(run.server.bodies) - asked == run.account.spent <= budget


def test_a_raised_attack_budget_sends_only_what_is_new(whole: Run, run: Run) -> None:
    asked = len(run.server.bodies)
    assert run.go(attacks=("--attack", "square:budget=3", "--attack", "simba:budget=6")).code == 0
    assert {row["queries"] for row in run.table} == {3, 6}
    assert run.go().code == 0
    assert run.table == whole.table and run.sequences == whole.sequences
    attack = [r for r in read_rows(Storage(str(run.out))) if r.key.purpose == "attack"]
    assert len(attack) == QUERIES and len(run.server.bodies) - asked == run.account.spent
