"""Actors that hold a host."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from udc_ray.attacks.oracle import ScoreRequest
from udc_ray.attacks.query import Answer
from udc_ray.checks.readings import Reading
from udc_ray.crafted import Crafted
from udc_ray.crafting import Goals
from udc_ray.errors import UserError
from udc_ray.host import Host
from udc_ray.hosting import make_host
from udc_ray.in_process import chains_of
from udc_ray.meter import Pulse
from udc_ray.plan import Unit
from udc_ray.probe import Resolved
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup
from udc_ray.stepping import is_stepped, lanes_of
from udc_ray.views import View
from udc_ray_cluster.losses import Lost
from udc_ray_cluster.placement import IN_FLIGHT, Kind
from udc_ray_cluster.seats import Arrival, Tickets, arrival
from udc_ray_cluster.stepping import StepperActor


class HostActor:
    """A `Host` in a process of its own, one call at a time; only `pulse` and `recall` are answered beside it."""

    def __init__(self, setup: HostSetup, device: str, name: str) -> None:
        # An actor whose constructor raises is dead to its callers, and they learn nothing but that.
        try:
            self._host: Host | UserError = make_host(setup, device=device, name=name)
        except UserError as error:
            self._host = error
        self._tickets = Tickets()

    @property
    def host(self) -> Host:
        """The host, or why there is none."""
        if isinstance(self._host, UserError):
            raise self._host
        return self._host

    def arrive(self) -> Arrival:
        """Where this is, once the constructor is through."""
        if isinstance(self._host, UserError):
            return arrival(memory=0, error=self._host)
        if self._host.device == "cuda":
            return arrival(memory=torch.cuda.get_device_properties(0).total_memory)
        return arrival(memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    def pulse(self) -> Pulse:
        """What was done so far; answered by a thread of its own."""
        return self._host.meter.read() if isinstance(self._host, Host) else Pulse()

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """See `Host.resolve`."""
        with self.host.meter.work("the probe of the models"):
            return self.host.resolve(shapes)

    def configure(self, resolved: Resolved) -> None:
        """See `Host.configure`."""
        self.host.configure(resolved)

    def speeds(self, victims: Sequence[int], seconds: float) -> dict[int, float]:
        """See `Host.speeds`."""
        with self.host.meter.work("a probe of the speed"):
            return self.host.speeds(victims, seconds)

    def probe_gradients(self) -> list[Reading]:
        """See `Host.probe_gradients`."""
        with self.host.meter.work("a probe of the gradients"):
            return self.host.probe_gradients()

    def keep(self, defences: Collection[int]) -> None:
        """See `Host.keep`."""
        self.host.keep(defences)

    def run(self, unit: Unit, ticket: int) -> UnitResult | Lost:
        """See `Host.run`; nothing is done for a ticket that was recalled."""
        return self.host.run(unit) if self._tickets.begin(ticket) else Lost(reason="taken back", recalled=True)

    def recall(self, ticket: int) -> bool:
        """See `Tickets.recall`; answered beside the work."""
        return self._tickets.recall(ticket)

    def goals(self, unit: Unit) -> Goals:
        """See `Host.goals`."""
        return self.host.goals(unit)

    def score(self, request: ScoreRequest) -> list[Answer]:
        """See `Host.score`."""
        return self.host.score(request)

    def finish(self, unit: Unit, crafted: list[Crafted]) -> UnitResult:
        """See `Host.finish`."""
        return self.host.finish(unit, crafted)

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """See `Host.views`."""
        with self.host.meter.work("pictures"):
            return self.host.views(cell, x_adv)

    def describe(self) -> dict[str, object]:
        """See `Host.describe`."""
        return self.host.describe()

    def close(self) -> None:
        """See `Host.close`."""
        self.host.close()


def _load(setup: HostSetup, unit: Unit) -> float:
    """Share of a host that a unit takes; query units, until their chains fill the batches under way."""
    if not is_stepped(setup, unit):
        return 1 / IN_FLIGHT
    return min(1 / IN_FLIGHT, chains_of(setup, unit) / lanes_of(setup).chains)


HOSTS = Kind(
    actor=HostActor,
    stepper=StepperActor,
    is_stepped=is_stepped,
    cost=lambda setup, unit: float(setup.plan.cost(unit)),
    load=_load,
    victim=lambda unit: int(unit.victim),
    keep=lambda unit: frozenset({unit.victim, *(cell.defence for cell in unit.cells)}),
)
"""The hosts of a run: models on a device, gradient attacks on it, query attacks stepped beside it."""
