"""The hosts of a pool as they come and go: growth, heartbeat, nodes that announce their end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from udc_ray.errors import UserError
from udc_ray_cluster.losses import Failed, Lost, could_not_begin, fetch
from udc_ray_cluster.metrics import PoolMetrics
from udc_ray_cluster.nodes import Nodes
from udc_ray_cluster.placement import Census, Kind, Placement, hosts_to_ask_for
from udc_ray_cluster.scheduling import Scheduler
from udc_ray_cluster.seats import Arrival, Seat, Seats
from udc_ray_cluster.watch import Watch

TEND_SECONDS = 0.25
"""How often the hosts are looked after; every look takes a few milliseconds."""
PULSE_SECONDS, PULSES_PER_SECOND = 5.0, 50
"""A pulse of every host so often, less often where there are so many that the driver would do little else."""
LONELY_SECONDS = 60.0
"""After so long without any host, and every ten times as long, the user is told."""
STARTS_ALLOWED = 3
"""Hosts in a row that ended before they could begin, until growth rests for a while."""
FAREWELL_SECONDS = 20.0
"""How long hosts have to close what outlives them."""
REST_SECONDS = 60.0
"""How long growth rests, and how long a host that is not needed may idle."""


class Crew:
    """Looks after the hosts of one pool. Nothing here waits for a host.

    Args:
        kind: what the hosts are.
        placement: how many there are, and what each takes.
        device: device of each.
        note: tells the user something.
    """

    def __init__(self, kind: Kind, placement: Placement, device: str, note: Callable[[str], None]) -> None:
        self.placement, self.note = placement, note
        self.seats: list[Seat] = []
        self.departed: dict[str, Any] = {}
        self.scheduler = Scheduler()
        self.metrics = PoolMetrics()
        self._factory = Seats(kind, placement, device)
        self._watch, self._nodes = Watch(placement.silence_s), Nodes()
        self._setup_ref: Any = None
        self._failed_starts = 0
        self._announced: set[str] = set()
        self._tended = self._pulsed = self._resting = float("-inf")
        self._lonely = time.monotonic()

    @property
    def ready(self) -> list[Seat]:
        """Hosts that answer and are not about to go."""
        return [s for s in self.seats if s.ready and not s.announced]

    @property
    def coming(self) -> list[Seat]:
        """Hosts that were asked for and are not there yet."""
        return [s for s in self.seats if s.arrived is None]

    def open(self, setup_ref: Any) -> None:
        """Ask for the first hosts, each made from a setup."""
        self._setup_ref = setup_ref
        self._ask_for(self.placement.least)

    def reconfigure(self, setup_ref: Any) -> None:
        """Make the hosts to come from another setup."""
        self._setup_ref = setup_ref

    def serve(self, scheduler: Scheduler) -> None:
        """Let the hosts work for a scheduler."""
        self.scheduler = scheduler
        for seat in self.ready:
            seat.desk.held.clear()
            scheduler.add(seat.desk)

    def tend(self, waiting: int | None = None) -> None:
        """Look after the hosts, at most every `TEND_SECONDS`.

        Args:
            waiting: units that no host holds; None while there are no units yet: then the first hosts are
                replaced, and no more are asked for.

        Raises:
            UserError: no host can be started.
        """
        now = time.monotonic()
        if now - self._tended < TEND_SECONDS:
            return
        self._tended = now
        self._receive(now)
        self._mark_ending(now)
        self._hear(now)
        self._grow(waiting, now)
        often = min(PULSE_SECONDS, self.placement.silence_s / 4)
        if now - self._pulsed >= max(often, len(self.seats) / PULSES_PER_SECOND):
            self._pulsed = now
            self._feel(now)
            self.metrics.show(self.ready, len(self.coming), self._watch)

    def lose(self, seat: Seat, reason: str, *, announced: bool = False) -> None:
        """A host is dead, hung or out of reach: give it up, whatever it may still do."""
        if seat.gone_at is not None:
            return
        now = time.monotonic()
        seat.announced = announced or seat.announced or self.has_ended(seat)
        self.note(f"{seat.where} is gone; its units go elsewhere: {reason}")
        seat.held_last = list(seat.desk.held)
        self._dismiss(seat, now)
        ray.kill(seat.actor)

    def has_ended(self, seat: Seat) -> bool:
        """Whether the node of a host announced its end or is gone."""
        return seat.arrived is not None and self._nodes.ended(seat.arrived.node, time.monotonic())

    def close(self, *, farewell: bool = False) -> None:
        """Let all hosts go.

        Args:
            farewell: let them close what outlives them first.
        """
        if farewell:
            closing = [seat.actor.close.remote() for seat in self.ready]
            ray.wait(closing, num_returns=len(closing), timeout=FAREWELL_SECONDS) if closing else None
        for seat in self.seats:
            ray.kill(seat.actor)

    def _receive(self, now: float) -> None:
        coming = {seat.coming: seat for seat in self.coming}
        if not coming:
            return
        answered, _ = ray.wait(list(coming), num_returns=len(coming), timeout=0)
        for ref in answered:
            self._take_in(coming[ref], fetch(ref), now)

    def _take_in(self, seat: Seat, answer: Arrival | Lost | Failed, now: float) -> None:
        if isinstance(answer, Arrival) and answer.error is None:
            seat.arrived, self._failed_starts, seat.desk.since = answer, 0, now
            self._watch.enter(seat.name, now)
            self.scheduler.add(seat.desk)
            return
        self._dismiss(seat, now)
        ray.kill(seat.actor)
        if isinstance(answer, Lost) and answer.node_ended:
            return  # another one is asked for
        self._failed_starts += 1
        error = answer.error if isinstance(answer, Arrival) else None
        if isinstance(answer, Lost | Failed):
            error = could_not_begin(answer.reason if isinstance(answer, Lost) else answer.line)
        unusable = isinstance(answer, Arrival) or self._failed_starts >= STARTS_ALLOWED
        if error is not None and unusable and not self.ready and not self.coming:
            raise error
        self.note(f"{seat.name} could not begin: {error.what if isinstance(error, UserError) else error}")
        if self._failed_starts >= STARTS_ALLOWED:
            self._resting = now + REST_SECONDS

    def _mark_ending(self, now: float) -> None:
        for seat in [s for s in self.seats if s.ready and s.arrived is not None]:
            node = seat.arrived.node if seat.arrived is not None else ""
            if not seat.announced and node in self._nodes.draining(now):
                seat.announced, seat.desk.open = True, False
                if node not in self._announced:
                    self._announced.add(node)
                    self.note(f"the node of {seat.where} announces its end; it takes no new units")
            if seat.announced and not seat.desk.held and not seat.errand:
                self._retire(seat, now)

    def _grow(self, waiting: int | None, now: float) -> None:
        ready, coming = self.ready, self.coming
        if ready or not coming:
            self._lonely = now
        elif now - self._lonely >= LONELY_SECONDS:
            what = "GPU" if self.placement.num_gpus else "CPU"
            self.note(f"no host has come up for {LONELY_SECONDS:.0f} s: the cluster has no free {what}; waiting")
            self._lonely = now + 9 * LONELY_SECONDS
        if waiting == 0 and len(ready) > self.placement.least:
            idle = [s for s in ready if not s.desk.held and not s.errand and now - s.desk.since > REST_SECONDS]
            for seat in idle[: len(ready) - self.placement.least]:
                self._retire(seat, now)
        if waiting is None:
            wanted = max(0, self.placement.least - len(ready) - len(coming))
        else:
            wanted = hosts_to_ask_for(self.placement, Census(ready=len(ready), pending=len(coming), waiting=waiting))
        for seat in coming[len(coming) + wanted :] if wanted < 0 else []:
            self._dismiss(seat, now)
            ray.kill(seat.actor)
        if now >= self._resting:
            self._ask_for(wanted)

    def _ask_for(self, count: int) -> None:
        self.seats += [self._factory.ask(self._setup_ref) for _ in range(count)]

    def _hear(self, now: float) -> None:
        """Take in the pulses that have answered, and give up the hosts that are hung."""
        felt = {seat.pulse: seat for seat in self.seats if seat.pulse is not None}
        answered = ray.wait(list(felt), num_returns=len(felt), timeout=0)[0] if felt else []
        for ref in answered:
            seat, answer = felt[ref], fetch(ref)
            seat.pulse = None
            if isinstance(answer, Lost) and answer.host:
                self.lose(seat, answer.reason, announced=answer.node_ended)
            elif not isinstance(answer, Lost | Failed):
                self._watch.heard(seat.name, answer, now)
        for seat in [s for s in self.seats if s.ready]:
            if not seat.desk.held and not seat.errand:
                self._watch.rested(seat.name, now)
            trouble = self._watch.trouble(seat.name, now)
            if trouble is not None:
                self.lose(seat, f"{trouble}; it is taken for hung")

    def _feel(self, now: float) -> None:
        for seat in self.seats:
            if seat.ready and seat.pulse is None:
                seat.pulse = seat.actor.pulse.remote()
                self._watch.asked(seat.name, now)

    def _retire(self, seat: Seat, now: float) -> None:
        """Let a host go that holds nothing, once it has said what it did."""
        self.departed[seat.name] = seat.actor.describe.remote()
        seat.actor.__ray_terminate__.remote()
        self._dismiss(seat, now)

    def _dismiss(self, seat: Seat, now: float) -> None:
        seat.gone_at = now
        self.seats = [s for s in self.seats if s is not seat]
        self._watch.leave(seat.name)
        self.scheduler.remove(seat.desk)
        self.metrics.gone(seat.name)
