"""The file that is written on one node and read on the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from udc_ray.errors import UserError
from udc_ray_cluster import sharing
from udc_ray_cluster.everywhere import Answer

TOKEN = "sharing-test-token-of-its-own"


class Elsewhere:
    """One other node, which finds `there` where this process has `here`."""

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = str(here), str(there)
        self.seen: list[Any] = []

    def __call__(self, function: Any, arguments: tuple[Any, ...], timeout: float, *, but_here: bool) -> list[Answer]:
        self.seen.append(arguments)
        moved = tuple(self._move(argument) for argument in arguments)
        return [Answer("10.0.0.7", function(*moved), None)]

    def _move(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(self.here, self.there)
        if isinstance(value, tuple):
            return tuple(sharing.Place(self._move(path), size) for path, size in value)
        return value


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """A node with a disk of its own at the path that is called `here` on this one."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    made = Elsewhere(tmp_path / "here", tmp_path / "there")
    monkeypatch.setattr(sharing, "ask_every_node", made)
    monkeypatch.setattr(sharing, "PATIENCE_SECONDS", 0.0)
    return made


def test_a_shared_folder(node: Elsewhere, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    assert sharing.unshared_nodes(str(tmp_path / "shared" / "new" / "runs")) == []
    assert list((tmp_path / "shared").iterdir()) == []
    sharing.refuse_unshared(str(tmp_path / "shared"), [str(tmp_path)])


def test_another_folder_of_the_same_name(node: Elsewhere, tmp_path: Path) -> None:
    (unshared,) = sharing.unshared_nodes(str(tmp_path / "here"))
    assert unshared.node == "10.0.0.7" and unshared.reason.endswith("is another folder there")
    assert list((tmp_path / "here").iterdir()) == []


def test_no_such_folder(node: Elsewhere, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no .*/there/runs there") as error:
        sharing.refuse_unshared(str(tmp_path / "here" / "runs"))
    assert "s3://" in error.value.change


def test_a_relative_path_is_made_absolute(node: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sharing.unshared_nodes("runs") == []
    assert node.seen[0][0] == str(tmp_path / "runs")


def test_inputs(node: Elsewhere, tmp_path: Path) -> None:
    weights, data = tmp_path / "here" / "w.pt", tmp_path / "here" / "data"
    weights.write_bytes(b"1234")
    data.mkdir()
    paths = [str(weights), str(data)]
    assert "there is no" in sharing.nodes_without(paths)[0].reason
    shutil.copy2(weights, tmp_path / "there")
    (tmp_path / "there" / "data").mkdir()
    assert sharing.nodes_without(paths) == []
    (tmp_path / "there" / "w.pt").write_bytes(b"12345")
    assert "another file" in sharing.nodes_without(paths)[0].reason


def test_a_path_that_cannot_be_written(node: Elsewhere, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        sharing.unshared_nodes(str(tmp_path / "file" / "runs"))
    assert node.seen == []


LOOK = """
from udc_ray_cluster.session import session
from udc_ray_cluster.sharing import unshared_nodes
import sys, time
with session(1, address=sys.argv[1]):
    import ray
    while sum(node["Alive"] for node in ray.nodes()) < 2:
        time.sleep(0.2)
    print([reason for path in sys.argv[2:] for _, reason in unshared_nodes(path)])
"""


@pytest.mark.cluster
def test_a_node_with_a_mount_of_its_own(tmp_path: Path) -> None:
    """A worker in a mount namespace, where another disk lies over one of two folders."""
    probe = ["unshare", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here")
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir()
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    ray = str(Path(sys.executable).with_name("ray"))
    small = "--num-cpus=1 --object-store-memory=100000000 --block"
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # Ray's sockets want a short path
    head = f"exec {ray} start --head --port=7493 --include-dashboard=false --temp-dir={temporary} {small}"
    worker = f"mount -t tmpfs none {own} && exec {ray} start --address=127.0.0.1:7493 {small}"
    with (tmp_path / "log").open("w") as log:
        started = [subprocess.Popen(["sh", "-c", head], env=environment, stdout=log, stderr=log)]
        try:
            up = f"until {ray} health-check --address 127.0.0.1:7493; do sleep 1; done"
            subprocess.run(["sh", "-c", up], env=environment, stdout=log, stderr=log, check=True, timeout=120)
            command = ["unshare", "--mount", "sh", "-c", worker]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            look = [sys.executable, "-c", LOOK, "127.0.0.1:7493", str(shared), str(own)]
            result = subprocess.run(look, env=environment, capture_output=True, text=True, timeout=120)
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(timeout=60)
            shutil.rmtree(temporary, ignore_errors=True)
    assert result.stdout.strip() == f"['{own} is another folder there']", result.stderr
