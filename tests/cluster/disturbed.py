"""A run on the bench that one fault strikes, and what must hold afterwards."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from evaluations import NotReached, Started, User, parts, printed, rows, wait_until
from faults import ACCOUNT, FAULTS, LESS_USUAL, Scene, executions, in_flight
from network import Network
from ray_hosts import RayCluster

from udc_ray_cluster.events import Decoder

HERE = Path(__file__).resolve().parent
HOSTS, WINDOW = 2, 6
"""Hosts of a run, and units that the pool hands to each at a time: two, or six that are stepped side by side."""
STRUCK_WITHIN = 0.7
"""Faults come before so large a share of the units has ended, so that there is work left."""
NODES = ACCOUNT | {"SLEEPY_SECONDS": "0.05"}
"""Nodes that tell of tasks at once, and a pass that takes as long as one of a real model."""
LOSES_THE_DRIVER = ("driver", "head")
KINDS = FAULTS | LESS_USUAL


@dataclass(frozen=True, kw_only=True)
class Struck:
    """One run and the fault that struck it.

    Attributes:
        run: its number.
        kind: of the fault.
        victim: whom it struck.
        at_s: seconds from the command to the fault.
        done_before: units that had ended when the fault came (for a lost driver: that it had stored).
        in_flight: executions of units that had been handed out and not ended right before, as Ray tells.
        units: units of the run.
        attempts: jobs that were submitted for it.
        redone: executions of units that were lost and done again: the retries of the records, and for a lost driver,
            which takes its account along, what was in flight.
        executions: all that were handed out, as Ray tells; more than units and `redone` where a waiting unit
            was taken back to be done elsewhere.
        stored_again: units that had ended before the fault and were written, or planned, again.
        queries_reexecuted: as the records tell.
        budgets_held: no image has more queries than its budget.
        silence_s: the longest time without a unit ending, from the fault on.
        wall_s: seconds from the command until it has ended and what was struck is up again.
        equal: complete, and records and table equal those of the undisturbed run in one process.
    """

    run: int
    kind: str
    victim: str
    at_s: float
    done_before: int
    in_flight: int
    units: int
    attempts: int
    redone: int
    executions: int
    stored_again: int
    queries_reexecuted: int
    budgets_held: bool
    silence_s: float
    wall_s: float
    equal: bool

    @property
    def held(self) -> bool:
        """Whether all that is promised holds."""
        within = self.redone <= self.in_flight <= HOSTS * WINDOW
        return self.equal and self.budgets_held and within and self.stored_again == 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"held": self.held}


@dataclass(frozen=True)
class Chaos:
    """A cluster on which the same evaluation is disturbed again and again.

    Attributes:
        user: who gives the commands.
        words: the evaluation, without ``--out``.
        folder: a folder that all nodes share.
    """

    user: User
    words: tuple[str, ...]
    folder: Path

    def refer(self) -> None:
        """Make the run in one process that all others must equal."""
        done = self.user.run("evaluate", "--in-process", *self.words, "--out", self.reference)
        if done.returncode:
            raise NotReached(f"the run in one process failed:\n{done.stderr}")
        (self.reference / "report.txt").write_text(done.stdout)

    @property
    def reference(self) -> Path:
        """The run in one process."""
        return self.folder / "reference"

    @property
    def units(self) -> int:
        """Units of the evaluation."""
        return len(parts(self.reference))

    def undisturbed(self) -> dict[str, float]:
        """Seconds of the evaluation on the cluster when nothing happens to it, and its longest silence."""
        begun, out = time.monotonic(), self.folder / f"undisturbed-{time.monotonic_ns()}"
        done = self._submit(out).wait()
        if done.returncode:
            raise NotReached(f"the undisturbed run failed:\n{done.stderr}")
        first = min(parts(out).values()) / 1e9
        return {"silence_s": round(_silence(out, first), 1), "wall_s": round(time.monotonic() - begun, 1)}

    def strike(self, kind: str, number: int, seed: int) -> Struck:
        """Run the evaluation, and let a fault strike it at a moment that `number` and `seed` choose."""
        rng = random.Random(f"{seed}/{number}/{kind}")
        out, cluster = self.folder / f"run-{seed}-{number}-{kind}", self.user.cluster
        after, delay = rng.randint(1, int(STRUCK_WITHIN * self.units)), rng.uniform(0, 0.5)
        begun, begun_utc = time.monotonic(), time.time()
        first = self._submit(out)
        wait_until(lambda: len(parts(out)) >= after or first.process.poll() is not None, f"{after} units")
        time.sleep(delay)
        flying, at = len(in_flight(cluster, begun_utc)), time.time()
        scene = Scene(cluster, self.user, first, lambda: self._submit(out), rng, out, parts(out))
        victim = KINDS[kind](scene)
        done, before, lost_driver = scene.client.wait(), scene.stored, kind in LOSES_THE_DRIVER
        clients = [first] if scene.client is first else [first, scene.client]
        account = _account(out)
        return Struck(
            run=number,
            kind=kind,
            victim=victim,
            at_s=round(at - begun_utc, 1),
            done_before=len(before),
            in_flight=flying,
            units=self.units,
            attempts=sum(client.submissions for client in clients),
            redone=account.retries + (flying if lost_driver else 0),
            executions=len(executions(cluster, begun_utc)),
            stored_again=self._stored_again(out, before, scene.client.jobs[-1] if lost_driver else None),
            queries_reexecuted=account.reexecuted,
            budgets_held=account.budgets_held,
            silence_s=round(_silence(out, at), 1),
            wall_s=round(time.monotonic() - begun, 1),
            equal=done.returncode == 0 and self._equals(out, done.stdout),
        )

    def _submit(self, out: Path) -> Started:
        return self.user.submit(*self.words, "--out", out)

    def _equals(self, out: Path, report: str) -> bool:
        same = rows(out) == rows(self.reference)
        return same and printed(report) == printed((self.reference / "report.txt").read_text())

    def _stored_again(self, out: Path, before: dict[str, int], job: str | None) -> int:
        """Units from before the fault that were written again, or that the attempt after it planned again."""
        after = parts(out)
        again = sum(after.get(name) != written for name, written in before.items())
        if job is None:
            return again
        return again + max(0, planned(self.user.cluster, job) - (self.units - len(before)))


@dataclass(frozen=True)
class _Account:
    """What the parts of a run tell of lost executions."""

    retries: int
    reexecuted: int
    budgets_held: bool


def _account(run: Path) -> _Account:
    tables = [pq.read_table(run / "parts" / name).to_pylist() for name in parts(run)]
    held = all(
        row["budget"] is None or (row["queries"] is not None and row["queries"] <= row["budget"])
        for table in tables
        for row in table
    )
    retries = sum(max(row["retries"] for row in table) for table in tables)
    return _Account(retries, sum(max(row["queries_reexecuted"] or 0 for row in table) for table in tables), held)


def _silence(run: Path, since: float) -> float:
    """The longest time in which no unit ended, from a moment (UTC, seconds) on."""
    later = sorted(written / 1e9 for written in parts(run).values() if written / 1e9 > since)
    return max((end - begin for begin, end in zip([since, *later], later, strict=False)), default=0.0)


def planned(cluster: RayCluster, job: str) -> int:
    """Units that an attempt found to be done when it began."""
    events = Decoder().feed(cluster.ask(f"/api/jobs/{job}/logs")["logs"])
    return next(int(e["units"]) for e in events if isinstance(e, dict) and e["event"] == "begin")


def spec(images: int) -> tuple[str, ...]:
    """An evaluation of three units an image: two gradient attacks that run on a host, a query attack beside it."""
    return (
        *("--model", "sleepy:Sleepy", "--set", "data.size=48", "--limit", str(images)),
        *("--attack", "fgsm", "--attack", "pgd:steps=8", "--attack", "square:budget=25"),
        *("--defense", "none", "--defense", "jpeg"),
        *("--set", "run.chunk=1", "--set", f"run.hosts={HOSTS}", "--set", f"run.max_hosts={HOSTS}"),
    )


@contextmanager
def bench(folder: Path, images: int) -> Iterator[Chaos]:
    """A head, two workers and a client at a network, and the reference that they must equal.

    Args:
        folder: for the runs; all nodes share it.
        images: images that are evaluated; three units each.
    """
    with Network() as network, RayCluster(network, env=NODES) as cluster:
        user = User(cluster.client(), cluster, HERE, {"UDC_RAY_STORAGE": str(folder)})
        chaos = Chaos(user, spec(images), folder)
        chaos.refer()
        yield chaos
