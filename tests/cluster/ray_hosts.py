"""A Ray cluster whose nodes are hosts of a `Network`, and the ways in which one can lose it.

The head and every worker are a ``ray start`` on a host with an address and a hostname of its own,
with token authentication on, as a cluster is that Ray 2.60 starts. What happens to a node is done
from outside to processes that live in its network namespace, never to a process by its name.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from network import Host, Network

RAY = str(Path(sys.executable).with_name("ray"))
GCS_PORT, HTTP_PORT, CLIENT_PORT = 6379, 8265, 10001
OBJECT_STORE_BYTES = 200_000_000
START_SECONDS = 90.0
LEAN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # no worker that nobody has asked for
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class ClusterError(RuntimeError):
    """The cluster did not come to what was waited for."""


@dataclass
class Node:
    """A node of the cluster.

    Attributes:
        host: where it runs.
        flags: what its ``ray start`` gets besides addresses.
        starts: how often it was started.
        process: its ``ray start --block``; None before the first start and after a loss.
        leaving: it was told to drain, and may end by itself at any time.
    """

    host: Host
    flags: tuple[str, ...] = ()
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    leaving: bool = False

    @property
    def log(self) -> Path:
        """Output of the last ``ray start``."""
        return self.host.folder / f"ray-start-{self.starts}.log"

    @property
    def temp_dir(self) -> Path:
        """Ray's files of the last start."""
        return self.host.folder / f"ray-{self.starts}"

    def start(self, words: list[str], env: Mapping[str, str]) -> None:
        """Run ``ray start`` with these words and this node's own."""
        self.starts += 1
        self.leaving = False
        argv = [
            *(RAY, "start", *words, *self.flags),
            f"--node-ip-address={self.host.address}",
            f"--temp-dir={self.temp_dir}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            *("--include-log-monitor=false", "--disable-usage-stats", "--block"),
        ]
        with self.log.open("wb") as log:
            self.process = self.host.popen(argv, env=env, stdout=log)

    def workers(self, of: str) -> list[int]:
        """Worker processes that run an actor of this class (Ray writes it into their title)."""
        return [process.pid for process in self.processes() if _title(process).startswith(f"ray::{of}")]

    def processes(self) -> list[psutil.Process]:
        """What lives on this node."""
        found = []
        for pid in self.host.pids():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found


def node_flags(
    cpus: int, resources: Mapping[str, float] | None = None, labels: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """What ``ray start`` is told of a node."""
    flags = [f"--num-cpus={cpus}"]
    if resources:
        flags.append(f"--resources={json.dumps(dict(resources))}")
    if labels:
        flags.append("--labels=" + ",".join(f"{key}={value}" for key, value in labels.items()))
    return tuple(flags)


@dataclass
class RayCluster:
    """A head and workers; a context manager that waits until all are alive.

    Args:
        network: where the hosts are made (``head``, ``worker-1`` ..., ``client``).
        count: workers to begin with.
        cpus: CPUs that each worker offers.
        head_cpus: CPUs that the head offers; with none it runs the drivers and nothing else.
        env: variables of every node, for instance Ray's own settings (``RAY_health_check_period_ms``).
    """

    network: Network
    count: int = 2
    cpus: int = 2
    head_cpus: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    workers: list[Node] = field(default_factory=list)
    started_in: float = 0.0
    """Seconds from the first process to the last node alive and the job server at work."""

    def __post_init__(self) -> None:
        self.head = Node(self.network.add("head"), (*node_flags(self.head_cpus), "--no-monitor"))

    def __enter__(self) -> RayCluster:
        begun = time.monotonic()
        self._start_head()
        for _ in range(self.count):
            self.start_worker(wait=False)
        self.wait_alive()
        self.started_in = time.monotonic() - begun
        return self

    def __exit__(self, *_: object) -> None:
        for node in (*self.workers, self.head):
            node.host.kill()

    @property
    def http(self) -> str:
        """Address of the job server."""
        return f"http://{self.head.host.address}:{HTTP_PORT}"

    @property
    def gcs(self) -> str:
        """Address that a driver attaches to."""
        return f"{self.head.host.address}:{GCS_PORT}"

    @property
    def ray_client(self) -> str:
        """Address of Ray's own client protocol."""
        return f"ray://{self.head.host.address}:{CLIENT_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this cluster needs to be told."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, **LEAN}

    @property
    def nodes(self) -> list[Node]:
        """The head and the workers."""
        return [self.head, *self.workers]

    def client(self, name: str = "client") -> Host:
        """A host at the same network that is no node of the cluster."""
        return self.network.hosts.get(name) or self.network.add(name)

    def ask(self, path: str, token: str | None = None) -> Any:
        """GET a path of the head's HTTP server, as the head itself, and read its JSON.

        Raises:
            OSError: it does not answer, or refuses (`urllib.error.HTTPError`).
        """
        request = urllib.request.Request(self.http + path, headers={"Authorization": f"Bearer {token or self.token}"})

        def get() -> Any:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as refused:
                refused.close()  # it holds the connection: left to the collector, it warns in another test
                raise

        return self.head.host.inside(get)

    def states(self) -> dict[str, str]:
        """State (ALIVE, DEAD) of every node id that the head knows of."""
        return {row["node_id"]: row["state"] for row in self._rows()}

    def node_id(self, node: Node) -> str:
        """Ray's id of a node that is alive."""
        ids = self._alive()
        if node.host.address not in ids:
            raise ClusterError(f"{node.host.name} is not alive")
        return ids[node.host.address]

    def wait_alive(self, timeout: float = START_SECONDS) -> None:
        """Wait until every node that should live does, and the job server answers."""
        running = [node for node in self.nodes if node.process is not None and not node.leaving]
        wanted = {node.host.address for node in running}

        def ready() -> bool:
            for node in running:
                if node.process is not None and node.process.poll() is not None:
                    raise ClusterError(f"ray start on {node.host.name} ended:\n{_tail(node.log)}")
            return wanted <= self._alive().keys() and isinstance(self.ask("/api/jobs/"), list)

        self._wait(ready, timeout, f"nodes {sorted(wanted)} alive")

    def wait_dead(self, node_id: str, timeout: float = START_SECONDS) -> None:
        """Wait until the head has noticed that a node is gone."""
        self._wait(lambda: self.states().get(node_id) == "DEAD", timeout, f"node {node_id} dead")

    def start_worker(
        self,
        *,
        cpus: int | None = None,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        private: tuple[Path, ...] = (),
        wait: bool = True,
    ) -> Node:
        """Add a worker on a new host.

        Args:
            cpus: CPUs that it offers, the cluster's usual number unless given.
            resources: custom resources, ``{"fast": 1}``.
            labels: labels of the node.
            private: paths where it shares nothing with other nodes.
            wait: until it is alive.
        """
        flags = node_flags(self.cpus if cpus is None else cpus, resources, labels)
        node = Node(self.network.add(f"worker-{len(self.workers) + 1}", private=private), flags)
        self.workers.append(node)
        self.restart_worker(node, wait=wait)
        return node

    def restart_worker(self, node: Node, *, wait: bool = True) -> None:
        """Start a worker that was killed, on its old host, as a new node."""
        node.start([f"--address={self.gcs}"], self._node_environment())
        if wait:
            self.wait_alive()

    def kill_raylet(self, node: Node) -> None:
        """SIGKILL everything on a worker, as a lost machine."""
        node.host.kill()
        node.process = None

    def kill_worker(self, node: Node, rng: random.Random, of: str = "HostActor") -> int | None:
        """SIGKILL one worker process that runs an actor of this class; its id, None where there is none."""
        pids = node.workers(of)
        return _kill(rng.choice(pids)) if pids else None

    def drivers(self) -> list[int]:
        """Processes that run the entrypoints of the jobs."""
        supervisors = [p for p in self.head.processes() if "JobSupervisor" in _title(p)]
        programs = []
        for supervisor in supervisors:
            with suppress(psutil.NoSuchProcess):
                programs += supervisor.children(recursive=True)
        # Beside the entrypoint a supervisor has a shell that watches over it.
        return [program.pid for program in programs if Path(_title(program)).name.startswith("python")]

    def kill_driver(self) -> int | None:
        """SIGKILL the process of a job's entrypoint; its id, None where no job runs."""
        pids = self.drivers()
        return _kill(pids[0]) if pids else None

    def kill_head(self) -> None:
        """SIGKILL everything on the head."""
        self.head.host.kill()
        self.head.process = None

    def restart_head(self) -> None:
        """Begin anew at the same address, with nothing of the old state, and restart the workers to join it."""
        self.kill_head()
        for node in self.workers:
            self.kill_raylet(node)
        self._start_head()
        for node in self.workers:
            self.restart_worker(node, wait=False)
        self.wait_alive()

    def drain(self, node: Node, seconds: int) -> None:
        """Announce that a node will go after so many seconds, as a spot market does.

        Ray ends an idle node at once; one that is still at work at the deadline is the caller's to kill.
        """
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot loss")
        where = (f"--address={self.gcs}", f"--node-id={self.node_id(node)}", f"--deadline-remaining-seconds={seconds}")
        answer = self.head.host.run([RAY, "drain-node", *where, *reason], env=self._node_environment())
        if answer.returncode:
            raise ClusterError(f"the drain was refused: {answer.stdout}{answer.stderr}")
        node.leaving = True

    def terminate(self, node: Node) -> None:
        """SIGTERM a worker's ``ray start``, as an orchestrator that stops a machine."""
        if node.process is not None:
            node.process.terminate()
            node.process.wait(START_SECONDS)
            node.process = None

    def partition(self, node: Node, seconds: float) -> None:
        """Pull a node's cable for so many seconds."""
        self.network.cut(node.host)
        try:
            time.sleep(seconds)
        finally:
            self.network.mend(node.host)

    def _node_environment(self) -> dict[str, str]:
        return self.environment | dict(self.env)

    def _start_head(self) -> None:
        words = [f"--port={GCS_PORT}", f"--dashboard-host={self.head.host.address}", f"--dashboard-port={HTTP_PORT}"]
        self.head.start(["--head", *words], self._node_environment())
        # Workers wait only a little for a head that is not there yet.
        self._wait(self._gcs_listens, START_SECONDS, "the head listens")

    def _gcs_listens(self) -> bool:
        process = self.head.process
        if process is not None and process.poll() is not None:
            raise ClusterError(f"ray start on the head ended:\n{_tail(self.head.log)}")
        self.head.host.inside(lambda: socket.create_connection((self.head.host.address, GCS_PORT), 5).close())
        return True

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.ask("/api/v0/nodes?limit=1000")["data"]["result"]["result"]
        return rows

    def _alive(self) -> dict[str, str]:
        return {row["node_ip"]: row["node_id"] for row in self._rows() if row["state"] == "ALIVE"}

    def _wait(self, ready: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while True:
            last = "not yet"
            try:
                if ready():
                    return
            except (OSError, KeyError, TypeError, ValueError) as error:  # a server that is only just starting
                last = repr(error)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"waited {timeout:.0f} s for: {what} ({last}); the head says\n{_tail(self.head.log)}"
                )
            time.sleep(0.1)


def _title(process: psutil.Process) -> str:
    """First word of the command line, which Ray's workers overwrite with what they do."""
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return ""
    return words[0] if words else ""


def _kill(pid: int) -> int:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def _tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
