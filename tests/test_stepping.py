"""Stepped units: what they give, how they go on from states, and that none of it depends on company."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from run_doubles import all_units, make_host, small_run, stable

from udc_ray.attacks.batcher import Batcher
from udc_ray.attacks.driver import Halt
from udc_ray.attacks.oracle import ChainKey, Row, ScoreRequest
from udc_ray.attacks.query import Answer, State
from udc_ray.host import Host
from udc_ray.in_process import Direct
from udc_ray.plan import Unit
from udc_ray.pool import Ending
from udc_ray.prepare import Prepared
from udc_ray.records import Record
from udc_ray.results import UnitResult
from udc_ray.states import decode_state, encode_state
from udc_ray.stepping import Stepper

CHEAP = ("perceptual=none", "data.size=24", "run.save=all", "run.micro_batch=2")
BUDGET, CHAINS = 8, 18
"""Of the campaign that most tests share: three images, (2 + 1) restarts, two victims."""
STEPPED = ("square:budget={0},restarts=2", "simba:budget={0}")


def campaign(*sets: str, budget: int = BUDGET, attacks: Sequence[str] = STEPPED, **more: Any) -> Prepared:
    return small_run(*CHEAP, *sets, attacks=tuple(a.format(budget) for a in attacks), **more)


@dataclass
class Session:
    """Steps units together against one host.

    Attributes:
        host: the host.
        kept: states, by cell and chain, as bytes.
        asked: rows that were judged.
        look: is shown every request before it is judged.
    """

    host: Host
    kept: dict[tuple[str, ChainKey], bytes] = field(default_factory=dict)
    asked: list[Row] = field(default_factory=list)
    look: Callable[[ScoreRequest], None] = lambda request: None
    halt: Halt = field(default_factory=Halt)
    in_flight: int = 2

    def __post_init__(self) -> None:
        self.direct = Direct(self.host)
        self.stepper = Stepper(
            setup=self.host.setup,
            host=self.direct,
            batcher=Batcher(self.judge, self.host.slots, self.in_flight),
            find_state=self.find,
            halt=self.halt,
        )

    async def judge(self, request: ScoreRequest) -> list[Answer]:
        self.asked += request.rows
        self.look(request)
        return await self.direct.score(request)

    def find(self, cell: str, key: ChainKey) -> State | None:
        data = self.kept.get((cell, key))
        return None if data is None else decode_state(data)

    def keep(self, result: UnitResult) -> None:
        for key, state in result.states.items():
            self.kept[result.chain_cell, key] = encode_state(state)

    def run(self, units: Iterable[Unit]) -> list[UnitResult]:
        results: list[Any] = []

        async def together() -> None:
            results.extend(await asyncio.gather(*map(self.stepper.step, units), return_exceptions=True))

        asyncio.run(together())
        for result in results:
            if isinstance(result, UnitResult):
                self.keep(result)
        return results


def records_of(results: Iterable[UnitResult]) -> list[Record]:
    return [record for result in results for record in result.records]


def outcome(results: Sequence[UnitResult]) -> tuple[Any, ...]:
    """All that a run keeps: records, curves and images."""
    images = {(i.cell, i.image_id, i.restart): i.x_adv.tobytes() for r in results for i in r.images}
    curves = {name: curve for r in results for name, curve in r.curves.items()}
    return stable(records_of(results)), curves, images


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return campaign(defenses=("none", "jpeg:grad_mode=[blind, full]"))


@pytest.fixture(scope="module")
def whole(prepared: Prepared) -> tuple[Any, ...]:
    return outcome(Session(make_host(prepared)).run(all_units(prepared, 3)))


def test_records_say_what_was_asked(prepared: Prepared, whole: tuple[Any, ...]) -> None:
    rows, curves, images = whole
    assert len(rows) == 3 * (2 + 1) * 3 and {row["queries"] for row in rows} == {BUDGET}
    assert {(row["budget"], row["stop_reason"], row["grad_evals"]) for row in rows} == {(BUDGET, "budget", 0)}
    assert len(curves) == len(images) == CHAINS, "a blind cell has the curves and images of another"
    full = [row for row in rows if row["grad_mode"] == "full" and row["defense"] == "jpeg"]
    assert len(full) == 9


def test_neither_company_nor_order_nor_batches_change_a_bit(prepared: Prepared, whole: tuple[Any, ...]) -> None:
    assert outcome(Session(make_host(prepared), in_flight=1).run(reversed(all_units(prepared, 1)))) == whole
    one_by_one = [
        result for unit in all_units(prepared, 2) for result in Session(make_host(prepared), in_flight=3).run([unit])
    ]
    assert outcome(one_by_one) == whole


def test_a_row_carries_what_its_chain_is_about() -> None:
    made = campaign(attacks=("square:budget=3,objective=ssim", "simba:budget=2"), defenses=("median:grad_mode=[full]",))
    units = [unit for unit in all_units(made, 3) if unit.victim == 0]
    session, victims = Session(make_host(made)), Counter[int]()
    session.look = lambda request: victims.update([request.victim])
    session.run(units)
    ids = made.setup.dataset.image_ids
    wanted = Counter[Row]()
    for unit in units:
        name = session.host.objective_name(unit)
        for image_id in ids:
            row = Row(
                image_id=image_id, cell=unit.craft_cell, objective=name, goal=session.host.goals(unit)[image_id][1]
            )
            wanted.update(replace(row, step=step) for step in range(3 if name == "ssim" else 2))
    assert set(victims) == {0} and {row.objective for row in wanted} == {"ssim", "mse"}
    assert Counter(session.asked) == wanted


@pytest.mark.parametrize("first", [1, 5])
def test_a_raised_budget_goes_on_and_asks_nothing_twice(prepared: Prepared, whole: tuple[Any, ...], first: int) -> None:
    smaller = campaign(budget=first, defenses=("none", "jpeg:grad_mode=[blind, full]"))
    begun = Session(make_host(smaller))
    early = begun.run(all_units(smaller, 3))
    assert (
        {record.budget for record in records_of(early)} == {record.queries for record in records_of(early)} == {first}
    )
    raised = Session(make_host(prepared), kept=begun.kept)
    assert outcome(raised.run(all_units(prepared, 2))) == whole
    steps = Counter((row.cell, row.image_id, row.restart, row.step) for row in begun.asked + raised.asked)
    assert len(steps) == CHAINS * BUDGET and set(steps.values()) == {1}


class Stopper:
    """Ends a session once so many candidates were judged."""

    def __init__(self, session: Session, ending: Ending, after: int) -> None:
        self.session, self.ending, self.after = session, ending, after

    def __call__(self, request: ScoreRequest) -> None:
        if len(self.session.asked) >= self.after:
            self.session.halt.ending = self.ending


@pytest.mark.parametrize("after", [1, 60, 120])
def test_what_is_cut_is_scored_as_it_is_and_continued_later(
    prepared: Prepared, whole: tuple[Any, ...], after: int
) -> None:
    cut = Session(make_host(prepared))
    cut.look = Stopper(cut, "cut", after)
    results = cut.run(all_units(prepared, 3))
    asked = Counter((row.cell, row.image_id, row.restart) for row in cut.asked)
    rows = [record for record in records_of(results) if record.grad_mode == "full"]
    assert {r.key[:3]: r.queries for r in rows} == asked, "a chain that has asked is scored, and no other"
    assert all(r.budget == r.queries and r.stop_reason == "budget" for r in rows)
    assert any((r.queries or 0) < BUDGET for r in rows) or len(rows) < CHAINS
    resumed = Session(make_host(prepared), kept=cut.kept)
    late = resumed.run(all_units(prepared, 3))
    final = {record.key: record for record in records_of([*results, *late])}
    assert stable(final.values()) == whole[0]
    assert len(cut.asked) + len(resumed.asked) == CHAINS * BUDGET, "a query was asked again"


@pytest.mark.parametrize("after", [1, 60, 120])
def test_what_is_saved_only_gives_no_record_and_is_continued_later(
    prepared: Prepared, whole: tuple[Any, ...], after: int
) -> None:
    saved = Session(make_host(prepared))
    saved.look = Stopper(saved, "save", after)
    results = saved.run(all_units(prepared, 3))
    ended = [result for result in results if result.records]
    assert len(ended) < len(results) and all(r.queries == BUDGET for r in records_of(ended))
    assert all(result.states and not result.images for result in results if not result.records)
    units = [unit for unit, result in zip(all_units(prepared, 3), results, strict=True) if not result.records]
    resumed = Session(make_host(prepared), kept=saved.kept)
    assert outcome([*ended, *resumed.run(units)]) == whole
    assert len(saved.asked) + len(resumed.asked) == CHAINS * BUDGET, "a query was asked again"


def test_a_snapshot_at_any_moment_leads_to_the_same_end(prepared: Prepared, whole: tuple[Any, ...]) -> None:
    session, snapshots = Session(make_host(prepared)), list[dict[tuple[str, ChainKey], bytes]]()

    def look(request: ScoreRequest) -> None:
        if len(session.asked) // 30 > len(snapshots):
            shot = Session(session.host)
            for states in session.stepper.snapshot():
                shot.keep(states)
            snapshots.append(shot.kept)

    session.look = look
    assert outcome(session.run(all_units(prepared, 3))) == whole and session.stepper.snapshot() == []
    assert len(snapshots) >= 3
    for kept in snapshots[::2]:
        resumed = Session(make_host(prepared), kept=kept)
        assert outcome(resumed.run(all_units(prepared, 3))) == whole
        assert len(resumed.asked) < CHAINS * BUDGET


def test_a_restart_that_had_ended_is_not_asked_again_for_the_sake_of_another() -> None:
    """Some restarts succeed at once, others are cut: all of them are continued from their states."""
    made = campaign("success.drop_db=1.1", attacks=("square:budget=20,restarts=4,stop=success",))
    reference = Session(make_host(made))
    results = reference.run(all_units(made, 3))
    stops = {(r.image_id, r.restart): r.stop_reason for r in records_of(results)}
    mixed = [i for i in made.setup.dataset.image_ids if len({stops[i, restart] for restart in range(4)}) == 2]
    assert mixed, "no image has a restart that succeeds beside one that does not"
    for ending in ("cut", "save"):
        early = Session(make_host(made))
        early.look = Stopper(early, ending, 40)
        cut = early.run(all_units(made, 3))
        (unit,), ids = all_units(made, 3), {image_id for _, (image_id, _) in early.kept}
        late = Session(make_host(made), kept=early.kept)
        rest = late.run([replace(unit, image_ids=tuple(i for i in unit.image_ids if i in ids))])
        final = {record.key: record for record in records_of([*cut, *rest])}
        assert stable(final.values()) == stable(records_of(results))
        assert Counter(early.asked + late.asked) == Counter(reference.asked)
        assert set(mixed) <= ids and 0 < len(late.asked) < len(reference.asked)


def test_a_lowered_budget_lets_go_of_what_was_found_beyond_it() -> None:
    made, larger = campaign(budget=5), campaign(budget=9)
    generous = Session(make_host(larger))
    generous.run(all_units(larger, 3))
    again = Session(make_host(made), kept=generous.kept)
    reference = Session(make_host(made))
    assert outcome(again.run(all_units(made, 3))) == outcome(reference.run(all_units(made, 3)))
    assert all(row.step < 5 for row in again.asked)


def test_caps_hold_chain_by_chain() -> None:
    made = campaign(attacks=("square:budget=9,restarts=2",))
    (unit,) = all_units(made, 3)
    capped = replace(unit, caps=(9, 4, 0, 1, 7, 20))
    session = Session(make_host(made))
    (result,) = session.run([capped])
    asked = Counter((row.image_id, row.restart) for row in session.asked)
    keys = [(i, restart) for i in unit.image_ids for restart in range(2)]
    assert [asked[key] for key in keys] == [9, 4, 0, 1, 7, 9]
    rows = {(r.image_id, r.restart): (r.queries, r.budget, r.stop_reason) for r in result.records}
    allowed = {key: (n, n, "budget") for key, n in asked.items()}
    assert rows == allowed and keys[2] not in rows, "a chain that was allowed nothing shows nothing"
    later = Session(make_host(made), kept=session.kept)
    assert outcome(later.run([unit])) == outcome(Session(make_host(made)).run([unit]))
    assert len(session.asked) + len(later.asked) == 6 * 9


def test_a_failing_victim_fails_its_own_unit_and_says_what_it_had_asked(prepared: Prepared) -> None:
    units, judged = all_units(prepared, 3), Counter[int]()
    session = Session(make_host(prepared))

    def look(request: ScoreRequest) -> None:
        if request.victim == 1 and judged[1] >= 20:
            raise ArithmeticError("the target broke")
        judged[request.victim] += len(request.rows)

    session.look = look
    results: list[Any] = session.run(units)
    for unit, result in zip(units, results, strict=True):
        if unit.victim == 1:
            assert isinstance(result, ArithmeticError)
        else:
            assert {record.queries for record in result.records} == {BUDGET}
    lost = session.stepper.lost
    assert set(lost) == {unit.key for unit in units if unit.victim == 1} and sum(lost.values()) == 20
    assert session.stepper.snapshot() == []


def test_a_random_victim_gives_the_same_again_whatever_else_is_asked() -> None:
    made = campaign(
        attacks=("square:budget=8,restarts=2", "simba:budget=6,repeats=2"),
        defenses=("gaussian-noise:sigma=20,samples=2,grad_mode=[full]",),
    )
    reference = outcome(Session(make_host(made)).run(all_units(made, 3)))
    assert len(reference[0]) == 3 * 2 * (2 + 1) + 3 * (2 + 1)
    assert outcome(Session(make_host(made), in_flight=1).run(reversed(all_units(made, 1)))) == reference
    cut = Session(make_host(made))
    cut.look = Stopper(cut, "cut", 37)
    results = cut.run(all_units(made, 3))
    late = Session(make_host(made), kept=cut.kept).run(all_units(made, 3))
    assert stable({r.key: r for r in records_of([*results, *late])}.values()) == reference[0]
