"""Batches of candidates of many chains: full while they can be, each answer to its own chain, nothing stuck."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udc_ray.attacks.batcher import PATIENCE, Batcher
from udc_ray.attacks.oracle import Query, Row, ScoreRequest
from udc_ray.attacks.query import Answer

SHAPE = (1, 1, 2)
PATIENCE_SECONDS = 20
"""After so long a test is stuck."""


def query(chain: int, step: int, victim: int = 0, shape: tuple[int, ...] = SHAPE) -> Query:
    row = Row(image_id=str(chain), step=step)
    return Query(victim=victim, row=row, x_CHW=torch.full(shape, chain + step / 1000))


def code(row: Row) -> float:
    """The answer that belongs to a row."""
    return 1000.0 * int(row.image_id) + row.step


async def turns(count: int) -> None:
    """Let others run for so many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class Target:
    """Judges batches after a while, and remembers them.

    Attributes:
        wait: turns of the loop that a batch takes.
        fails: numbers of the batches that fail.
        look: is shown every batch when it arrives.
    """

    wait: Callable[[], int] = lambda: 0
    fails: frozenset[int] = frozenset()
    look: Callable[[ScoreRequest], None] = lambda request: None
    batches: list[list[tuple[int, int]]] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    under_way: int = 0
    most: int = 0

    async def __call__(self, request: ScoreRequest) -> list[Answer]:
        number, rows = len(self.batches), request.rows
        self.batches.append([(int(row.image_id), row.step) for row in rows])
        for row, x in zip(rows, request.x_NCHW, strict=True):
            assert x.mean() == pytest.approx(int(row.image_id) + row.step / 1000, abs=1e-6), "a row lost its image"
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.look(request)
        try:
            await turns(self.wait())
            if number in self.fails:
                self.failed |= {int(row.image_id) for row in rows}
                raise ArithmeticError(f"batch {number}")
            return [code(row) for row in rows]
        finally:
            self.under_way -= 1


@dataclass
class Chains:
    """Chains that ask so many candidates in turn, and think in between."""

    asks: Sequence[Sequence[int]]
    think: Callable[[], int] = lambda: 0
    victims: Sequence[int] = ()
    live: set[int] = field(default_factory=set)
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)

    async def run(self, batcher: Batcher) -> None:
        self.live = set(range(len(self.asks)))
        seats = [batcher.join() for _ in self.asks]
        await asyncio.gather(*(self._one(n, batcher, seat.leave) for n, seat in enumerate(seats)))

    async def _one(self, number: int, batcher: Batcher, leave: Callable[[], None]) -> None:
        self.answers[number] = []
        victim = self.victims[number % len(self.victims)] if self.victims else 0
        try:
            for count in self.asks[number]:
                first = len(self.answers[number])
                self.answers[number] += await batcher.send([query(number, first + k, victim) for k in range(count)])
                await turns(self.think())
        except ArithmeticError as error:
            self.errors[number] = error
        finally:
            self.live.discard(number)
            leave()
            leave()  # once is enough


def within_time(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, PATIENCE_SECONDS)

    asyncio.run(bounded())


def go(chains: Chains, target: Target, slots: int, in_flight: int = 2) -> Batcher:
    batcher = Batcher(target, slots, in_flight)
    within_time(chains.run(batcher))
    return batcher


asks = st.lists(st.lists(st.integers(1, 6), max_size=8), min_size=1, max_size=9)
seeds = st.integers(0, 2**20)


def delays(seed: int, most: int) -> Callable[[], int]:
    chance = random.Random(seed)
    return lambda: chance.randint(0, most)


@given(asks, st.integers(1, 6), st.integers(1, 3), seeds)
def test_batches_are_full_while_enough_chains_live_and_every_answer_finds_its_chain(
    asks: list[list[int]], slots: int, in_flight: int, seed: int
) -> None:
    chains = Chains(asks, think=delays(seed, 3))

    def look(request: ScoreRequest) -> None:
        if len(request.rows) < slots:
            assert len(chains.live) < slots, "a slot was empty while there were chains to fill it"

    target = Target(wait=delays(seed + 1, 9), look=look)
    batcher = go(chains, target, slots, in_flight)
    for number, counts in enumerate(asks):
        assert chains.answers[number] == [1000 * number + step for step in range(sum(counts))]
    sent = Counter(pair for batch in target.batches for pair in batch)
    assert set(sent.values()) <= {1}, "a candidate was judged twice"
    assert all(1 <= len(batch) <= slots for batch in target.batches)
    assert target.most <= in_flight and target.under_way == 0
    total, batches = sum(map(sum, asks)), len(target.batches)
    assert (batcher.tally.queries, batcher.tally.batches) == (total, batches)
    assert batcher.tally.empty == batches * slots - total


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 5))
def test_a_freed_slot_is_filled_at_once(lengths: list[int], slots: int) -> None:
    """With one batch at a time and no thinking, every batch holds as many chains as there are, up to the slots."""
    target = Target()
    go(Chains([[1] * n for n in lengths]), target, slots, in_flight=1)
    left = dict(enumerate(lengths))
    for batch in target.batches:
        live = sum(n > 0 for n in left.values())
        assert len(batch) == min(slots, live), "a slot was empty while a chain was waiting"
        assert len({chain for chain, _ in batch}) == len(batch)
        for chain, _ in batch:
            left[chain] -= 1
    assert not any(left.values())


@given(asks, st.integers(1, 5), st.integers(1, 3), st.frozensets(st.integers(0, 12), max_size=4), seeds)
def test_a_batch_that_fails_fails_its_own_chains_and_no_others(
    asks: list[list[int]], slots: int, in_flight: int, fails: frozenset[int], seed: int
) -> None:
    chains = Chains(asks, think=delays(seed, 2))
    target = Target(wait=delays(seed + 1, 6), fails=fails)
    go(chains, target, slots, in_flight)
    assert set(chains.errors) == target.failed
    for number in set(range(len(asks))) - target.failed:
        assert chains.answers[number] == [1000 * number + step for step in range(sum(asks[number]))]
    assert target.most <= in_flight


def test_what_fails_on_the_way_to_the_host_reaches_its_chains_too() -> None:
    async def both(batcher: Batcher) -> None:
        seats = [batcher.join() for _ in range(2)]
        no_image = Query(victim=0, row=Row(image_id="0"), x_CHW=torch.zeros(SHAPE, requires_grad=True))
        with pytest.raises(RuntimeError, match="requires grad"):
            await batcher.send([no_image])
        seats[0].leave()
        assert await batcher.send([query(1, 0)]) == [1000]

    within_time(both(Batcher(Target(), 1)))


def test_the_host_always_has_the_next_batch_at_hand() -> None:
    """Twelve chains, four slots: two batches are under way before the first is answered, and again after it."""
    held: list[asyncio.Future[None]] = []

    async def score(request: ScoreRequest) -> list[Answer]:
        assert len(request.rows) == 4
        held.append(asyncio.get_running_loop().create_future())
        await held[-1]
        return [code(row) for row in request.rows]

    async def watch() -> None:
        chains = Chains([[1] * 3] * 12)
        running = asyncio.create_task(chains.run(Batcher(score, 4)))
        await turns(5)
        for answered in range(7):
            assert len(held) == answered + 2
            held[answered].set_result(None)
            await turns(5)
        for future in held[7:]:
            future.set_result(None)
        await turns(5)
        for future in held[9:]:
            future.set_result(None)
        await running
        assert len(held) == 9

    within_time(watch())


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 4), max_size=6)), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(1, 3),
    seeds,
)
def test_victims_never_share_a_batch_and_all_are_served(
    drawn: list[tuple[int, list[int]]], slots: int, in_flight: int, seed: int
) -> None:
    victims = [victim for victim, _ in drawn]
    seen: set[tuple[int, int]] = set()

    def look(request: ScoreRequest) -> None:
        seen.update((int(row.image_id), request.victim) for row in request.rows)

    chains = Chains([counts for _, counts in drawn], think=delays(seed, 2), victims=victims)
    go(chains, Target(wait=delays(seed + 1, 5), look=look), slots, in_flight)
    assert seen == {(n, victim) for n, (victim, counts) in enumerate(drawn) if counts}
    assert [len(chains.answers[n]) for n in range(len(drawn))] == [sum(counts) for _, counts in drawn]


def test_images_of_another_size_never_share_a_batch() -> None:
    shapes: set[tuple[int, ...]] = set()
    target = Target(look=lambda request: shapes.add(tuple(request.x_NCHW.shape[1:])))

    async def one(batcher: Batcher, chain: int, leave: Callable[[], None]) -> None:
        for step in range(5):
            answers = await batcher.send([query(chain, step, shape=(1, 2 + chain % 2, 2))])
            assert answers == [1000 * chain + step]
        leave()

    async def all_of_them() -> None:
        batcher = Batcher(target, 4)
        seats = [batcher.join() for _ in range(4)]
        await asyncio.gather(*(one(batcher, n, seat.leave) for n, seat in enumerate(seats)))

    within_time(all_of_them())
    assert shapes == {(1, 2, 2), (1, 3, 2)}
    assert {frozenset(chain for chain, _ in batch) for batch in target.batches} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_lane_that_cannot_fill_is_served(in_flight: int) -> None:
    """One chain on a victim of its own, beside many that fill batch after batch."""
    chains = Chains([[1] * 40] * 9 + [[1] * 4], victims=[0] * 9 + [1])
    target = Target(wait=delays(0, 3))
    go(chains, target, 4, in_flight)
    served = [n for n, batch in enumerate(target.batches) if batch[0][0] == 9]
    assert len(served) == 4 and served[-1] < len(target.batches) - 20, "it waited for the others to end"
    assert all(b - a <= PATIENCE + in_flight + 1 for a, b in zip([-1, *served], served, strict=False))


def test_a_chain_that_is_ended_from_outside_holds_up_nobody() -> None:
    target = Target(wait=lambda: 3)

    async def some(batcher: Batcher, number: int, asks: int) -> None:
        seat = batcher.join()
        try:
            for step in range(asks):
                await batcher.send([query(number, 2 * step), query(number, 2 * step + 1)])
        finally:
            seat.leave()

    async def all_of_them() -> None:
        batcher = Batcher(target, 3)
        tasks = [asyncio.create_task(some(batcher, n, 30)) for n in range(5)]
        for task in tasks[:3]:
            await turns(4)
            task.cancel()
        done: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(d, asyncio.CancelledError) for d in done] == [True] * 3 + [False] * 2

    within_time(all_of_them())
    sent = Counter(chain for batch in target.batches for chain, _ in batch)
    assert sent[3] == sent[4] == 60 and all(sent[n] < 60 for n in range(3))


def test_a_new_chain_is_waited_for_from_the_moment_it_joins() -> None:
    target = Target()

    async def late(batcher: Batcher, leave: Callable[[], None]) -> None:
        await turns(20)
        await batcher.send([query(1, 0)])
        leave()

    async def early(batcher: Batcher) -> None:
        seats = [batcher.join(), batcher.join()]
        other: Coroutine[Any, Any, None] = late(batcher, seats[1].leave)
        task = asyncio.create_task(other)
        await batcher.send([query(0, 0)])
        seats[0].leave()
        await task

    within_time(early(Batcher(target, 2)))
    assert target.batches == [[(0, 0), (1, 0)]]
