"""The pool of hosts on Ray: units out, results in, dead and hung hosts replaced.

Actor calls are at-most-once, so whatever was in flight on a host that is gone is simply run again:
units are pure, and the second answer has the same bits. Nothing that is lost on the way ends a run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray

from udc_ray.errors import UserError
from udc_ray.pool import Ending, Keep, Outcome, Stop, keep_nothing, never
from udc_ray_cluster.crew import Crew
from udc_ray_cluster.losses import GET_SECONDS, Failed, Lost, could_not_begin, fetch
from udc_ray_cluster.placement import Kind, Placement
from udc_ray_cluster.scheduling import Move, Piece, Scheduler
from udc_ray_cluster.seats import Seat
from udc_ray_cluster.steppers import Steppers

if TYPE_CHECKING:
    from torch import Tensor

    from udc_ray.checks.readings import Reading
    from udc_ray.plan import Unit
    from udc_ray.probe import Resolved
    from udc_ray.setup import HostSetup
    from udc_ray.views import View

DEATHS_ALLOWED = 3
"""A unit whose hosts died so often is recorded as poisoned."""
TICK_SECONDS = 0.5
"""How long the loop waits for an answer before it looks after the hosts."""
BUNDLE_SECONDS = 0.02
"""Answers that come so close together are taken in one turn of the loop, and handed on for so long before the next.
A host has a unit waiting meanwhile."""
LANDING_SECONDS = 30.0
"""How long the calls to a host that is gone may take to say so; then they are lost without a word."""
GATHER_SECONDS = 60.0
"""How long the first host waits for the others, so that the smallest can be probed."""
ERRANDS = 3
"""How many hosts are tried for what is no unit."""


@dataclass(eq=False, kw_only=True)
class Flight:
    """A unit on its way; `stepper` is the actor that steps it, None where it runs whole on its host."""

    piece: Piece
    seat: Seat
    started: float
    stepper: Any
    ticket: int

    @property
    def stepped(self) -> bool:
        """Whether it is stepped from outside its host."""
        return self.stepper is not None


def _quiet(text: str) -> None:
    """Nobody is told."""


class RayPool:
    """Hosts on a Ray cluster.

    Args:
        setup: the run.
        placement: how many hosts, and what each takes.
        device: device of each host.
        note: tells the user something.
        kind: what the hosts are; those of `udc_ray_cluster.host` unless given.
    """

    def __init__(
        self,
        setup: HostSetup,
        placement: Placement,
        device: str,
        note: Callable[[str], None] = _quiet,
        kind: Kind | None = None,
    ) -> None:
        if kind is None:
            from udc_ray_cluster.host import HOSTS  # needs torch, which simulated hosts do without

            kind = HOSTS
        self.setup, self.kind, self._setup_ref, self._placement = setup, kind, ray.put(setup), placement
        self._crew = Crew(kind, placement, device, note)
        self._crew.open(self._setup_ref)
        self._flights: dict[Any, Flight] = {}
        self._recalls: dict[Any, Any] = {}
        self._steppers = Steppers(kind.stepper)
        self._scheduler = self._crew.scheduler

    @property
    def seats(self) -> list[Seat]:
        """The hosts that are there or were asked for."""
        return self._crew.seats

    def gather(self) -> None:
        """Wait for the first hosts: for one as long as it takes, for the others a while."""
        until: float | None = None
        while True:
            self._crew.tend()
            ready, coming = self._crew.ready, self._crew.coming
            if ready and until is None:
                until = time.monotonic() + GATHER_SECONDS
            if until is not None and ready and (not coming or time.monotonic() > until):
                return
            if coming:
                ray.wait([seat.coming for seat in coming], timeout=TICK_SECONDS)

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """Probe on the smallest of the first hosts, so that all can hold what it can."""
        self.gather()
        result: Resolved = self._errand("resolve", shapes)
        return result

    def configure(self, resolved: Resolved) -> None:
        """Adopt what the probes settled, on every host and for those to come."""
        self.setup = replace(self.setup, resolved=resolved)
        self._setup_ref = ray.put(self.setup)
        self._crew.reconfigure(self._setup_ref)
        # A host does its calls in their order, so this comes before any unit; one that is lost shows later.
        for seat in self.seats:
            seat.actor.configure.remote(resolved)

    def speeds(self, victims: Sequence[int], seconds: float) -> dict[int, float]:
        """See `WorkPool`."""
        found: dict[int, float] = self._errand("speeds", victims, seconds)
        return found

    def probe_gradients(self) -> list[Reading]:
        """See `udc_ray.gradient_probe.Prober`."""
        found: list[Reading] = self._errand("probe_gradients")
        return found

    def map_unordered(self, units: Iterable[Unit], stop: Stop = never, keep: Keep = keep_nothing) -> Iterator[Outcome]:
        """Yield outcomes as they come; see `WorkPool`."""
        self._scheduler = Scheduler(map(self._piece, units))
        self._flights.clear()
        self._recalls.clear()
        self._crew.serve(self._scheduler)
        ended: deque[Outcome] = deque()
        while True:
            self._end_early(stop())
            self._steppers.keep(keep)
            self._crew.tend(self._scheduler.waiting)
            if len(ended) <= len(self.seats):  # whoever takes the outcomes sets the pace
                self._launch_all()
            if not self._flights and not self._scheduler.waiting and not ended:
                return
            for ref in self._answered(0.0 if ended else TICK_SECONDS):
                ended.extend(self._land(ref))
            self._steppers.sweep({id(flight.seat) for flight in self._flights.values()})
            self._take_back()
            turned = time.monotonic()
            while ended and time.monotonic() - turned < BUNDLE_SECONDS:
                yield ended.popleft()

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """Pictures for the report, from any host."""
        result: dict[str, View] = self._errand("views", cell, x_adv)
        return result

    def describe(self) -> dict[str, object]:
        """What each host is, and was; one that does not answer is left out."""
        asked = self._crew.departed | {s.name: s.actor.describe.remote() for s in self.seats if s.ready}
        answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=GET_SECONDS) if asked else ([], [])
        answers = {name: fetch(ref) for name, ref in asked.items() if ref in answered}
        return {name: facts for name, facts in answers.items() if not isinstance(facts, Lost | Failed)}

    def close(self) -> None:
        """Let the hosts go."""
        self._steppers.close()
        self._crew.close(farewell=self._placement.calls > 1)

    def _piece(self, unit: Unit) -> Piece:
        kind, setup = self.kind, self.setup
        return Piece(unit=unit, victim=kind.victim(unit), cost=kind.cost(setup, unit), load=kind.load(setup, unit))

    def _end_early(self, ending: Ending | None) -> None:
        if ending is None:
            return
        if self._scheduler.waiting:
            self._scheduler.clear()
        if ending != "finish":
            self._steppers.halt(ending)

    def _errand(self, method: str, *arguments: Any) -> Any:
        """Ask the smallest idle host for what is no unit; where it is lost, ask another one."""
        reason = ""
        for _ in range(ERRANDS):
            if not self._crew.ready:
                self.gather()
            seat = min(self._crew.ready, key=lambda s: (len(s.desk.held), s.arrived.memory if s.arrived else 0))
            answer = self._watched(seat, getattr(seat.actor, method).remote(*arguments))
            if isinstance(answer, Failed):
                raise answer.error
            if not isinstance(answer, Lost):
                return answer
            self._crew.lose(seat, answer.reason, announced=answer.node_ended)
            reason = answer.reason
        raise could_not_begin(reason)

    def _watched(self, seat: Seat, ref: Any) -> Any:
        seat.errand = True
        try:
            while True:
                answered, _ = ray.wait([ref], timeout=TICK_SECONDS)
                if answered:
                    return fetch(ref)
                self._crew.tend()
                if seat.gone_at is not None and time.monotonic() - seat.gone_at > LANDING_SECONDS:
                    return Lost(reason="the host is out of reach", host=True)
        finally:
            seat.errand = False

    def _answered(self, timeout: float) -> list[Any]:
        """Calls that have ended, as many as there are."""
        waited = [*self._flights, *self._recalls, *(s.coming for s in self._crew.coming)]
        if not waited:
            time.sleep(TICK_SECONDS if timeout else 0.0)
            return self._overdue()
        answered, _ = ray.wait(waited, num_returns=1, timeout=timeout)
        if answered and len(waited) > 1:
            answered, _ = ray.wait(waited, num_returns=len(waited), timeout=BUNDLE_SECONDS if timeout else 0.0)
        return [ref for ref in answered if ref in self._flights] + self._overdue()

    def _overdue(self) -> list[Any]:
        """Calls to hosts that are long gone; a node out of reach does not even say that they failed."""
        now = time.monotonic()
        return [
            ref
            for ref, flight in self._flights.items()
            if flight.seat.gone_at is not None and now - flight.seat.gone_at > LANDING_SECONDS
        ]

    def _launch_all(self) -> None:
        if not self._scheduler.desks:
            return
        now = time.monotonic()
        seats = {seat.name: seat for seat in self.seats}
        for move in self._scheduler.assign(now):
            self._launch(seats[move.desk.name], move.piece, now)
        self._recall(seats, now)

    def _launch(self, seat: Seat, piece: Piece, now: float) -> None:
        needed, stepped = self.kind.keep(piece.unit), self.kind.is_stepped(self.setup, piece.unit)
        if not needed <= seat.keeps:
            seat.keeps = needed
            seat.actor.keep.remote(needed)
        seat.tickets += 1
        stepper = self._steppers.beside(seat, self._setup_ref) if stepped else None
        call = seat.actor.run.remote(piece.unit, seat.tickets) if stepper is None else stepper.step.remote(piece.unit)
        self._flights[call] = Flight(piece=piece, seat=seat, started=now, stepper=stepper, ticket=seat.tickets)

    def _recall(self, seats: dict[str, Seat], now: float) -> None:
        """Ask for units back that have not begun: where another host would end them earlier, or the node is ending."""
        moves = self._scheduler.recall(now)
        for seat in (s for s in self.seats if s.announced):
            moves += [Move(seat.desk, p) for p in seat.desk.held[1:] if not p.recalled]
        by_piece = {id(f.piece): ref for ref, f in self._flights.items()} if moves else {}
        for move in moves:
            move.piece.recalled = True
            ref = by_piece[id(move.piece)]
            if not self._flights[ref].stepped:  # what is stepped from outside has begun
                self._recalls[seats[move.desk.name].actor.recall.remote(self._flights[ref].ticket)] = ref

    def _take_back(self) -> None:
        """Put back what was recalled before it began."""
        if not self._recalls:
            return
        answered, _ = ray.wait(list(self._recalls), num_returns=len(self._recalls), timeout=0)
        for ref in answered:
            flown = self._recalls.pop(ref)
            if fetch(ref) is True and flown in self._flights:
                flight = self._flights.pop(flown)
                self._scheduler.landed(flight.seat.desk, flight.piece, time.monotonic(), done=False)
                self._scheduler.put_back(flight.piece)

    def _land(self, ref: Any) -> list[Outcome]:
        flight, now = self._flights.pop(ref), time.monotonic()
        seat, piece = flight.seat, flight.piece
        overdue = seat.gone_at is not None and now - seat.gone_at > LANDING_SECONDS
        answer = fetch(ref, 0.0 if overdue else GET_SECONDS)
        if isinstance(answer, Lost):
            if flight.stepped and not answer.told:
                if seat.stepper is flight.stepper:  # else another one steps there already
                    self._steppers.drop(seat)
                answer = replace(answer, host=False)
            return self._lose(flight, answer)
        self._scheduler.landed(seat.desk, piece, now, done=not isinstance(answer, Failed))
        if isinstance(answer, Failed):
            if isinstance(answer.error, UserError) and answer.error.ends_run:
                raise answer.error
            return [self._outcome(flight, error=answer.line)]
        return [self._outcome(flight, result=answer)]

    def _lose(self, flight: Flight, lost: Lost) -> list[Outcome]:
        """A unit is to be done again, unless it has cost too many hosts."""
        seat, piece = flight.seat, flight.piece
        if lost.host:
            self._crew.lose(seat, lost.reason, announced=lost.node_ended)
        self._scheduler.landed(seat.desk, piece, time.monotonic(), done=False)
        if not lost.recalled:
            piece.retries += 1
            piece.reexecuted += lost.asked
            self._crew.metrics.retried()
            if not (seat.announced or lost.node_ended):
                # Whatever the host held may have been its death, and flies alone from now on; a death is counted
                # only against what was surely at work.
                # What is stepped shares its host with many, and is suspected only when it is lost again.
                piece.deaths += self._is_to_blame(flight)
                piece.suspect = not flight.stepped or piece.retries > 1
        if piece.deaths >= DEATHS_ALLOWED:
            return [self._outcome(flight, error=f"its hosts died {piece.deaths} times: {lost.reason}")]
        self._scheduler.put_back(piece)
        return []

    def _is_to_blame(self, flight: Flight) -> bool:
        if flight.stepped:
            return flight.piece.suspect  # it shares its stepper and its host, until it flies alone
        if flight.seat.gone_at is None:
            return True  # the host lives: its own task died, or its own result was lost
        # One thread computes, in the order of the calls: the first was at work.
        return flight.seat.held_last[:1] == [flight.piece]

    def _outcome(self, flight: Flight, *, result: Any = None, error: str | None = None) -> Outcome:
        return Outcome(
            unit=flight.piece.unit,
            result=result,
            error=error,
            host=flight.seat.name,
            seconds=time.monotonic() - flight.started,
            retries=flight.piece.retries,
            queries_reexecuted=flight.piece.reexecuted,
        )
