"""cluster/drain-node.sh and spot-watch.sh: what they tell Ray, and how long they wait."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment whose `ray` only notes what it is told."""
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\nexit ${{RAY_EXIT:-0}}\n')
    ray.chmod(0o755)
    return {**os.environ, "UDC_RAY_PROCESSES": str(tmp_path / "proc"), "PATH": f"{ray.parent}:{os.environ['PATH']}"}


def process(tmp_path: Path, title: str) -> Path:
    """A process of that title; its cmdline file."""
    folder = tmp_path / "proc" / str(100 + len(list(tmp_path.glob("proc/*"))))
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(title.encode() + b"\0")
    return folder / "cmdline"


def told(tmp_path: Path) -> list[str]:
    return (tmp_path / "told").read_text().splitlines() if (tmp_path / "told").exists() else []


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda p: p.name)
def test_bash_can_read_it(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


def test_the_node_is_drained_with_its_deadline(tools: dict[str, str], tmp_path: Path) -> None:
    subprocess.run([CLUSTER / "drain-node.sh", "1"], env=tools, check=True)
    (call,) = told(tmp_path)
    assert call.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert call.endswith("--deadline-remaining-seconds 1")


@pytest.mark.parametrize("title", ["ray::HostActor.run", "ray::HostActor.score"])
def test_waits_for_a_host_that_is_in_a_call(tools: dict[str, str], tmp_path: Path, title: str) -> None:
    worker = process(tmp_path, title)
    script = subprocess.Popen([CLUSTER / "drain-node.sh", "100"], env=tools)
    with pytest.raises(subprocess.TimeoutExpired):
        script.wait(timeout=6)  # idle, it would be over after 3
    worker.write_bytes(b"ray::HostActor\0")
    assert script.wait(timeout=60) == 0


def test_idle_workers_are_not_waited_for(tools: dict[str, str], tmp_path: Path) -> None:
    for title in ("ray::HostActor", "ray::IDLE", "/bin/raylet", "grep ray::HostActor.run"):
        process(tmp_path, title)
    subprocess.run([CLUSTER / "drain-node.sh", "1000"], env=tools, check=True, timeout=60)


def test_the_deadline_ends_the_wait(tools: dict[str, str], tmp_path: Path) -> None:
    process(tmp_path, "ray::HostActor.run")
    subprocess.run([CLUSTER / "drain-node.sh", "2"], env=tools, check=True, timeout=60)


def test_a_refusal_of_ray_is_passed_on(tools: dict[str, str]) -> None:
    assert subprocess.run([CLUSTER / "drain-node.sh"], env=tools | {"RAY_EXIT": "4"}).returncode == 4


class Metadata(BaseHTTPRequestHandler):
    """AWS's metadata service: a session token, and a notice at the third question."""

    asked: list[str] = []

    def do_PUT(self) -> None:
        self._answer(200, b"session-token")

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("X-aws-ec2-metadata-token", ""))
        self._answer(200 if len(self.asked) >= 3 else 404, b'{"action": "terminate"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/latest"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_notice_of_a_spot_instance_drains_it(tools: dict[str, str], metadata: str, tmp_path: Path) -> None:
    environment = tools | {"UDC_RAY_METADATA": metadata, "UDC_RAY_SPOT_SECONDS": "0.05", "RAY_EXIT": "3"}
    result = subprocess.run([CLUSTER / "spot-watch.sh"], env=environment, timeout=60)
    assert Metadata.asked == ["session-token"] * 3
    assert len(told(tmp_path)) == 1
    assert result.returncode == 3
