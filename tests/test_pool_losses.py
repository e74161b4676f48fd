"""The pool with hosts that compute nothing: growth, hung hosts, nodes that end, units that kill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pool_doubles import KIND, Setup, Simulated, Task, node_of

from udc_ray.errors import UserError
from udc_ray.pool import Outcome
from udc_ray_cluster import crew as crew_module
from udc_ray_cluster import pool as pool_module
from udc_ray_cluster.placement import Placement
from udc_ray_cluster.pool import RayPool
from udc_ray_cluster.session import session

QUICK = Placement(least=2, most=2, silence_s=600)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(2):
        yield


class Run:
    """A pool of simulated hosts and what it said."""

    def __init__(self, placement: Placement = QUICK, **setup: Any) -> None:
        self.notes: list[str] = []
        made: Any = Setup(**setup)
        self.pool = RayPool(made, placement, "cpu", note=self.notes.append, kind=KIND)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def outcomes(self, tasks: Iterable[Any], **options: Any) -> list[Outcome]:
        return list(self.pool.map_unordered(tasks, **options))


def by_name(outcomes: list[Outcome]) -> dict[str, Any]:
    found: dict[str, Any] = {o.unit.name: o for o in outcomes}  # type: ignore[attr-defined]  # tasks stand for units
    assert len(found) == len(outcomes)
    return found


def tasks(count: int, **values: Any) -> list[Task]:
    return [Task(f"t{n}", **values) for n in range(count)]


def test_every_unit_ends_once_and_failures_are_told_in_a_line(ray_session: None) -> None:
    with Run() as run:
        ended = by_name(run.outcomes([*tasks(12), Task("bad", manner="fail"), Task("stepped")]))
        assert set(ended) == {*(f"t{n}" for n in range(12)), "bad", "stepped"}
        assert ended["bad"].error == "ArithmeticError: bad cannot be done"
        assert all(o.error is None and o.retries == 0 for name, o in ended.items() if name != "bad")
        assert ended["stepped"].result.pid != ended["t0"].result.pid
        again = run.outcomes([])
        assert again == []


def test_more_hosts_are_asked_for_while_units_wait(ray_session: None) -> None:
    with Run(Placement(least=1, most=3)) as run:
        ended = run.outcomes(tasks(150, seconds=0.1))
        assert len(ended) == 150
        assert {o.host for o in ended} == {"host-0", "host-1", "host-2"}
        assert len(run.pool.seats) == 3


def test_a_hung_host_is_replaced(ray_session: None, tmp_path: Path) -> None:
    hanging = Task("hanging", manner="hang", once=str(tmp_path / "met"))
    with Run(Placement(least=2, most=2, silence_s=3)) as run:
        ended = by_name(run.outcomes([hanging, *tasks(6)]))
    assert len(ended) == 7
    assert (ended["hanging"].error, ended["hanging"].retries) == (None, 1)
    assert any("is taken for hung" in note for note in run.notes)


def test_a_unit_that_always_hangs_is_given_up(ray_session: None) -> None:
    with Run(Placement(least=1, most=1, silence_s=1)) as run:
        ended = by_name(run.outcomes([Task("hanging", manner="hang"), *tasks(3)]))
    assert "died 3 times" in ended.pop("hanging").error
    assert {o.error for o in ended.values()} == {None}


def test_a_deadly_unit_is_found_out_and_its_companions_are_not_blamed(ray_session: None) -> None:
    with Run() as run:
        ended = by_name(run.outcomes([*tasks(3), Task("deadly", manner="die"), *tasks(6)[3:]]))
    assert "died 3 times" in ended["deadly"].error
    assert ended.pop("deadly").retries in (3, 4)  # lost once more where another one was at work
    assert {o.error for o in ended.values()} == {None}


def test_a_stepped_unit_whose_host_dies_tells_what_it_asked(ray_session: None, tmp_path: Path) -> None:
    with Run() as run:
        (ended,) = run.outcomes([Task("stepped", manner="die", once=str(tmp_path / "met"))])
    assert (ended.error, ended.retries, ended.queries_reexecuted) == (None, 1, 7)


def test_a_node_that_announces_its_end_gives_back_what_has_not_begun(ray_session: None) -> None:
    with Run() as run:
        ending: set[str] = set()
        run.pool._crew._nodes.draining = lambda now: ending  # type: ignore[method-assign]  # no node ends here
        seen: list[Outcome] = []
        for outcome in run.pool.map_unordered(tasks(16, seconds=0.4)):  # type: ignore[arg-type]  # tasks stand for units
            seen.append(outcome)
            if len(seen) == 2:
                ending.add(node_of("host-0"))
        assert len(by_name(seen)) == 16
        assert all(o.error is None and o.retries == 0 for o in seen)
        assert sum("announces its end" in note for note in run.notes) == 1
        assert {s.name for s in run.pool.seats} == {"host-1", "host-2"}
        assert set(run.pool.describe()) == {"host-0", "host-1", "host-2"}


def test_deaths_on_a_node_that_ends_are_nobodys_fault(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(Placement(least=1, most=1)) as run:
        monkeypatch.setattr(run.pool._crew._nodes, "ended", lambda node, now: len(run.notes) < 2)
        (ended,) = run.outcomes([Task("unlucky", manner="die")])
    assert ended.retries == 2 + 3  # two hosts went with their node, then three by its own doing


def test_a_host_that_never_comes_up_does_not_hold_up_the_run(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "LONELY_SECONDS", 0.5)
    with Run(Placement(least=1, most=1, num_gpus=1)) as run:
        turns = iter([None] * 6)
        assert run.outcomes(tasks(1), stop=lambda: next(turns, "finish")) == []
    assert any("no free GPU; waiting" in note for note in run.notes)
    with Run(Placement(least=1, most=2, num_cpus=2)) as run:
        assert len(run.outcomes(tasks(40, seconds=0.02))) == 40  # the second one has no room on two CPUs


def test_a_host_that_dies_at_birth_is_one_message(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Simulated, *_: object) -> None:
        raise RuntimeError("a library is missing")

    monkeypatch.setattr(Simulated, "__init__", die)
    with Run() as run, pytest.raises(UserError, match="before it could begin.*a library is missing"):
        run.outcomes(tasks(1))


def test_calls_to_a_host_out_of_reach_are_given_up(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool_module, "LANDING_SECONDS", 0.5)
    monkeypatch.setattr(crew_module.ray, "kill", lambda actor: None)  # a partition: nothing reaches it, nothing comes
    with Run(Placement(least=1, most=1)) as run:
        lost = run.pool.seats[0]
        work = [Task("first"), Task("stuck", manner="hang", once=str(tmp_path / "met"))]
        ended = []
        for outcome in run.pool.map_unordered(work):  # type: ignore[arg-type]  # tasks stand for units
            ended.append(outcome)
            run.pool._crew.lose(lost, "nothing is heard of it")
        monkeypatch.undo()
        ray.kill(lost.actor)
    assert [(o.error, o.retries, o.host) for o in ended] == [(None, 0, "host-0"), (None, 1, "host-1")]


def test_stopping_ends_what_is_begun_and_begins_nothing(ray_session: None) -> None:
    with Run() as run:
        seen: list[Outcome] = []
        for outcome in run.pool.map_unordered(
            tasks(50, seconds=0.05),  # type: ignore[arg-type]  # tasks stand for units
            stop=lambda: "finish" if len(seen) >= 3 else None,
        ):
            seen.append(outcome)
        assert 3 <= len(seen) <= 3 + 2 * 2 + 2


def test_slow_hosts_get_less_and_give_back_at_the_end(ray_session: None) -> None:
    with Run(slow=20.0) as run:
        ended = run.outcomes(tasks(30, seconds=0.1))
    shares = [sum(o.host == name for o in ended) for name in ("host-0", "host-1")]
    assert shares[0] < shares[1]
    assert sum(shares) == 30


def test_a_host_keeps_the_models_of_one_victim(ray_session: None) -> None:
    mixed = [Task(f"v{v}-{n}", victim=v, seconds=0.02) for v in (0, 1) for n in range(10)]
    with Run() as run:
        run.outcomes(mixed)
        described: dict[str, Any] = run.pool.describe()
    moves = [len(facts["kept"]) for facts in described.values()]
    assert sum(moves) <= 6  # of twenty; the last few go wherever they end first
