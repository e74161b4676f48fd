"""How many hosts one driver keeps busy: simulated hosts that sleep in place of computing, driven by the pool itself."""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from udc_ray.meter import Meter, Pulse
from udc_ray_cluster.losses import Lost
from udc_ray_cluster.placement import IN_FLIGHT, Kind, Placement
from udc_ray_cluster.seats import Arrival, Tickets, arrival

if TYPE_CHECKING:
    from udc_ray_cluster.pool import RayPool

HOSTS = (1, 4, 16, 64)
PAYLOADS = (1_000, 200_000, 800_000, 12_600_000)
"""Bytes a batch: records only; 4 images of 64 x 64, 128 x 128 and 512 x 512 in float32."""
BATCH_SECONDS = 0.25
STEADY_SECONDS = 10.0
"""How long the hosts work while they are measured."""
SETTLE_BATCHES = 4
"""Batches of every host before it counts."""
STORE_BYTES = 3 * 1024**3
GOAL_HOSTS, GOAL_BYTES, GOAL = 64, 200_000, 0.90


@dataclass(frozen=True)
class Batch:
    """A unit of work: sleep, then answer with so many bytes."""

    number: int
    payload: int


@dataclass(frozen=True)
class Answer:
    """What a host sends back: when it slept (by the clock of this machine), and the bytes."""

    began: float
    ended: float
    payload: NDArray[np.float32]


class Sleeper:
    """A host that computes nothing and imports no torch."""

    def __init__(self, setup: None, device: str, name: str) -> None:
        self.meter, self.tickets, self.payload = Meter(), Tickets(), np.zeros(0, np.float32)

    def arrive(self) -> Arrival:
        """See `HostActor.arrive`."""
        return arrival(memory=0)

    def pulse(self) -> Pulse:
        """See `HostActor.pulse`."""
        return self.meter.read()

    def recall(self, ticket: int) -> bool:
        """See `HostActor.recall`."""
        return self.tickets.recall(ticket)

    def keep(self, victims: frozenset[int]) -> None:
        """It holds nothing."""

    def run(self, batch: Batch, ticket: int) -> Answer | Lost:
        """Sleep, and answer."""
        if not self.tickets.begin(ticket):
            return Lost(reason="taken back", recalled=True)
        if self.payload.nbytes != batch.payload:
            self.payload = np.ones(batch.payload // 4, np.float32)
        with self.meter.work(str(batch.number)):
            began = time.monotonic()
            time.sleep(BATCH_SECONDS)
            self.meter.step(1)
        return Answer(began, time.monotonic(), self.payload)


SLEEPERS = Kind(
    actor=Sleeper,
    stepper=None,
    is_stepped=lambda setup, batch: False,
    cost=lambda setup, batch: 1.0,
    load=lambda setup, batch: 1 / IN_FLIGHT,
    victim=lambda batch: 0,
    keep=lambda batch: frozenset(),
)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number of hosts and each payload."""
    rows = []
    with _ray():
        for hosts in HOSTS:
            pool = _pool(hosts)
            try:
                rows += [_row(pool, hosts, size) for size in PAYLOADS]
            finally:
                pool.close()
    return rows


@contextmanager
def _ray() -> Iterator[None]:
    """Local Ray on loopback, with an object store that holds every result in flight."""
    import ray

    from udc_ray_cluster import session

    os.environ.update(session.QUIET_ENVIRONMENT)
    session._stay_on_loopback()
    ray.init(**(session._arguments(2, None) | {"object_store_memory": STORE_BYTES}))
    try:
        yield
    finally:
        ray.shutdown()


def _pool(hosts: int) -> RayPool:
    """A pool whose hosts are all up."""
    from udc_ray_cluster.pool import RayPool

    setup: Any = None
    pool = RayPool(setup, Placement(least=hosts, most=hosts), "cpu", kind=SLEEPERS)
    while not all(seat.ready for seat in pool.seats):
        pool.gather()
    return pool


@dataclass(frozen=True)
class Mark:
    """The driver at the moment when it got an answer."""

    at: float
    cpu_s: float
    idle_s: float


def _row(pool: RayPool, hosts: int, size: int) -> dict[str, Any]:
    batches: list[Any] = [Batch(n, size) for n in range(hosts * int(SETTLE_BATCHES + STEADY_SECONDS / BATCH_SECONDS))]
    answers, marks = defaultdict[str, list[tuple[float, float]]](list), []
    for outcome in pool.map_unordered(batches):
        answer: Any = outcome.result
        answers[outcome.host].append((answer.began, answer.ended))
        marks.append(Mark(time.monotonic(), time.process_time(), psutil.cpu_times().idle))
    # From the time when every host has done its first batches to the time when the first has none left.
    start = max(sorted(spans)[min(SETTLE_BATCHES, len(spans)) - 1][1] for spans in answers.values())
    end = min(max(spans)[1] for spans in answers.values())
    wall = end - start
    slept = sum(max(0.0, min(e, end) - max(b, start)) for spans in answers.values() for b, e in spans)
    first, last = (min(marks, key=lambda m: abs(m.at - moment)) for moment in (start, end))
    done = sum(start < e <= end for spans in answers.values() for _, e in spans)
    cpu_s, measured = last.cpu_s - first.cpu_s, max(last.at - first.at, 1e-9)
    return {
        "hosts": hosts,
        "bytes": size,
        "busy": round(slept / (hosts * wall), 3),
        "batches_per_s": round(done / wall, 1),
        "ideal_per_s": round(hosts / BATCH_SECONDS, 1),
        "MB_per_s": round(done * size / wall / 1e6, 1),
        "driver_cpu": round(cpu_s / measured, 3),
        "driver_ms_a_batch": round(1000 * cpu_s / max(done, 1), 2),
        "machine_idle": round((last.idle_s - first.idle_s) / measured / (os.cpu_count() or 1), 3),
        "seconds": round(wall, 1),
        **({"goal": GOAL} if (hosts, size) == (GOAL_HOSTS, GOAL_BYTES) else {}),
    }
