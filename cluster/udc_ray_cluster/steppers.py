"""The steppers of a pool: one beside every host that has query units, made when it gets its first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from udc_ray_cluster.losses import Failed, Lost, fetch
from udc_ray_cluster.seats import Seat

if TYPE_CHECKING:
    from udc_ray.pool import Ending, Keep

AT_ONCE = 1000
"""Units that a stepper may hold; the scheduler hands out far fewer."""
KEEP_SECONDS = 60.0
"""How often the states of chains under way are fetched."""


class Steppers:
    """Makes, halts and lets go of steppers.

    Args:
        kind: class of the actors; None where nothing is stepped.
    """

    def __init__(self, kind: type | None) -> None:
        self._actors = None if kind is None else ray.remote(kind)
        self._seats: list[Seat] = []
        self._ending: Ending | None = None
        self._asked: list[Any] = []
        self._kept = time.monotonic()

    def beside(self, seat: Seat, setup_ref: Any) -> Any:
        """The stepper of a host: on its node, so that candidates stay in its memory.

        It reserves nothing, so it never waits for a place, and Ray does not start it again.
        """
        if seat.stepper is None and self._actors is not None:
            node = seat.arrived.node if seat.arrived is not None else ""
            affinity = NodeAffinitySchedulingStrategy(node_id=node, soft=True)
            options = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": AT_ONCE, "scheduling_strategy": affinity}
            seat.stepper = self._actors.options(**options).remote(setup_ref, seat.actor)
            self._seats.append(seat)
            if self._ending is not None:
                seat.stepper.halt.remote(self._ending)
        return seat.stepper

    def halt(self, ending: Ending) -> None:
        """End all chains early; once is enough."""
        if ending != self._ending:
            self._ending = ending
            for seat in self._seats:
                seat.stepper.halt.remote(ending)

    def keep(self, keep: Keep) -> None:
        """Hand on the states of chains under way, from time to time; a stepper that does not answer is passed over."""
        if self._asked:
            answered, self._asked = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
            for ref in answered:
                states = fetch(ref)
                for unit in () if isinstance(states, Lost | Failed) else states:
                    keep(unit)
        if time.monotonic() - self._kept > KEEP_SECONDS:
            self._kept = time.monotonic()
            self._asked = [seat.stepper.snapshot.remote() for seat in self._seats]

    def sweep(self, busy: set[int]) -> None:
        """Let go of the steppers of hosts that are gone, once what they held is through.

        Args:
            busy: identities of the seats that hold units.
        """
        for seat in [s for s in self._seats if s.gone_at is not None and id(s) not in busy]:
            self.drop(seat)

    def drop(self, seat: Seat) -> None:
        """Let go of one stepper; the host gets another one when it needs it."""
        if seat.stepper is not None:
            ray.kill(seat.stepper)
            seat.stepper = None
            self._seats = [s for s in self._seats if s is not seat]

    def close(self) -> None:
        """Let go of all."""
        for seat in list(self._seats):
            self.drop(seat)
