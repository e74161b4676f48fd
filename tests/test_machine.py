"""Cores, memory, disks and GPUs, as control groups and drivers tell them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from udc_ray import machine

GIB = 2**30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/hidden\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "800000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_usable_cores(files: dict[str, str], cores: int, many_cores: None, tmp_path: Path) -> None:
    assert machine.usable_cpus(tree(tmp_path, files)) == cores


def test_affinity_confines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert machine.usable_cpus(tree(tmp_path, {"sys/fs/cgroup/cpu.max": "800000 100000"})) == 1


MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": f"{4 * GIB}\n"}, 4 * GIB),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": f"{3 * GIB}",
                "sys/fs/cgroup/a/b/memory.max": f"{5 * GIB}",
            },
            3 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/job\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{2 * GIB}\n",
            },
            2 * GIB,
        ),
    ],
)
def test_memory(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    found = machine.memory(tree(tmp_path, {"proc/meminfo": MEMINFO} | files))
    assert (found.total, found.available, found.limit) == (16 * GIB, 8 * GIB, limit)
    assert found.usable == min(8 * GIB, limit or 8 * GIB)


def test_this_machine() -> None:
    assert 1 <= machine.usable_cpus() <= (os.cpu_count() or 1)
    found = machine.memory()
    assert 0 < found.available <= found.total


def test_disk_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    free, total = machine.disk_free(tmp_path / "a" / "b")
    assert 0 < free <= total
    assert total == machine.disk_free(tmp_path)[1]


def fake_tool(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool(tmp_path, 'echo "NVIDIA L4, 23034, 22500, 570.86"; echo "NVIDIA X, [N/A], [N/A], 570.86"', monkeypatch)
    (gpu,) = machine.gpus()
    assert gpu == machine.Gpu(name="NVIDIA L4", memory=23034 * 2**20, free=22500 * 2**20, driver="570.86")


def test_a_driver_that_fails_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9", monkeypatch)
    assert machine.gpus() == ()


def test_folders_that_were_made_are_removed_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    missing = machine.missing_folders(folder)
    assert missing == [folder, folder.parent]
    folder.mkdir(parents=True)
    (folder.parent / "somebody's file").write_text("")
    machine.remove_folders(missing)
    assert folder.parent.is_dir() and not folder.exists()


def test_addresses() -> None:
    assert "127.0.0.1" in machine.addresses("localhost")
    assert machine.addresses("no-such-name.invalid") == ()
