"""How many hosts there are, and what each takes of the cluster; pure decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # hosts import this, and need no pydantic
    from udc_ray.spec import RunSettings

IN_FLIGHT = 2
"""Units a host holds: one at work, one waiting, so that it never idles."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is asked of a cluster.

    Attributes:
        least: hosts that are started at once, and replaced when they end.
        most: hosts at most; None is as many as there is work and room for.
        num_cpus: CPUs that Ray reserves for a host.
        num_gpus: GPUs, or a share of one.
        silence_s: seconds without progress after which a host is hung.
        calls: calls that a host works on at once; more than one where it waits for others, and computes nothing.
    """

    least: int
    most: int | None = None
    num_cpus: float = 0
    num_gpus: float = 0
    silence_s: float = 600
    calls: int = 1


def place(run: RunSettings, device: str, *, existing: bool, gpus: float = 0) -> Placement:
    """Placement of the hosts of a run.

    Args:
        run: what the spec asks for.
        device: ``cpu`` or ``cuda``.
        existing: the cluster is there already, shared with others; else Ray was started here for this run.
        gpus: GPUs of a Ray that was started here.
    """
    share = run.host_gpus if device == "cuda" else 0.0
    silence_s = 60 * run.silence_minutes
    if existing:
        least = run.hosts if run.max_hosts is None else min(run.hosts, run.max_hosts)
        cpus = float(run.threads) if run.host_cpus is None else run.host_cpus
        return Placement(least=least, most=run.max_hosts, num_cpus=cpus, num_gpus=share, silence_s=silence_s)
    # One machine of our own: what is asked for must fit, so CPUs are not counted, and GPUs bound the hosts.
    most = run.max_hosts or run.hosts
    if share:
        most = max(1, min(most, int(gpus / share)))
    return Placement(least=min(run.hosts, most), most=most, num_gpus=share, silence_s=silence_s)


def place_metered(run: RunSettings, concurrency: int) -> Placement:
    """Placement of the one host that asks a metered target, as there is one account of it."""
    # beside the requests: goals and scores of a unit, and the errands of the pool
    return Placement(least=1, most=1, silence_s=60 * run.silence_minutes, calls=concurrency + 2)


@dataclass(frozen=True, kw_only=True)
class Census:
    """Hosts and work at one moment.

    Attributes:
        ready: hosts that answer.
        pending: hosts that were asked for and are not there yet.
        waiting: units that no host holds.
    """

    ready: int
    pending: int
    waiting: int


def hosts_to_ask_for(placement: Placement, census: Census) -> int:
    """How many hosts to ask for now; below 0, how many pending ones are needed no more.

    Growth doubles at most, so that a cluster that cannot grow is not asked for everything. What is
    pending is what Ray's autoscaler sees as demand.
    """
    total = census.ready + census.pending
    if census.waiting == 0:
        return -min(census.pending, max(0, total - placement.least))
    if total < placement.least:
        return placement.least - total
    room = census.waiting if placement.most is None else placement.most - total
    useful = -(-census.waiting // IN_FLIGHT) - census.pending
    return max(0, min(room, useful, max(1, census.ready) - census.pending))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the hosts of a pool are, and how they are spoken to.

    An actor is made from (setup, device, name) and answers `arrive`, `configure`, `run` (a unit and its
    ticket), `keep`, `resolve`, `views`, `describe` and, beside its work, `pulse` and `recall`.

    Attributes:
        actor: class of the hosts.
        stepper: class of the actor that steps units from outside the host, on a CPU; made from (setup, actor of
            the host), it answers `step` (a unit), `halt` (an ending) and `snapshot`. None where nothing is stepped.
        is_stepped: whether a unit goes by way of the stepper.
        cost: expected cost of a unit, in a unit of its own.
        load: share of a host that a unit takes while it is held; a host takes more until it is full.
        victim: which victim a unit attacks.
        keep: what a host must hold for a unit; the rest it may let go.
    """

    actor: type
    stepper: type | None
    is_stepped: Callable[[Any, Any], bool]
    cost: Callable[[Any, Any], float]
    load: Callable[[Any, Any], float]
    victim: Callable[[Any], int]
    keep: Callable[[Any], frozenset[int]]
