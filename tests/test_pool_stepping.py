"""Stepped units in the pool: many at once beside a host, and what happens when the stepper or the host dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from pool_doubles import Task
from test_pool_losses import Run, by_name, tasks

from udc_ray.pool import Outcome
from udc_ray_cluster import steppers as steppers_module
from udc_ray_cluster.placement import Placement
from udc_ray_cluster.session import session

ONE, TWO = Placement(least=1, most=1, silence_s=600), Placement(least=2, most=2, silence_s=600)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(2):
        yield


def stepped(count: int, **values: Any) -> list[Task]:
    given: dict[str, Any] = {"manner": "patient", "seconds": 0.4, "load": 0.1, **values}
    return [Task(f"stepped-{n}", **given) for n in range(count)]


def is_gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether a process ends soon."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_as_many_are_stepped_at_once_as_a_host_has_room_for(ray_session: None) -> None:
    with Run(ONE) as run:
        ended = by_name(run.outcomes([*stepped(25), *tasks(4)]))
        assert len(ended) == 29 and all(o.error is None and o.retries == 0 for o in ended.values())
        own = [o.result for name, o in ended.items() if name.startswith("stepped")]
        assert len({done.pid for done in own}) == 1, "one stepper for all of them"
        assert 5 <= max(done.together for done in own) <= 10
        again = by_name(run.outcomes(stepped(3, seconds=0.1)))
        assert {o.result.pid for o in again.values()} == {own[0].pid}, "it stays for the next round"


def test_large_units_share_a_host_by_two_and_hosts_share_the_work(ray_session: None) -> None:
    with Run(TWO) as run:
        ended = by_name(run.outcomes(stepped(10, load=0.5, seconds=0.2)))
        assert max(o.result.together for o in ended.values()) == 2
        assert {o.host for o in ended.values()} == {"host-0", "host-1"}
        assert len({o.result.pid for o in ended.values()}) == 2, "one stepper beside every host"


def test_when_a_stepper_dies_its_units_are_done_again_and_the_host_stays(ray_session: None, tmp_path: Path) -> None:
    deadly = Task("stepped-deadly", manner="end", seconds=0.2, once=str(tmp_path / "met"), load=0.1)
    with Run(ONE) as run:
        ended = by_name(run.outcomes([deadly, *stepped(5), *tasks(3)]))
        assert [seat.name for seat in run.pool.seats] == ["host-0"] and not any("is gone" in note for note in run.notes)
        assert len({o.result.pid for name, o in ended.items() if name.startswith("stepped")}) == 1
    assert all(o.error is None for o in ended.values())
    assert {o.retries for name, o in ended.items() if name.startswith("stepped")} == {1}
    assert {ended[f"t{n}"].retries for n in range(3)} == {0}, "what ran on the host was not lost"


def test_a_stepper_that_is_killed_from_outside_is_replaced(ray_session: None) -> None:
    with Run(ONE) as run:
        ended: list[Outcome] = []
        work: Any = stepped(12, seconds=0.5, load=0.2)
        for outcome in run.pool.map_unordered(work):
            ended.append(outcome)
            if len(ended) == 3:
                ray.kill(run.pool.seats[0].stepper)
        assert len(by_name(ended)) == 12 and all(o.error is None for o in ended)
        assert 1 <= sum(o.retries for o in ended) <= 5, "only what it held was lost, and only once"
        assert [seat.name for seat in run.pool.seats] == ["host-0"]


def test_a_unit_that_always_ends_its_stepper_is_given_up_and_its_companions_are_not(ray_session: None) -> None:
    with Run(ONE) as run:
        ended = by_name(
            run.outcomes([Task("stepped-deadly", manner="end", seconds=0.1, load=0.1), *stepped(4, seconds=0.3)])
        )
        assert "died 3 times" in ended.pop("stepped-deadly").error
        assert {o.error for o in ended.values()} == {None}


def test_a_host_that_dies_takes_its_stepped_units_along_once(ray_session: None, tmp_path: Path) -> None:
    deadly = Task("stepped-deadly", manner="die", once=str(tmp_path / "met"), load=0.1)
    with Run(ONE) as run:
        first: list[Outcome] = []
        work: Any = [*stepped(1, seconds=0.05), *stepped(6, seconds=0.4)[1:], deadly]
        pids = set[int]()
        for outcome in run.pool.map_unordered(work):
            first.append(outcome)
            result: Any = outcome.result
            pids.add(result.pid)
        ended = by_name(first)
        assert all(o.error is None for o in ended.values())
        assert ended["stepped-deadly"].retries == 1 and ended["stepped-deadly"].queries_reexecuted == 7
        assert {o.retries for o in ended.values()} <= {0, 1}
        assert {seat.name for seat in run.pool.seats} == {"host-1"}
        assert sum("is gone" in note for note in run.notes) == 1
        living = {ended["stepped-deadly"].result.pid}
        assert all(is_gone(pid) for pid in pids - living), "the stepper of the dead host stays"
        assert len(run.pool._steppers._seats) == 1


@pytest.mark.parametrize("ending", ["cut", "save"])
def test_a_halt_ends_what_is_stepped_and_begins_nothing(ray_session: None, ending: Any) -> None:
    with Run(ONE) as run:
        seen: list[Outcome] = []
        work: Any = [*stepped(1, seconds=0.1), *stepped(30, seconds=500)[1:]]
        for outcome in run.pool.map_unordered(work, stop=lambda: ending if seen else None):
            seen.append(outcome)
        ended = by_name(seen)
        assert 2 <= len(ended) <= 12
        assert {o.result.ending for o in ended.values()} == {None, ending}
        assert {o.error for o in ended.values()} == {None}


def test_to_finish_is_no_halt(ray_session: None) -> None:
    with Run(ONE) as run:
        seen: list[Outcome] = []
        work: Any = [*stepped(1, seconds=0.1), *stepped(30, seconds=0.8)[1:]]
        for outcome in run.pool.map_unordered(work, stop=lambda: "finish" if seen else None):
            seen.append(outcome)
        results: list[Any] = [o.result for o in seen]
        assert 2 <= len(by_name(seen)) <= 12 and {done.ending for done in results} == {None}


def test_states_under_way_are_handed_on(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steppers_module, "KEEP_SECONDS", 0.2)
    kept: list[Any] = []
    with Run(ONE) as run:
        ended = run.outcomes(stepped(3, seconds=2.0), keep=kept.append)
        assert len(ended) == 3
    assert set(kept) == {f"stepped-{n}" for n in range(3)} and len(kept) > 3
