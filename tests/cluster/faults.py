"""Faults that strike a run on the bench while its units are in flight, and how often the work was done again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluations import Started, User, parts, wait_until
from ray_hosts import Node, RayCluster

PARTITION_SECONDS = 10.0
DRAIN_SECONDS = 60
REPORT_SECONDS = 0.1
"""Every process tells the head of its tasks so often."""
ACCOUNT = {"RAY_task_events_report_interval_ms": str(int(1000 * REPORT_SECONDS))}
"""What the nodes are started with for it."""
WORK = ("HostActor", "StepperActor")
"""What Ray calls the processes that do the work: hosts, and the actors that step query attacks beside them."""
EXECUTIONS = ("HostActor.run", "StepperActor.step")
"""Ray's names for the executions of a unit, whole on a host or stepped from beside it."""
_OVER = ("FINISHED", "FAILED")


@dataclass
class Scene:
    """What a fault may strike.

    Attributes:
        cluster: the cluster.
        user: who gave the command.
        client: the command.
        again: gives the same command once more.
        rng: chooses the victim.
        out: the run.
        stored: its units that had ended when the fault came.
    """

    cluster: RayCluster
    user: User
    client: Started
    again: Callable[[], Started]
    rng: random.Random
    out: Path
    stored: dict[str, int]


def kill_worker(scene: Scene) -> str:
    """SIGKILL one process that is at work, on any worker."""

    def strike() -> str:
        # One that ends at this very moment is struck no more; then there is another.
        for node, of in scene.rng.sample(places, len(places)):
            if scene.cluster.kill_worker(node, scene.rng, of) is not None:
                return f"a {of} on {node.host.name}"
        return ""

    places = [(node, of) for node in scene.cluster.workers for of in WORK]
    return str(wait_until(strike, "a process that is at work"))


def kill_node(scene: Scene) -> str:
    """SIGKILL a worker with everything on it, and start it anew."""
    node = _any_worker(scene)
    scene.cluster.kill_raylet(node)
    scene.cluster.restart_worker(node)
    return node.host.name


def kill_driver(scene: Scene) -> str:
    """SIGKILL the driver of the job; the client that follows it begins a new attempt by itself."""
    killed = wait_until(scene.cluster.kill_driver, "a driver")
    scene.stored = parts(scene.out)  # nobody else writes
    return f"process {killed}"


def kill_client(scene: Scene) -> str:
    """SIGKILL the client, and give its command once more."""
    lost = scene.client
    lost.kill()
    lost.process.wait()
    scene.client = scene.again()
    return f"process {lost.process.pid}"


def partition(scene: Scene) -> str:
    """Pull the cable of a worker for ten seconds."""
    node = _any_worker(scene)
    scene.cluster.partition(node, PARTITION_SECONDS)
    return node.host.name


def cut_off(scene: Scene) -> str:
    """Take a worker away without a word, as a power cut does, and bring it back once the head has noticed."""
    node = _any_worker(scene)
    node_id = scene.cluster.node_id(node)
    scene.cluster.network.cut(node.host)
    begun = time.monotonic()
    scene.cluster.kill_raylet(node)  # nobody hears of it: the cable is out
    scene.cluster.wait_dead(node_id)
    noticed = time.monotonic() - begun
    scene.cluster.network.mend(node.host)
    scene.cluster.restart_worker(node)
    return f"{node.host.name}, dead to Ray after {noticed:.0f} s"


def announce_end(scene: Scene) -> str:
    """Tell Ray that a worker will go soon, as a spot market does; it is left in peace until it has gone by itself."""
    node = _any_worker(scene)
    node_id = scene.cluster.node_id(node)
    scene.cluster.drain(node, DRAIN_SECONDS)
    scene.cluster.wait_dead(node_id)
    scene.cluster.kill_raylet(node)  # what is left of its processes
    scene.cluster.restart_worker(node)
    return node.host.name


def kill_head(scene: Scene) -> str:
    """SIGKILL the head with everything on it, and start it anew; the workers join it as new nodes."""
    scene.cluster.kill_head()
    scene.stored = parts(scene.out)  # the driver was there, and nobody else writes
    time.sleep(1)
    scene.cluster.restart_head()
    return scene.cluster.head.host.name


FAULTS: dict[str, Callable[[Scene], str]] = {
    "worker": kill_worker,
    "node": kill_node,
    "driver": kill_driver,
    "client": kill_client,
    "partition": partition,
}
"""The kinds that strike by chance; each says whom it struck."""
LESS_USUAL: dict[str, Callable[[Scene], str]] = {"power": cut_off, "head": kill_head, "drain": announce_end}
"""Kinds that strike when they are asked for."""


def in_flight(cluster: RayCluster, begun_after: float) -> set[str]:
    """Executions of units that have been handed out and have not ended, by Ray's own account of tasks.

    Args:
        cluster: its nodes were started with `ACCOUNT`.
        begun_after: time (UTC, seconds) since which tasks count.
    """
    last: set[str] | None = None
    while True:  # of a unit that ends, and of the next that is handed out, different nodes tell
        found = {task["task_id"] for task in executions(cluster, begun_after) if task["state"] not in _OVER}
        if found == last:
            return found
        last = found
        time.sleep(REPORT_SECONDS)


def executions(cluster: RayCluster, begun_after: float) -> list[dict[str, str]]:
    """Every execution of a unit that was handed out, by Ray's own account of tasks."""
    found = []
    for name in EXECUTIONS:
        where = f"filter_keys=name&filter_predicates=%3D&filter_values={name}"
        rows = cluster.ask(f"/api/v0/tasks?limit=10000&detail=1&{where}")["data"]["result"]["result"]
        found += [row for row in rows if (row.get("creation_time_ms") or 0) >= 1000 * begun_after]
    return found


def _any_worker(scene: Scene) -> Node:
    return scene.rng.choice(scene.cluster.workers)
