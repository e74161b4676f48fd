"""Actors that hold a host, and the CPU tasks that step query attacks against one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from torch import Tensor

from udc_ray.attacks.oracle import ScoreRequest
from udc_ray.crafted import Crafted
from udc_ray.crafting import Goals, craft_by_queries
from udc_ray.errors import UserError
from udc_ray.host import Host
from udc_ray.plan import Unit
from udc_ray.probe import Resolved
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup
from udc_ray.views import View


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A query unit whose host died; `asked` queries had been answered and will be asked again."""

    asked: int
    reason: str


class HostActor:
    """A `Host` in a process of its own, one call at a time."""

    def __init__(self, setup: HostSetup, device: str, name: str) -> None:
        # An actor whose constructor raises is dead to its callers, and they learn nothing but that.
        try:
            self._host: Host | UserError = Host(setup, device=device, name=name)
        except UserError as error:
            self._host = error

    @property
    def host(self) -> Host:
        """The host, or why there is none."""
        if isinstance(self._host, UserError):
            raise self._host
        return self._host

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """See `Host.resolve`."""
        return self.host.resolve(shapes)

    def configure(self, resolved: Resolved) -> None:
        """See `Host.configure`."""
        self.host.configure(resolved)

    def run(self, unit: Unit) -> UnitResult:
        """See `Host.run`."""
        return self.host.run(unit)

    def goals(self, unit: Unit) -> Goals:
        """See `Host.goals`."""
        return self.host.goals(unit)

    def score(self, request: ScoreRequest) -> list[float]:
        """See `Host.score`."""
        return self.host.score(request)

    def finish(self, unit: Unit, crafted: list[Crafted]) -> UnitResult:
        """See `Host.finish`."""
        return self.host.finish(unit, crafted)

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """See `Host.views`."""
        return self.host.views(cell, x_adv)

    def describe(self) -> dict[str, object]:
        """See `Host.describe`."""
        return self.host.describe()


def query_unit(setup: HostSetup, unit: Unit, host: Any) -> UnitResult | Lost:
    """Step the machines of a unit here, on a CPU; only candidates travel to the host."""
    asked = 0

    def score(request: ScoreRequest) -> list[float]:
        nonlocal asked
        answer: list[float] = ray.get(host.score.remote(request))
        asked += len(request.image_ids)
        return answer

    try:
        crafted = craft_by_queries(setup, unit, ray.get(host.goals.remote(unit)), score)
        result: UnitResult = ray.get(host.finish.remote(unit, crafted))
    except ray.exceptions.RayActorError as error:
        return Lost(asked=asked, reason=str(error))
    return result
