"""Submits a job, follows it to its end, and submits it again when its driver is lost.

The run directory is the authority: whatever becomes of client, driver or head, the same command
attaches to the job that is alive, or goes on in a new attempt. Ray never takes a submission id
twice, so the attempts are numbered.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ray.job_submission import JobStatus

from udc_ray.config import spec_values
from udc_ray.environment import versions
from udc_ray.errors import UserError
from udc_ray.places import with_places
from udc_ray.rundir import RunDirectory
from udc_ray.spec import RunSpec
from udc_ray_cluster.door import Door, Unreachable, is_over
from udc_ray_cluster.events import BEAT_SECONDS, Decoder, Event, describe
from udc_ray_cluster.request import Request, write_request
from udc_ray_cluster.shipping import EXCLUDES, Freight, own_code

T = TypeVar("T")

RESUBMISSIONS = 3
"""An attached client submits again so often after its driver was lost."""
PATIENCE_SECONDS = 600.0
"""So long it waits for a head that does not answer."""
RETRY_SECONDS = 2.0
SILENCE_SECONDS = 4 * BEAT_SECONDS
STOP_SECONDS = "35"
"""Ray kills a job that was asked to stop after so long; a drain takes up to 25 s."""
NODE_LABEL = "ray.io/node-id"
ENTRYPOINT = "exec python -m udc_ray_cluster.job"


class Console(Protocol):
    """Where the progress of a job is shown."""

    def note(self, text: str) -> None:
        """Something worth saying."""
        ...

    def line(self, text: str) -> None:
        """A line of the job's log that is no event."""
        ...

    def begin(self, units: int) -> None:
        """So many units are to be done."""
        ...

    def progress(self, event: Event) -> None:
        """Totals so far: units, images, queries, seconds."""
        ...

    def end(self) -> None:
        """No more units."""
        ...


@dataclass
class Ending:
    """How a job ended.

    Attributes:
        code: exit code of its driver.
        report: the event ``report``, where there is one.
        error: a user error of the driver.
    """

    code: int
    report: Event | None = None
    error: UserError | None = None


@dataclass
class Submission:
    """One run on one cluster, over all its attempts.

    Args:
        door: the cluster's jobs.
        request: what is asked.
        spec: the spec as asked; None where a run is resumed.
        console: where progress is shown.
    """

    door: Door
    request: Request
    spec: RunSpec | None
    console: Console
    patience: float = PATIENCE_SECONDS

    def start(self) -> str:
        """Attach to the live job of this run, or submit a new attempt; returns its submission id."""
        name = self.request.name()
        while True:
            attempts = self.door.jobs(f"{name}-")
            live = [job for job in attempts if not is_over(job)]
            if live:
                submission_id: str = live[-1].submission_id
                self.console.note(f"attached to {submission_id}")
                return submission_id
            numbers = [int(job.submission_id.rpartition("-")[2]) for job in attempts]
            submission_id = f"{name}-{max(numbers, default=0) + 1}"
            if self._submit(submission_id):
                self.console.note(f"submitted {submission_id} to {self.door.address}")
                return submission_id
            # another client was faster: attach to its job

    def follow(self, submission_id: str) -> Ending:
        """Show a job until it ends; a driver or head that is lost is replaced by a new attempt.

        Raises:
            UserError: the job could not begin, or was lost too often.
        """
        for left in range(RESUBMISSIONS, -1, -1):
            ending = asyncio.run(self._watch(submission_id))
            if ending is not None:
                return ending
            lost = submission_id
            if not left:
                break
            submission_id = self._retried(self.start)
            self.console.note(f"{lost} lost its driver; {submission_id} goes on with what is done")
        raise UserError(
            f"the driver was lost {RESUBMISSIONS + 1} times, last in {lost}",
            "too little memory on the driver's node, or a node that does not stay up",
            f"see `udc-ray logs {lost}`; the same command goes on with what is done",
        )

    def _submit(self, submission_id: str) -> bool:
        with tempfile.TemporaryDirectory(prefix="udc-ray-") as folder:
            freight = Freight(Path(folder), self.request.storage, self.request.shared)
            values = self.request.spec
            if self.spec is not None:
                values = spec_values(with_places(self.spec, freight.place))
            freight.take_code(self._model())
            for entry in () if self.spec is None else self.spec.defenses:
                freight.take_code(str(entry.params.get("weights", "")))
            write_request(freight.folder, self.request.model_copy(update={"spec": values, "versions": versions()}))
            freight.check_size()
            runtime_env: dict[str, Any] = {
                "working_dir": folder,
                "py_modules": own_code(),
                "excludes": list(EXCLUDES),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS},
            }
            metadata = {"udc_ray_command": self.request.command}
            entrypoint = f"{ENTRYPOINT} {submission_id}"
            where = off_the_gpus(self.door.nodes())
            return self.door.submit(submission_id, entrypoint, runtime_env=runtime_env, metadata=metadata, **where)

    def _model(self) -> str:
        """Name of the model; empty for a run that is resumed and whose directory cannot be read from here."""
        if self.spec is not None:
            return self.spec.model.name
        if self.request.resume is not None:
            with suppress(UserError):
                return RunDirectory.read(self.request.resume).header.spec.model.name
        return ""

    async def _watch(self, submission_id: str) -> Ending | None:
        """Show events until the job has ended; None when its driver is lost."""
        seen = _Seen(self.console)
        while True:
            seen.decoder.replay()
            try:
                async for piece in self.door.tail(submission_id, SILENCE_SECONDS):
                    seen.show(piece)
                    if seen.ending() is not None:  # all is said; Ray closes the log a few seconds later
                        return seen.ending()
            except Unreachable:
                await asyncio.sleep(RETRY_SECONDS)  # the driver's node is gone, or the head; the job's state tells
            job = self._retried(lambda: self.door.job(submission_id))
            if job is None:
                return None
            if is_over(job):
                seen.decoder.replay()
                with suppress(Unreachable):
                    seen.show(self.door.log(submission_id))  # the last lines may have come after the tail
                return seen.ending() or judge(job)

    def _retried(self, ask: Callable[[], T]) -> T:
        """Ask until the head answers."""
        deadline, told = time.monotonic() + self.patience, False
        while True:
            try:
                return ask()
            except Unreachable as error:
                if time.monotonic() > deadline:
                    minutes = f"{self.patience / 60:.0f} minutes"
                    raise UserError(
                        f"the head at {self.door.address} has not answered for {minutes}: {error.what}",
                        "it was lost, or the network to it",
                        "what is done is kept; give the same command again when it is up",
                    ) from error
                if not told:
                    self.console.note(f"the head does not answer ({error.what}); waiting for it")
                told = True
                time.sleep(RETRY_SECONDS)


def show_log(door: Door, submission_id: str, show: Callable[[str], None], *, follow: bool) -> None:
    """Show the log of a job as lines for people; with `follow` until the job ends."""
    decoder = Decoder()

    def feed(text: str) -> None:
        for item in decoder.feed(text):
            line = item if isinstance(item, str) else describe(item)
            if line:
                show(line)

    async def tail() -> None:
        async for piece in door.tail(submission_id, SILENCE_SECONDS):
            feed(piece)

    if follow:
        asyncio.run(tail())
        decoder.replay()
    feed(door.log(submission_id))


class _Seen:
    """What one job has told so far."""

    def __init__(self, console: Console) -> None:
        self.console, self.decoder = console, Decoder()
        self._begun = False
        self._report: Event | None = None
        self._exit: Event | None = None

    def ending(self) -> Ending | None:
        """How the job ended; None where it did not say."""
        if self._exit is None:
            return None
        what = self._exit.get("error")
        error = UserError(*map(str, what)) if what else None
        return Ending(code=int(self._exit["code"]), report=self._report, error=error)

    def show(self, text: str) -> None:
        """Pass a piece of the log on."""
        for item in self.decoder.feed(text):
            if not isinstance(item, str):
                self._begun = True
                self._show_event(item)
            elif self._begun:  # what comes before are Ray's own notes on how it starts a job
                self.console.line(item)

    def _show_event(self, event: Event) -> None:
        match event["event"]:
            case "hello":
                for text in skew(versions(), event.get("versions", {})):
                    self.console.note(f"warning: {text}")
            case "note":
                self.console.note(str(event.get("text", "")))
            case "begin":
                self.console.begin(int(event.get("units", 0)))
            case "progress":
                self.console.progress(event)
            case "end":
                self.console.end()
            case "report":
                self._report = event
            case "exit":
                self._exit = event


def off_the_gpus(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the driver goes, for Ray's `submit_job`: to the head, unless that has GPUs and another node has none."""
    plain = [node for node in nodes if not (node.get("resources_total") or {}).get("GPU")]
    if not plain or any(node.get("is_head_node") for node in plain):
        return {}
    return {"entrypoint_label_selector": {NODE_LABEL: min(str(node["node_id"]) for node in plain)}}


def judge(job: Any) -> Ending | None:
    """What to make of a job that ended without a word; None where its driver was lost.

    Raises:
        UserError: it could not begin, and would not in another attempt.
    """
    if job.status == JobStatus.STOPPED:
        return Ending(code=128 + signal.SIGTERM)
    code, kind = job.driver_exit_code, str(job.error_type or "")
    if any(word in kind for word in _NEVER_BEGAN):
        raise UserError(
            f"the job could not begin: {_last_line(job.message)}",
            "Ray could not make its environment, or no node has room for its driver",
            "see the dashboard's page of the job; `udc-ray doctor --cluster` looks at the nodes",
        )
    if code == NOT_FOUND:
        raise UserError(
            "the head node has no `python`",
            "Ray was started there outside its environment",
            "start Ray with the environment's bin folder in PATH",
        )
    if code is not None and 0 < code < KILLED:
        raise UserError(
            f"the driver failed with exit code {code}: {_last_line(job.message)}",
            "the cluster lacks one of udc-ray's dependencies, or its Python is older than 3.11",
            "install udc-ray in the cluster's environment (`pip install udc-ray`, see ray-cluster.yaml)",
        )
    return None


def skew(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """Differences between client and cluster that can change numbers or break the job."""
    found = []
    for name, parts in _DECISIVE.items():
        ours, theirs = here.get(name), there.get(name)
        if ours and theirs and _head(ours, parts) != _head(theirs, parts):
            found.append(f"{name} is {ours} here and {theirs} on the cluster")
    return found


_NEVER_BEGAN = ("RUNTIME_ENV_SETUP", "START_TIMEOUT", "START_FAILURE", "UNSCHEDULABLE", "START_ERROR")
NOT_FOUND, KILLED = 127, 128
"""Exit codes of a shell: no such program, and the least of those that a signal gives."""
_DECISIVE = {"ray": 2, "python": 2, "torch": 2, "udc-ray": 3}
"""Parts of each version that have to be equal."""


def _head(version: str, parts: int) -> list[str]:
    return version.partition("+")[0].split(".")[:parts]


def _last_line(message: str | None) -> str:
    return next((line for line in reversed((message or "").splitlines()) if line.strip()), "no reason given")
