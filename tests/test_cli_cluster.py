"""The words about clusters: which exclude each other, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import TWO_IMAGES, call

from udc_ray.errors import UserError
from udc_ray_cli.way import Way
from udc_ray_cluster.request import Request
from udc_ray_cluster.submit import Ending, Submission

HEAD = "http://head:8265"


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--cluster"], {}, "no cluster is named"),
        (["--cluster", "--in-process", "--address", HEAD], {}, "exclude each other"),
        (["--address", HEAD], {}, "--address is an http address, and --cluster is not given"),
        ([], {"RAY_ADDRESS": HEAD}, "RAY_ADDRESS is an http address, and --cluster is not given"),
        (["--detach"], {}, "none is submitted"),
        (["--cluster", "--address", "head:6379", "--shared", "/data"], {}, "none is submitted"),
        (["--cluster", "--address", HEAD, "--resume", "runs/a", "--seed", "1"], {}, "--resume takes no --seed"),
    ],
)
def test_words_that_do_not_go_together(words: list[str], environment: dict[str, str], said: str) -> None:
    answer = call("evaluate", *words, **environment)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize("command", [["jobs"], ["logs", "udc-1-1"], ["stop", "udc-1-1"]])
def test_jobs_need_an_http_address(command: list[str]) -> None:
    assert "give --address http://HEAD:8265" in call(*command).err
    assert "not head:6379" in call(*command, RAY_ADDRESS="head:6379").err
    answer = call(*command, "--address", "http://127.0.0.1:9")
    assert answer.code == 2 and "no Ray head answers at http://127.0.0.1:9" in answer.err


def test_the_way_says_itself_again() -> None:
    assert Way(cluster=True, address=HEAD).words == ["--cluster", "--address", HEAD]
    assert Way(in_process=True).words == ["--in-process"] and Way().words == []
    assert Way(cluster=True, address=HEAD).submits and not Way(cluster=True, address="head:6379").submits


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What would be submitted; nothing is."""
    requests: list[Request] = []

    class Nowhere:
        def __init__(self, address: str) -> None:
            self.address = address

        def versions(self) -> dict[str, str]:
            return {"ray": "1.2.3"}

    def start(run: Submission) -> str:
        requests.append(run.request)
        return "udc-1-1"

    monkeypatch.setattr("udc_ray_cluster.door.Door", Nowhere)
    monkeypatch.setattr(Submission, "start", start)
    return requests


def test_what_is_submitted(submitted: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in TWO_IMAGES if word != "--in-process"]
    cluster = ("--cluster", "--address", HEAD, "--detach")
    answer = call("evaluate", *words, *cluster, "--out", "a", "--shared", "data", "--max-hours", "2")
    assert (answer.code, answer.out) == (0, "")
    assert "warning: ray is" in answer.err and "udc-ray stop udc-1-1" in answer.err
    (request,) = submitted
    assert (request.out, request.shared, request.max_hours) == (str(tmp_path / "a"), (str(tmp_path / "data"),), 2.0)
    assert request.spec is not None and request.spec["limit"] == 2 and request.fallback == str(tmp_path / "runs")
    call("evaluate", "--resume", "a", *cluster, UDC_RAY_STORAGE="s3://bucket/runs")
    assert submitted[1].resume == str(tmp_path / "a") and submitted[1].spec is None
    assert submitted[1].storage == "s3://bucket/runs"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (Ending(code=2, error=UserError("no such data", "a typo", "check it")), 2, "what to change: check it"),
        (Ending(code=143), 143, "the job was stopped"),
        (Ending(code=1), 2, "its traceback is above"),
    ],
)
def test_how_a_job_ends(submitted: list[Request], monkeypatch: Any, ending: Ending, code: int, said: str) -> None:
    monkeypatch.setattr(Submission, "follow", lambda run, job: ending)
    answer = call("evaluate", "--cluster", "--address", HEAD)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err


def test_a_client_that_is_stopped_leaves_the_job_alone(submitted: list[Request], monkeypatch: Any) -> None:
    import signal

    monkeypatch.setattr(Submission, "follow", lambda run, job: signal.raise_signal(signal.SIGTERM))
    answer = call("evaluate", "--cluster", "--address", HEAD)
    assert answer.code == 143
    assert "the job goes on" in answer.err and "udc-ray logs udc-1-1" in answer.err
