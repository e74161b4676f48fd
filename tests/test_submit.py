"""Submission against a door that plays a cluster: attach, resubmit, and every way to end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.job_submission import JobStatus

from udc_ray.config import build_spec, spec_values
from udc_ray.errors import UserError
from udc_ray_cluster import submit
from udc_ray_cluster.door import Door, Unreachable
from udc_ray_cluster.events import Event, encode
from udc_ray_cluster.request import Request
from udc_ray_cluster.submit import Submission, judge, off_the_gpus, show_log, skew

DONE = encode("report", finished={"where": "/runs/a"}) + encode("exit", code=0)


@dataclass
class Job:
    """What Ray tells of a job."""

    submission_id: str
    log: str = ""
    status: Any = JobStatus.RUNNING
    driver_exit_code: int | None = None
    error_type: str | None = None
    message: str | None = None
    start_time: int = 0
    breaks: int = 0
    """So often the connection is lost in the middle of the log."""


def ended(job: Job, status: Any = JobStatus.SUCCEEDED, code: int | None = 0, **more: Any) -> None:
    job.status, job.driver_exit_code = status, code
    for name, value in more.items():
        setattr(job, name, value)


class PlayedDoor(Door):
    """Jobs as `plays` say, one for each attempt."""

    def __init__(self, *plays: Callable[[Job], None]) -> None:
        self.address, self.plays, self.played = "http://head:8265", list(plays), list[Job]()
        self.environments: list[dict[str, Any]] = []
        self.away = 0

    def submit(self, submission_id: str, entrypoint: str, **what: Any) -> bool:
        if any(job.submission_id == submission_id for job in self.played):
            return False
        assert entrypoint.endswith(f"udc_ray_cluster.job {submission_id}")
        self.environments.append(what["runtime_env"])
        job = Job(submission_id)
        self.plays.pop(0)(job)
        self.played.append(job)
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return []

    def jobs(self, prefix: str = "udc-") -> Any:
        return [job for job in self.played if job.submission_id.startswith(prefix)]

    def job(self, submission_id: str) -> Any:
        if self.away:
            self.away -= 1
            raise Unreachable("nobody there")
        return next((job for job in self.played if job.submission_id == submission_id), None)

    def log(self, submission_id: str) -> str:
        return str(self.job(submission_id).log)

    async def tail(self, submission_id: str, silence: float) -> AsyncIterator[str]:
        job = next((j for j in self.played if j.submission_id == submission_id), None)
        if job is None:
            raise Unreachable("no such job")
        if job.breaks:
            job.breaks -= 1
            yield job.log[: len(job.log) // 2]
            raise Unreachable("cut")
        yield job.log


@dataclass
class Screen:
    """A console that remembers."""

    notes: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    ended: int = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, units: int) -> None:
        self.begun.append(units)

    def progress(self, event: Event) -> None:
        self.told.append(event)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "RETRY_SECONDS", 0.001)


def submission(door: Door, **more: Any) -> Submission:
    spec = build_spec()
    request = Request(command="evaluate", spec=spec_values(spec), fallback="/runs")
    return Submission(door, request, spec, Screen(), **more)


def completes(job: Job) -> None:
    told = "Ray's own\n" + encode("hello", versions={"python": "2.7.1"}) + encode("begin", units=2) + "from the model\n"
    ended(job, log=told + encode("progress", units=2, images=4, queries=9, seconds=1) + encode("end") + DONE)


def loses_its_driver(job: Job) -> None:
    ended(job, JobStatus.FAILED, 137, log=encode("begin", units=2))


def test_a_job_is_followed_to_its_end() -> None:
    door = PlayedDoor(completes)
    run = submission(door)
    ending = run.follow(run.start())
    screen: Any = run.console
    assert ending.code == 0 and ending.report is not None and ending.report["finished"]["where"] == "/runs/a"
    assert screen.begun == [2] and screen.lines == ["from the model"] and screen.ended == 1
    assert any("python is 3" in note and "2.7.1 on the cluster" in note for note in screen.notes)
    (environment,) = door.environments
    assert len(environment["py_modules"]) == 3 and int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 30


def test_a_lost_connection_loses_and_repeats_nothing() -> None:
    def play(job: Job) -> None:
        completes(job)
        job.breaks = 3

    run = submission(PlayedDoor(play))
    assert run.follow(run.start()).code == 0
    screen: Any = run.console
    assert screen.begun == [2] and screen.lines == ["from the model"]


def test_the_same_command_attaches_to_the_live_job() -> None:
    door = PlayedDoor(lambda job: None)
    first = submission(door).start()
    assert submission(door).start() == first and first.endswith("-1")


def test_after_an_end_the_next_attempt_has_the_next_number() -> None:
    door = PlayedDoor(completes, completes)
    assert submission(door).start().endswith("-1")
    assert submission(door).start().endswith("-2")


def test_a_client_that_comes_second_attaches() -> None:
    door = PlayedDoor(lambda job: None)

    class Late(PlayedDoor):
        """Sees no job at first, as two clients that start at once do."""

        looked = False

        def jobs(self, prefix: str = "udc-") -> Any:
            looked, self.looked = self.looked, True
            return super().jobs(prefix) if looked else []

    late = Late(lambda job: None)
    late.played = door.played
    submission(door).start()
    assert submission(late).start() == door.played[0].submission_id and len(door.played) == 1


@pytest.mark.parametrize(
    "loss",
    [
        loses_its_driver,
        lambda job: ended(job, JobStatus.FAILED, -9),
        lambda job: ended(job, JobStatus.FAILED, None, error_type="JOB_SUPERVISOR_ACTOR_DIED"),
    ],
)
def test_a_lost_driver_is_submitted_again(loss: Callable[[Job], None]) -> None:
    door = PlayedDoor(loss, loss, completes)
    run = submission(door)
    assert run.follow(run.start()).code == 0
    assert [job.submission_id[-2:] for job in door.played] == ["-1", "-2", "-3"]


def test_not_for_ever() -> None:
    door = PlayedDoor(*[loses_its_driver] * 9)
    run = submission(door)
    with pytest.raises(UserError, match="lost 4 times"):
        run.follow(run.start())
    assert len(door.played) == 4


def test_a_head_that_is_started_anew_knows_nothing_and_gets_the_job_again() -> None:
    door = PlayedDoor(lambda job: None, completes)
    run = submission(door)
    first = run.start()
    door.played.clear()
    door.away = 3
    assert run.follow(first).code == 0
    screen: Any = run.console
    assert any("does not answer" in note for note in screen.notes)


def test_a_head_that_stays_away() -> None:
    door = PlayedDoor(lambda job: None)
    run = submission(door, patience=0.01)
    first = run.start()
    door.away = 10**9
    with pytest.raises(UserError, match="give the same command again"):
        run.follow(first)


def test_errors_of_the_job_are_errors_here() -> None:
    def play(job: Job) -> None:
        ended(job, JobStatus.FAILED, 2, log=encode("exit", code=2, error=["no such folder", "a typo", "check it"]))

    run = submission(PlayedDoor(play))
    ending = run.follow(run.start())
    assert ending.code == 2 and ending.error is not None and ending.error.change == "check it"


def test_a_stopped_job() -> None:
    run = submission(PlayedDoor(lambda job: ended(job, JobStatus.STOPPED, None)))
    assert run.follow(run.start()).code == 143


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "no disk"}, "could not begin: no disk"),
        ({"driver_exit_code": 127}, "no `python`"),
        ({"driver_exit_code": 1, "message": "Traceback\nModuleNotFoundError: torch"}, "ModuleNotFoundError: torch"),
    ],
)
def test_what_no_other_attempt_would_mend(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        judge(Job("udc-1-1", status=JobStatus.FAILED, **facts))


def test_the_driver_keeps_off_the_gpus() -> None:
    head, gpu, cpu = (
        {"node_id": name, "is_head_node": name == "head", "resources_total": {"CPU": 4, **more}}
        for name, more in (("head", {}), ("gpu", {"GPU": 8.0}), ("cpu", {}))
    )
    assert off_the_gpus([head, gpu, cpu]) == {}
    with_gpus = {**head, "resources_total": {"GPU": 1.0}}
    assert off_the_gpus([with_gpus, gpu, cpu]) == {"entrypoint_label_selector": {"ray.io/node-id": "cpu"}}
    assert off_the_gpus([with_gpus, gpu]) == {} and off_the_gpus([]) == {}


def test_versions_that_matter() -> None:
    here = {"ray": "2.60.0", "python": "3.11.2", "torch": "2.13.0+cpu", "udc-ray": "0.1.0", "scipy": "1"}
    assert skew(here, {**here, "torch": "2.13.1+cu128", "python": "3.11.9", "scipy": "2"}) == []
    there = {"ray": "2.55.0", "python": "3.12.2", "torch": "2.12.0", "udc-ray": "0.1.1"}
    assert [text.split()[0] for text in skew(here, there)] == ["ray", "python", "torch", "udc-ray"]
    assert skew(here, {}) == []


@pytest.mark.parametrize("follow", [False, True])
def test_a_log_is_shown_once(follow: bool) -> None:
    door = PlayedDoor(completes)
    submission_id = submission(door).start()
    lines: list[str] = []
    show_log(door, submission_id, lines.append, follow=follow)
    expected = [
        "Ray's own",
        "2 units to do",
        "from the model",
        "2 units, 4 images, 9 queries/s",
        "finished: /runs/a",
        "exit code 0",
    ]
    assert lines == expected
