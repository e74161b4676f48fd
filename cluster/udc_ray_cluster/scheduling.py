"""Which host gets which unit next. Pure: it knows neither Ray nor a clock, times are handed in.

Every desk (a host as the policy sees it) serves one victim at a time, so that a host holds the
models of that victim only. While there is plenty of work a desk takes the next unit of its victim,
and moves where most work a desk is left. Near the end, work goes where it is finished first, though
that desk be busy yet; and a unit that waits behind another is taken back when an idle desk would
end it earlier. Times are predicted from what desks and victims took so far.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from udc_ray_cluster.placement import IN_FLIGHT

IMBALANCE = 2.0
"""A desk leaves a victim with work only for one whose desks have so many times the work."""
MOVE_PENALTY = 1.01
"""Of two desks that would end a unit at the same time, the one that has its models gets it."""
MEMORY = 0.8
"""Weight of the past when a new time is measured."""
FULL = 1e-6
"""A desk with less room than that takes nothing."""
SLOWEST, FASTEST = 20.0, 0.05
"""Bounds of a desk's measured slowness; one odd unit must not banish a host."""


@dataclass(eq=False, kw_only=True)
class Piece:
    """A unit on its way through the pool.

    Attributes:
        unit: the unit.
        victim: index of its victim.
        cost: expected cost, in a unit of its own.
        load: share of a desk that it takes while it is held.
        deaths: hosts that died while they worked on it.
        retries: executions that were lost, for whatever reason.
        reexecuted: queries asked in them.
        suspect: it was held by a host that died; it flies alone until it is cleared.
        recalled: it is being taken back from a desk.
    """

    unit: Any
    victim: int
    cost: float
    load: float = 1 / IN_FLIGHT
    deaths: int = 0
    retries: int = 0
    reexecuted: int = 0
    suspect: bool = False
    recalled: bool = False


@dataclass(eq=False)
class Desk:
    """A host as the policy sees it; `held` is in the order in which it was handed out."""

    name: str
    victim: int | None = None
    held: list[Piece] = field(default_factory=list)
    open: bool = True
    since: float = 0.0
    """When the unit at work was begun."""
    seconds: float = 0.0
    predicted: float = 0.0

    @property
    def room(self) -> float:
        """What is left of the desk."""
        return 1 - sum(piece.load for piece in self.held)

    @property
    def slowness(self) -> float:
        """Seconds it took by seconds predicted; 1 before it was measured."""
        return float(np.clip(self.seconds / self.predicted, FASTEST, SLOWEST)) if self.predicted > 0 else 1.0

    @property
    def alone(self) -> bool:
        """Whether it holds a suspect."""
        return any(piece.suspect for piece in self.held)


class Move(NamedTuple):
    """A piece for a desk."""

    desk: Desk
    piece: Piece


@dataclass
class _Queue:
    """What waits for one victim, and what its cost comes to in seconds."""

    pieces: deque[Piece] = field(default_factory=deque)
    cost: float = 0.0
    seconds: float = 0.0
    measured: float = 0.0


class Scheduler:
    """Hands every piece to one desk at a time.

    Args:
        pieces: all that is to be done, in the order in which it should be begun: the long ones first.
    """

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self.desks: list[Desk] = []
        self._queues: dict[int, _Queue] = {}
        self._suspects: deque[Piece] = deque()
        self._first: int | None = None
        self._measured = False
        self._held_by_one = IN_FLIGHT
        for piece in pieces:
            self._held_by_one = max(self._held_by_one, math.ceil(1 / piece.load))
            self._first = piece.victim if self._first is None else self._first
            self._push(piece)

    @property
    def waiting(self) -> int:
        """Pieces that no desk holds."""
        return len(self._suspects) + self._unsuspected

    @property
    def _unsuspected(self) -> int:
        return sum(len(q.pieces) for q in self._queues.values())

    def add(self, desk: Desk) -> None:
        """A desk opens."""
        self.desks.append(desk)

    def remove(self, desk: Desk) -> None:
        """A desk is gone; who knows what it held puts that back."""
        desk.open = False
        self.desks = [d for d in self.desks if d is not desk]

    def clear(self) -> None:
        """Nothing more is handed out."""
        self._suspects.clear()
        self._queues = {v: _Queue(seconds=q.seconds, measured=q.measured) for v, q in self._queues.items()}

    def put_back(self, piece: Piece) -> None:
        """A piece is to be done again; it goes before the others."""
        piece.recalled = False
        if piece.suspect:
            self._suspects.append(piece)
        else:
            self._push(piece, first=True)

    def landed(self, desk: Desk, piece: Piece, now: float, *, done: bool) -> None:
        """A desk no longer holds a piece; it learns from the time when the piece was done."""
        held_first = desk.held[:1] == [piece]
        desk.held = [p for p in desk.held if p is not piece]
        if done:
            seconds, expected = max(now - desk.since, 1e-9), piece.cost * self._rate(piece.victim)
            queue = self._queues.setdefault(piece.victim, _Queue())
            queue.seconds = MEMORY * queue.seconds + seconds / desk.slowness
            queue.measured = MEMORY * queue.measured + piece.cost
            desk.seconds = MEMORY * desk.seconds + seconds
            desk.predicted = MEMORY * desk.predicted + (expected if self._measured else seconds)
            self._measured = True
        if done or held_first:
            desk.since = now

    def assign(self, now: float) -> list[Move]:
        """What goes where, now; the desks hold it from here on."""
        moves = self._suspects_alone(now)
        takers = [d for d in self.desks if self._takes(d)]
        for desk in sorted(takers, key=lambda d: len(d.held))[: len(self._suspects)]:
            takers.remove(desk)  # it runs empty, for a suspect
        while takers and self._unsuspected >= self._held_by_one * len(self.desks):
            desk = min(takers, key=lambda d: len(d.held))
            queue = self._queues[self._victim_for(desk)]
            moves.append(self._hand(desk, self._pop(queue), now))
            takers = [d for d in takers if self._takes(d)]
        return moves + (self._finish_first(takers, now) if takers else [])

    def recall(self, now: float) -> list[Move]:
        """Pieces that wait behind another while an idle desk would end them earlier; to be put back if not begun."""
        if self.waiting:
            return []
        queued = [d for d in self.desks if len(d.held) > 1 and not any(p.recalled for p in d.held)]
        free = np.array([self._free_in(d, now) for d in queued])
        plain = np.array([d.held[-1].cost * self._rate(d.held[-1].victim) for d in queued])
        found: list[Move] = []
        for idle in (d for d in self.desks if d.open and not d.held and len(found) < len(queued)):
            saved = free - plain * idle.slowness
            best = int(np.argmax(saved))
            if saved[best] > 0:
                free[best] = -np.inf
                found.append(Move(queued[best], queued[best].held[-1]))
        for move in found:
            move.piece.recalled = True
        return found

    def seconds(self, piece: Piece, desk: Desk) -> float:
        """Predicted seconds of a piece at a desk."""
        return piece.cost * self._rate(piece.victim) * desk.slowness

    def remaining(self, victim: int) -> float:
        """Predicted seconds of what waits for a victim, on a desk of middling speed."""
        queue = self._queues.get(victim)
        return queue.cost * self._rate(victim) if queue is not None else 0.0

    def _suspects_alone(self, now: float) -> list[Move]:
        idle = [d for d in self.desks if d.open and not d.held]
        return [self._hand(desk, self._suspects.popleft(), now) for desk in idle[: len(self._suspects)]]

    def _finish_first(self, takers: list[Desk], now: float) -> list[Move]:
        """Let every piece choose the desk that ends it first, the longest first; hand out those whose desk is open."""
        desks = [d for d in self.desks if d.open and (d in takers or d.held)]
        free = np.array([self._free_in(d, now) for d in desks])
        slow = np.array([d.slowness for d in desks])
        home = np.array([-1 if d.victim is None else d.victim for d in desks])
        queues = [q for q in self._queues.values() if q.pieces]
        waiting = sorted((p for q in queues for p in q.pieces), key=lambda p: -p.cost * self._rate(p.victim))
        moves, room = [], {d.name: d.room for d in takers}
        for piece in waiting:
            ends = free + piece.cost * self._rate(piece.victim) * slow
            best = int(np.argmin(ends * np.where((home == piece.victim) | (home == -1), 1.0, MOVE_PENALTY)))
            free[best] = ends[best]
            if room.get(desks[best].name, 0) > FULL:
                room[desks[best].name] -= piece.load
                self._queues[piece.victim].pieces.remove(piece)
                self._queues[piece.victim].cost -= piece.cost
                moves.append(self._hand(desks[best], piece, now))
        return moves

    def _free_in(self, desk: Desk, now: float) -> float:
        """Seconds until a desk has ended what it holds; a unit that is overdue takes a while yet."""
        if not desk.held:
            return 0.0
        elapsed = now - desk.since
        head = max(self.seconds(desk.held[0], desk) - elapsed, 0.1 * elapsed)
        return head + sum(self.seconds(p, desk) for p in desk.held[1:])

    def _takes(self, desk: Desk) -> bool:
        return desk.open and desk.room > FULL and not desk.alone

    def _victim_for(self, desk: Desk) -> int:
        """The victim that a desk serves next; there is work for one at least."""
        if self._first is not None:
            first, self._first = self._first, None
            if self._queues[first].pieces:
                return first
        seated: dict[int, int] = {}
        for other in self.desks:
            if other.victim is not None:
                seated[other.victim] = seated.get(other.victim, 0) + 1
        own = desk.victim
        others = [v for v, q in self._queues.items() if q.pieces and v != own]
        neediest = max(others, key=lambda v: self.remaining(v) / (seated.get(v, 0) + 1), default=None)
        if own is None or not self._queues[own].pieces:
            return neediest if neediest is not None else next(v for v, q in self._queues.items() if q.pieces)
        if neediest is None or seated[own] == 1:
            return own
        theirs, ours = self.remaining(neediest) / max(0.5, seated.get(neediest, 0)), self.remaining(own)
        return neediest if theirs > IMBALANCE * ours / (seated[own] - 1) else own

    def _rate(self, victim: int) -> float:
        """Seconds by cost of a victim; of all victims before it was measured, 1 before any was."""
        queue = self._queues.get(victim)
        if queue is not None and queue.measured > 0:
            return queue.seconds / queue.measured
        measured = sum(q.measured for q in self._queues.values())
        return sum(q.seconds for q in self._queues.values()) / measured if measured > 0 else 1.0

    def _hand(self, desk: Desk, piece: Piece, now: float) -> Move:
        if not desk.held:
            desk.since = now
        desk.held.append(piece)
        desk.victim = piece.victim
        return Move(desk, piece)

    def _push(self, piece: Piece, *, first: bool = False) -> None:
        queue = self._queues.setdefault(piece.victim, _Queue())
        (queue.pieces.appendleft if first else queue.pieces.append)(piece)
        queue.cost += piece.cost

    def _pop(self, queue: _Queue) -> Piece:
        piece = queue.pieces.popleft()
        queue.cost -= piece.cost
        return piece
