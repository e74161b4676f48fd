"""A place in the pool: one actor, from the moment it is asked for until it is gone."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import ray

from udc_ray.errors import UserError
from udc_ray_cluster.placement import Kind, Placement
from udc_ray_cluster.scheduling import Desk, Piece

PULSE = "pulse"
"""Concurrency group of the heartbeat. The group that computes keeps its one thread, with the queue in front:
with more, CUDA memory grows with every thread that computes."""
BESIDE = ("pulse", "recall")
"""Methods of every kind of host that are answered by it, while the host computes."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """What a host says when its constructor is through.

    Attributes:
        node: id of its node.
        address: IP address of the node.
        pid: its process.
        memory: bytes of its device.
        error: why it is of no use.
    """

    node: str
    address: str
    pid: int
    memory: int
    error: UserError | None = None


def arrival(memory: int, error: UserError | None = None) -> Arrival:
    """The arrival of the actor that calls."""
    return Arrival(
        node=ray.get_runtime_context().get_node_id(),
        address=ray.util.get_node_ip_address(),
        pid=os.getpid(),
        memory=memory,
        error=error,
    )


class Tickets:
    """Numbers of the calls to one actor, so that one that waits in its queue can be taken back for certain.

    Ray's own `cancel` cannot do it: it also throws away the result of a call that was begun meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun, self._recalled = 0, set[int]()

    def begin(self, ticket: int) -> bool:
        """Whether a call is to be carried out; asked by the thread that computes, in the order of the tickets."""
        with self._lock:
            self._begun = max(self._begun, ticket)
            return ticket not in self._recalled

    def recall(self, ticket: int) -> bool:
        """Whether a call had not begun; then it never will."""
        with self._lock:
            if ticket <= self._begun:
                return False
            self._recalled.add(ticket)
            return True


@dataclass(eq=False)
class Seat:
    """A host of the pool; it is never used again once it is gone.

    Attributes:
        name: name in the records.
        actor: its handle.
        coming: the answer that it has arrived, while it is awaited.
        desk: what the policy sees of it.
        arrived: where it is, once it is ready.
        pulse: the pulse that is awaited.
        gone_at: when it was given up.
        held_last: what it held then, in the order in which it was handed out.
        errand: it was asked for something that is no unit.
        announced: its node had announced its end.
        keeps: the defences that it may hold models of.
        tickets: calls that were sent to it.
        stepper: the actor that steps its query units, once there were any.
    """

    name: str
    actor: Any
    coming: Any
    desk: Desk
    arrived: Arrival | None = None
    pulse: Any = None
    gone_at: float | None = None
    held_last: list[Piece] = field(default_factory=list)
    errand: bool = False
    announced: bool = False
    keeps: frozenset[int] = frozenset()
    tickets: int = 0
    stepper: Any = None

    @property
    def ready(self) -> bool:
        """Whether it has arrived and is not gone."""
        return self.arrived is not None and self.gone_at is None

    @property
    def where(self) -> str:
        """Name and address, for people."""
        return f"{self.name} on {self.arrived.address}" if self.arrived is not None else self.name


class Seats:
    """Asks Ray for actors of one kind.

    Args:
        kind: what they are.
        placement: what each takes.
        device: device of each.
    """

    def __init__(self, kind: Kind, placement: Placement, device: str) -> None:
        self._count, self._device = 0, device
        options = {
            "num_cpus": placement.num_cpus,
            "num_gpus": placement.num_gpus,
            "max_restarts": 0,  # the pool asks for another one itself, so that it knows
            "max_task_retries": 0,
            "max_concurrency": placement.calls,
        }
        for name in BESIDE:  # marked here, as clients through ray:// cannot name a group with a call
            ray.method(concurrency_group=PULSE)(getattr(kind.actor, name))
        self._actors = ray.remote(concurrency_groups={PULSE: 1})(kind.actor).options(**options)

    def ask(self, setup_ref: Any) -> Seat:
        """Ask for one more host."""
        name = f"host-{self._count}"
        self._count += 1
        actor = self._actors.remote(setup_ref, self._device, name)
        return Seat(name=name, actor=actor, coming=actor.arrive.remote(), desk=Desk(name=name))
