"""Commands that a user gives on a host of the bench, and what is compared of the runs that they make."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from network import Host
from ray_hosts import RayCluster

from udc_ray.records import VOLATILE

UDC_RAY = str(Path(sys.executable).with_name("udc-ray"))
TESTS = Path(__file__).resolve().parents[1]
PATIENCE = 300.0
"""Seconds that a command may take on a machine that has other things to do."""
_numbers = itertools.count()
_TOLD = re.compile(r"(submitted|attached to) (udc-[0-9a-f]+-\d+)")


class NotReached(AssertionError):
    """What was waited for did not happen."""


def wait_until(ready: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        if time.monotonic() > deadline:
            raise NotReached(f"waited {seconds:.0f} s for: {what}")
        time.sleep(0.05)
    return answer


@dataclass
class Started:
    """A command that was started and not waited for.

    Attributes:
        process: the command.
        files: where its output and its errors go.
    """

    process: subprocess.Popen[bytes]
    files: tuple[Path, Path]
    begun: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self.files[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self.files[1].read_text(errors="replace")

    @property
    def jobs(self) -> list[str]:
        """Submission ids that it told of, in order."""
        return [found[2] for found in _TOLD.finditer(self.err)]

    @property
    def submissions(self) -> int:
        """How many jobs it submitted so far."""
        return sum(found[1] == "submitted" for found in _TOLD.finditer(self.err))

    def job(self) -> str:
        """The submission id, as soon as there is one."""
        wait_until(lambda: self.jobs or self.process.poll() is not None, "a job that is submitted")
        if not self.jobs:
            raise NotReached(f"the command ended without a job:\n{self.err}")
        return self.jobs[-1]

    def wait(self, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Wait for its end.

        Raises:
            NotReached: it takes too long.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise NotReached(f"a command did not end in {seconds:.0f} s:\n{self.out}\n{self.err}") from error
        return subprocess.CompletedProcess(self.process.args, code, self.out, self.err)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@dataclass
class User:
    """Somebody at the shell of a host.

    Attributes:
        host: the host.
        cluster: the cluster that commands are for.
        folder: working directory.
        env: variables of this user.
    """

    host: Host
    cluster: RayCluster
    folder: Path = TESTS
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, *words: str | Path, program: tuple[str, ...] = (UDC_RAY,)) -> Started:
        """Give a command and do not wait."""
        name = f"command-{next(_numbers)}"
        out_file, err_file = self.host.folder / f"{name}.out", self.host.folder / f"{name}.err"
        env = self.cluster.environment | {"RAY_ADDRESS": ""} | dict(self.env)
        with out_file.open("wb") as out, err_file.open("wb") as err:
            process = self.host.popen([*program, *words], env=env, cwd=self.folder, stdout=out, stderr=err)
        return Started(process, (out_file, err_file))

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Give a command and wait for its end."""
        return self.start(*words).wait()

    def submit(self, *words: str | Path) -> Started:
        """``evaluate --cluster`` at the cluster's http address."""
        return self.start("evaluate", "--cluster", "--address", self.cluster.http, *words)


def rows(run: Path) -> list[dict[str, Any]]:
    """Records of a finished run in the order of their keys, without what may differ between two executions."""
    table = pq.read_table(run / "results.parquet").to_pylist()
    kept = [{name: value for name, value in row.items() if name not in VOLATILE} for row in table]
    return sorted(kept, key=lambda r: (r["cell"], r["image_id"], r["restart"], r["sample"]))


def parts(run: Path) -> dict[str, int]:
    """Finished units of a run: the name of each part, and when it was written (ns)."""
    return {p.name: p.stat().st_mtime_ns for p in sorted((run / "parts").glob("*.parquet"))}


def summary(text: str) -> dict[str, Any]:
    """A summary without the rows that tell seconds."""
    document: dict[str, Any] = json.loads(text)
    timed = {"seconds", "purify_seconds"}
    return document | {"rows": [row for row in document["rows"] if row["metric"] not in timed]}


def printed(report: str) -> list[str]:
    """The words of a printed report without times, the width of columns, where lines break, and the run's path."""
    lines, timed = [], ""
    for line in report.splitlines():
        if line.startswith("run: "):
            continue
        words = re.sub("─+", "─", " ".join(line.split()))
        if words.endswith(" sec"):
            timed = r" \d+\.\d+$"
        elif words.startswith("defence NFE guide ms"):
            timed = r"(?<=\d \d) ([\d.]+|-)(?= )"  # the milliseconds stand behind the calls of two networks
        elif not words:
            timed = ""
        lines.append(re.sub(timed, "", words, count=1) if timed else words)
    return re.sub(r",? [\d.]+ (ms an|s per) image", "", " ".join(lines)).split()
