"""Hosts that compute nothing, for the pool: they sleep, die, hang or fail as their tasks say. No torch in them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from udc_ray.meter import Meter, Pulse
from udc_ray_cluster.losses import Lost
from udc_ray_cluster.placement import Kind
from udc_ray_cluster.seats import Arrival, Tickets, arrival


@dataclass(frozen=True)
class Task:
    """What a host or its stepper is to do; tasks whose name begins with ``stepped`` go by way of the stepper.

    A host may ``die``, ``hang`` or ``fail``, a stepper may ``end`` (its process) or be ``patient``: then it
    waits for so many seconds, or for a halt, before it goes to the host. `once` names a file that a deadly
    or hanging task makes, and then is harmless.
    """

    name: str
    victim: int = 0
    seconds: float = 0.0
    cost: float = 1.0
    manner: str = ""
    once: str = ""
    payload: int = 0
    load: float = 0.5


@dataclass(frozen=True)
class Setup:
    """What all hosts are told: seconds that a host takes to start, and how much slower host-0 is than the others."""

    start_s: float = 0.0
    slow: float = 1.0


@dataclass(frozen=True)
class Done:
    """What a host sends back; a stepper puts its own process, how it was halted, and how many units it held."""

    name: str
    host: str
    pid: int
    payload: bytes
    ending: str | None = None
    together: int = 0


def node_of(name: str) -> str:
    """Id of the node that a host pretends to be on."""
    return hashlib.sha224(name.encode()).hexdigest()


class Simulated:
    """A host, each on a node of its own name."""

    def __init__(self, setup: Setup, device: str, name: str) -> None:
        time.sleep(setup.start_s)
        self.name, self.slow = name, setup.slow if name == "host-0" else 1.0
        self.meter, self.tickets, self.kept = Meter(), Tickets(), list[frozenset[int]]()

    def arrive(self) -> Arrival:
        return replace(arrival(memory=1), node=node_of(self.name))

    def pulse(self) -> Pulse:
        return self.meter.read()

    def recall(self, ticket: int) -> bool:
        return self.tickets.recall(ticket)

    def keep(self, victims: frozenset[int]) -> None:
        self.kept.append(victims)

    def run(self, task: Task, ticket: int) -> Done | Lost:
        if not self.tickets.begin(ticket):
            return Lost(reason="taken back", recalled=True)
        with self.meter.work(task.name):
            self._behave(task)
            time.sleep(task.seconds * self.slow)
            self.meter.step(1)
        return Done(task.name, self.name, os.getpid(), os.urandom(task.payload))

    def describe(self) -> dict[str, object]:
        return {"pid": os.getpid(), "kept": self.kept}

    def _behave(self, task: Task) -> None:
        if not is_due(task, "die", "hang", "fail"):
            return
        if task.manner == "die":
            os._exit(1)
        if task.manner == "hang":
            threading.Event().wait()
        if task.manner == "fail":
            raise ArithmeticError(f"{task.name} cannot be done\nand here is why")


def is_due(task: Task, *manners: str) -> bool:
    """Whether a task misbehaves in one of these manners now."""
    if task.manner not in manners:
        return False
    if task.once:
        if Path(task.once).exists():
            return False
        Path(task.once).touch()
    return True


class SimulatedStepper:
    """The actor beside a host; it holds many tasks at once."""

    def __init__(self, setup: Setup, host: Any) -> None:
        self.host, self.ending = host, None
        self.under_way: list[str] = []

    async def step(self, task: Task) -> Done | Lost:
        self.under_way.append(task.name)
        together = len(self.under_way)
        try:
            if is_due(task, "end"):
                await asyncio.sleep(task.seconds)
                os._exit(1)
            until = time.monotonic() + task.seconds
            while task.manner == "patient" and time.monotonic() < until and self.ending is None:
                together = max(together, len(self.under_way))
                await asyncio.sleep(0.01)
            done: Done = await self.host.run.remote(replace(task, seconds=0.0), 0)
        except ray.exceptions.RayActorError as error:
            return Lost(reason=str(error), asked=7, host=True, told=True)
        finally:
            self.under_way.remove(task.name)
        return replace(done, pid=os.getpid(), ending=self.ending, together=together)

    async def halt(self, ending: Any) -> None:
        self.ending = ending

    async def snapshot(self) -> list[str]:
        return list(self.under_way)


KIND = Kind(
    actor=Simulated,
    stepper=SimulatedStepper,
    is_stepped=lambda setup, task: task.name.startswith("stepped"),
    cost=lambda setup, task: task.cost,
    load=lambda setup, task: task.load,
    victim=lambda task: task.victim,
    keep=lambda task: frozenset({task.victim}),
)
