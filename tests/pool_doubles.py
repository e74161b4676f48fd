"""Hosts that compute nothing, for the pool: they sleep, die, hang or fail as their tasks say. No torch in them."""

from __future__ import annotations

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
    """What a host is to do; `once` names a file that a deadly or hanging task makes, and then is harmless."""

    name: str
    victim: int = 0
    seconds: float = 0.0
    cost: float = 1.0
    manner: str = ""
    once: str = ""
    payload: int = 0


@dataclass(frozen=True)
class Setup:
    """What all hosts are told: seconds that a host takes to start, and how much slower host-0 is than the others."""

    start_s: float = 0.0
    slow: float = 1.0


@dataclass(frozen=True)
class Done:
    """What a host sends back."""

    name: str
    host: str
    pid: int
    payload: bytes


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
        if task.once:
            if Path(task.once).exists():
                return
            Path(task.once).touch()
        if task.manner == "die":
            os._exit(1)
        if task.manner == "hang":
            threading.Event().wait()
        if task.manner == "fail":
            raise ArithmeticError(f"{task.name} cannot be done\nand here is why")


def step(setup: Setup, task: Task, host: Any) -> Any:
    """A task beside the host; it says where it ran by its own process."""
    try:
        done: Done = ray.get(host.run.remote(task, 0))
    except ray.exceptions.RayActorError as error:
        return Lost(reason=str(error), asked=7, host=True)
    return replace(done, pid=os.getpid())


KIND = Kind(
    actor=Simulated,
    step=step,
    is_stepped=lambda setup, task: task.name.startswith("stepped"),
    cost=lambda setup, task: task.cost,
    victim=lambda task: task.victim,
    keep=lambda task: frozenset({task.victim}),
)
