"""The actor beside a host that steps its query units: many at once, so that batches stay full.

It is an actor, not a task, because a unit that ends makes room for another one in the same batches.
"""

from __future__ import annotations

from typing import Any

import ray

from udc_ray.attacks.batcher import Batcher
from udc_ray.attacks.oracle import ScoreRequest
from udc_ray.attacks.query import Answer
from udc_ray.crafted import Crafted
from udc_ray.crafting import Goals
from udc_ray.in_process import states_of
from udc_ray.plan import Unit
from udc_ray.pool import Ending
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup
from udc_ray.stepping import Stepper, lanes_of
from udc_ray_cluster.losses import Lost, first_line, node_ended


class Remote:
    """The calls to a host that is an actor."""

    def __init__(self, host: Any) -> None:
        self._host = host

    async def goals(self, unit: Unit) -> Goals:
        """See `Host.goals`."""
        goals: Goals = await self._host.goals.remote(unit)
        return goals

    async def score(self, request: ScoreRequest) -> list[Answer]:
        """See `Host.score`."""
        answers: list[Answer] = await self._host.score.remote(request)
        return answers

    async def finish(self, unit: Unit, crafted: list[Crafted]) -> UnitResult:
        """See `Host.finish`."""
        result: UnitResult = await self._host.finish.remote(unit, crafted)
        return result


class StepperActor:
    """Steps the query units of one host."""

    def __init__(self, setup: HostSetup, host: Any) -> None:
        calls, lanes = Remote(host), lanes_of(setup)
        self._stepper = Stepper(
            setup=setup,
            host=calls,
            batcher=Batcher(calls.score, lanes.slots, lanes.in_flight),
            find_state=states_of(setup),
        )

    async def step(self, unit: Unit) -> UnitResult | Lost:
        """Step a unit to its end; see `Stepper.step`."""
        try:
            return await self._stepper.step(unit)
        except ray.exceptions.RayActorError as error:
            asked = self._stepper.lost.pop(unit.key, 0)
            return Lost(reason=first_line(error), asked=asked, host=True, node_ended=node_ended(error), told=True)

    async def halt(self, ending: Ending) -> None:
        """End all chains early."""
        self._stepper.halt.ending = ending

    async def snapshot(self) -> list[UnitResult]:
        """See `Stepper.snapshot`."""
        return self._stepper.snapshot()
