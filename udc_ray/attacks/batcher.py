"""Candidates of many chains in full batches of one shape, with two batches on their way to a host.

A chain hands in what it asks and waits; as soon as enough candidates of one victim and one shape
lie there, whatever image, attack or restart they belong to, they leave as a batch. A batch that is
not full leaves only when nothing better can come: no batch is under way and every live chain waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import torch

from udc_ray.attacks.oracle import Query, Scorer, ScoreRequest, pack
from udc_ray.attacks.query import Answer

PATIENCE = 8
"""Batches of other lanes that may leave before a lane that cannot fill one is served all the same."""

Lane = tuple[int, tuple[int, ...]]
"""Victim and shape: what may share a batch."""


@dataclass(eq=False)
class _Asking:
    """What one chain waits for."""

    left: int


@dataclass(frozen=True)
class _Entry:
    query: Query
    future: asyncio.Future[Answer]
    asking: _Asking


@dataclass
class _Waiting:
    entries: deque[_Entry] = field(default_factory=deque)
    passed: int = 0
    """Batches of other lanes since the oldest came."""


@dataclass
class Tally:
    """What was sent so far: candidates, batches, and slots of them that nobody filled."""

    queries: int = 0
    batches: int = 0
    empty: int = 0


@dataclass(eq=False)
class Seat:
    """The place of one live chain."""

    batcher: Batcher
    taken: bool = True

    def leave(self) -> None:
        """The chain has ended; once is enough."""
        if self.taken:
            self.taken = False
            self.batcher.left()


class Batcher:
    """Merges candidates; to be used within one event loop.

    Args:
        score: judges a batch.
        slots: candidates of a batch.
        in_flight: batches that may be under way, so that the host always has the next one at hand.
    """

    def __init__(self, score: Scorer, slots: int, in_flight: int = 2) -> None:
        self._score, self.slots, self._in_flight = score, slots, in_flight
        self._lanes: dict[Lane, _Waiting] = {}
        self._live = self._blocked = self._flying = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.tally = Tally()

    def join(self) -> Seat:
        """A chain is live from here until it leaves: unless it waits, a batch that is not full stays."""
        self._live += 1
        return Seat(self)

    def left(self) -> None:
        """A chain has left."""
        self._live -= 1
        self._depart()

    async def send(self, queries: list[Query]) -> list[Answer]:
        """Answers to the candidates of one chain, in their order."""
        loop, asking = asyncio.get_running_loop(), _Asking(left=len(queries))
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in queries]
        for query, future in zip(queries, futures, strict=True):
            lane = (query.victim, tuple(query.x_CHW.shape))
            self._lanes.setdefault(lane, _Waiting()).entries.append(_Entry(query, future, asking))
        self._blocked += 1
        try:
            self._depart()
            return [await future for future in futures]
        finally:
            for future in futures:
                future.cancel()  # where one failed, or the chain was ended, nobody waits for the others
            self._settle(asking, asking.left)

    def _settle(self, asking: _Asking, answered: int = 1) -> None:
        """A chain is at work again from its last answer on, not from when its turn in the loop comes."""
        if asking.left > 0:
            asking.left -= answered
            self._blocked -= asking.left <= 0

    def _depart(self) -> None:
        """Let batches leave, as many as may."""
        while self._flying < self._in_flight and (lane := self._next()) is not None:
            batch = self._take(lane)
            if batch:
                self._flying += 1
                task = asyncio.get_running_loop().create_task(self._fly(lane, batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _next(self) -> Lane | None:
        """The lane that is served next: one that waited too long, a full one, or when all wait the fullest."""
        waiting = {lane: held for lane, held in self._lanes.items() if held.entries}
        full = [lane for lane, held in waiting.items() if len(held.entries) >= self.slots]
        late = [lane for lane, held in waiting.items() if held.passed >= PATIENCE]
        if late or full:
            return max(late or full, key=lambda lane: waiting[lane].passed)
        if waiting and not self._flying and self._blocked >= self._live:
            return max(waiting, key=lambda lane: len(waiting[lane].entries))
        return None

    def _take(self, lane: Lane) -> list[_Entry]:
        held = self._lanes[lane]
        batch: list[_Entry] = []
        while held.entries and len(batch) < self.slots:
            entry = held.entries.popleft()
            if not entry.future.done():
                batch.append(entry)
        for other, rest in self._lanes.items():
            rest.passed = 0 if other == lane or not rest.entries else rest.passed + 1
        return batch

    async def _fly(self, lane: Lane, batch: list[_Entry]) -> None:
        self.tally.queries += len(batch)
        self.tally.batches += 1
        self.tally.empty += self.slots - len(batch)
        try:
            packed = pack(torch.stack([entry.query.x_CHW for entry in batch]))
            rows = tuple(entry.query.row for entry in batch)
            answers = await self._score(ScoreRequest(victim=lane[0], rows=rows, packed=packed))
            for entry, answer in zip(batch, answers, strict=True):
                if not entry.future.done():
                    entry.future.set_result(answer)
        except Exception as error:  # whatever failed, it is for the chains that wait to know
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
                    entry.future.exception()  # a chain that learns of it by another candidate does not look here
        finally:
            self._flying -= 1
            for entry in batch:
                self._settle(entry.asking)
            # Those that were answered ask again before a batch that is not full may leave.
            self._depart()
