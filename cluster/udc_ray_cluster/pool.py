"""The pool of hosts on Ray: units out, results in, dead hosts replaced.

Actor calls are at-most-once, so whatever was in flight on a host that died is simply run again:
units are pure, and the second answer has the same bits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from torch import Tensor

from udc_ray.attacks.query import QueryAttack
from udc_ray.errors import UserError
from udc_ray.plan import Unit
from udc_ray.pool import Outcome
from udc_ray.probe import Resolved
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup
from udc_ray.views import View
from udc_ray_cluster.host import HostActor, Lost, query_unit

IN_FLIGHT = 2
"""Units a host holds: one at work, one waiting, so that it never idles."""
DEATHS_ALLOWED = 3
"""A unit whose hosts died so often is recorded as poisoned."""


@dataclass
class Seat:
    """A host of the pool; `actor` is replaced when it dies."""

    name: str
    actor: Any
    held: int = 0
    alone: bool = False
    """Holds a unit that was in flight when a host died, and nothing else: another death is its own."""


@dataclass
class Flight:
    """A unit on its way."""

    unit: Unit
    seat: Seat
    actor: Any
    started: float
    deaths: int = 0
    reexecuted: int = 0


@dataclass
class Waiting:
    """A unit that is to be run again after its host died."""

    unit: Unit
    deaths: int = 0
    reexecuted: int = 0


@dataclass
class RayPool:
    """Hosts on a Ray cluster.

    Args:
        setup: the run.
        hosts: number of hosts.
        device: device of each host.
    """

    setup: HostSetup
    hosts: int
    device: str
    seats: list[Seat] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._setup_ref = ray.put(self.setup)
        self._task = ray.remote(query_unit).options(num_cpus=0, max_retries=0)
        self.seats = [Seat(name=f"host-{n}", actor=self._spawn(f"host-{n}")) for n in range(self.hosts)]

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """Probe on one host; all hosts are of one kind."""
        result: Resolved = _ask(self.seats[0].actor.resolve.remote(shapes))
        return result

    def configure(self, resolved: Resolved) -> None:
        """Adopt what the probes settled, on every host and for those to come."""
        self.setup = replace(self.setup, resolved=resolved)
        self._setup_ref = ray.put(self.setup)
        for ref in [seat.actor.configure.remote(resolved) for seat in self.seats]:
            _ask(ref)

    def map_unordered(self, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Yield outcomes as they come; at most `IN_FLIGHT` units a host are out."""
        source = (Waiting(unit=unit) for unit in units)
        again: deque[Waiting] = deque()
        flights: dict[Any, Flight] = {}
        while True:
            self._fill(flights, again, source)
            if not flights:
                return
            ready, _ = ray.wait(list(flights), num_returns=1)
            for ref in ready:
                outcome = self._land(ref, flights.pop(ref), again)
                if outcome is not None:
                    yield outcome

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """Pictures for the report, from the least busy host."""
        seat = min(self.seats, key=lambda s: s.held)
        result: dict[str, View] = ray.get(seat.actor.views.remote(cell, x_adv))
        return result

    def describe(self) -> dict[str, object]:
        """What each host is."""
        described: list[object] = ray.get([seat.actor.describe.remote() for seat in self.seats])
        return {seat.name: facts for seat, facts in zip(self.seats, described, strict=True)}

    def close(self) -> None:
        """Let the hosts go."""
        for seat in self.seats:
            ray.kill(seat.actor)

    def _spawn(self, name: str) -> Any:
        gpus = 1 if self.device == "cuda" else 0
        # The queue in front of the one compute thread is the actor's own, so max_concurrency stays 1;
        # the host sets its own number of threads.
        options = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": 1}
        return ray.remote(HostActor).options(**options).remote(self._setup_ref, self.device, name)

    def _fill(self, flights: dict[Any, Flight], again: deque[Waiting], source: Iterator[Waiting]) -> None:
        while True:
            open_seats = [s for s in self.seats if not s.alone and s.held < IN_FLIGHT]
            if not open_seats:
                return
            seat = min(open_seats, key=lambda s: s.held)
            if again and seat.held == 0:
                seat.alone = True
                self._launch(flights, seat, again.popleft())
                continue
            waiting = next(source, None)
            if waiting is None:
                return
            self._launch(flights, seat, waiting)

    def _launch(self, flights: dict[Any, Flight], seat: Seat, waiting: Waiting) -> None:
        attack = self.setup.plan.attacks[waiting.unit.attack].attack
        if isinstance(attack, QueryAttack):
            ref = self._task.remote(self._setup_ref, waiting.unit, seat.actor)
        else:
            ref = seat.actor.run.remote(waiting.unit)
        seat.held += 1
        flights[ref] = Flight(
            unit=waiting.unit,
            seat=seat,
            actor=seat.actor,
            started=time.monotonic(),
            deaths=waiting.deaths,
            reexecuted=waiting.reexecuted,
        )

    def _land(self, ref: Any, flight: Flight, again: deque[Waiting]) -> Outcome | None:
        flight.seat.held -= 1
        flight.seat.alone = False
        try:
            answer: UnitResult | Lost = ray.get(ref)
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
            answer = Lost(asked=0, reason=str(error))
        except ray.exceptions.RayTaskError as error:
            return self._outcome(flight, error=_first_line(error))
        if isinstance(answer, UnitResult):
            return self._outcome(flight, result=answer)
        return self._lose(flight, answer, again)

    def _lose(self, flight: Flight, lost: Lost, again: deque[Waiting]) -> Outcome | None:
        if flight.seat.actor is flight.actor:
            flight.seat.actor = self._spawn(flight.seat.name)
        flight.deaths += 1
        flight.reexecuted += lost.asked
        # The first death may be a companion's; those that follow are not, as a suspect flies alone.
        if flight.deaths >= DEATHS_ALLOWED:
            return self._outcome(flight, error=f"its hosts died {flight.deaths} times: {lost.reason.splitlines()[0]}")
        again.append(Waiting(unit=flight.unit, deaths=flight.deaths, reexecuted=flight.reexecuted))
        return None

    def _outcome(self, flight: Flight, *, result: UnitResult | None = None, error: str | None = None) -> Outcome:
        return Outcome(
            unit=flight.unit,
            result=result,
            error=error,
            host=flight.seat.name,
            seconds=time.monotonic() - flight.started,
            retries=flight.deaths,
            queries_reexecuted=flight.reexecuted,
        )


def _ask(ref: Any) -> Any:
    """Get an answer; a user error on the host stays one here, and a dead host becomes one."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"a host ended before it could begin: {str(error).splitlines()[0]}",
            "too little memory, or a library that cannot be loaded on the host",
            "give fewer hosts (--set run.hosts=1), or --in-process to see the failure here",
        ) from error


def _first_line(error: ray.exceptions.RayTaskError) -> str:
    cause = error.cause if error.cause is not None else error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
