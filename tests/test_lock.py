from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from udc_ray.errors import RunDirectoryError
from udc_ray.lock import LOCK, RunLock
from udc_ray.storage import Storage


def plant(folder: Path, **changes: object) -> None:
    now = time.time()
    values = {"owner": "elsewhere:1", "token": "x", "started": now, "heartbeat": now} | changes
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(values))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_a_second_live_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    first, second = RunLock(Storage(str(tmp_path))), RunLock(Storage(str(tmp_path)))
    first.acquire()
    with pytest.raises(RunDirectoryError, match=f"{socket.gethostname()}:{os.getpid()}"):
        second.acquire()
    second.release()
    assert (tmp_path / LOCK).exists()
    first.release()
    assert not (tmp_path / LOCK).exists()
    second.acquire()
    second.release()


def test_a_live_writer_on_another_machine_is_refused(tmp_path: Path) -> None:
    plant(tmp_path)
    with pytest.raises(RunDirectoryError, match="elsewhere:1"):
        RunLock(Storage(str(tmp_path))).acquire()


def test_a_live_process_of_this_machine_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, owner=f"{socket.gethostname()}:{os.getppid()}")
    with pytest.raises(RunDirectoryError):
        RunLock(Storage(str(tmp_path))).acquire()


@pytest.mark.parametrize("case", ["silent", "dead", "reborn", "torn", "empty"])
def test_a_stale_lock_is_taken_over(tmp_path: Path, case: str) -> None:
    host = socket.gethostname()
    if case == "silent":
        plant(tmp_path, heartbeat=time.time() - 61)
    elif case == "dead":
        plant(tmp_path, owner=f"{host}:{dead_pid()}")
    elif case == "reborn":  # our own process id, but not a lock of ours: containers number from 1 again
        plant(tmp_path, owner=f"{host}:{os.getpid()}")
    else:
        (tmp_path / LOCK).write_text('{"owner": "els' if case == "torn" else "")
    lock = RunLock(Storage(str(tmp_path)))
    lock.acquire()
    assert json.loads((tmp_path / LOCK).read_text())["token"] == lock.token
    lock.release()


def test_the_heartbeat_is_renewed(tmp_path: Path) -> None:
    lock = RunLock(Storage(str(tmp_path)), beat=0.01)
    lock.acquire()
    before = json.loads((tmp_path / LOCK).read_text())["heartbeat"]
    for _ in range(500):
        if json.loads((tmp_path / LOCK).read_text())["heartbeat"] > before:
            break
        time.sleep(0.01)
    else:
        pytest.fail("no heartbeat in 5 s")
    lock.release()


def test_a_writer_that_was_taken_for_dead_notices_and_stops(tmp_path: Path) -> None:
    lock = RunLock(Storage(str(tmp_path)))
    lock.acquire()
    lock.check()
    plant(tmp_path, token="another")
    lock.heartbeat()
    with pytest.raises(RunDirectoryError, match="another writer"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "another"


def test_a_full_disk_does_not_end_the_heartbeat_but_refuses_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunLock(Storage(str(tmp_path / "run")))
    lock.acquire()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    lock.heartbeat()
    lock.check()
    lock.release()
    with pytest.raises(RunDirectoryError, match="disk is full"):
        RunLock(Storage(str(tmp_path / "new"))).acquire()
    assert not (tmp_path / "new").exists()


def test_of_many_processes_that_find_a_stale_lock_one_takes_it(tmp_path: Path) -> None:
    plant(tmp_path, heartbeat=0.0)
    script = (
        "import sys, time\n"
        "from udc_ray.lock import RunLock\n"
        "from udc_ray.storage import Storage\n"
        "sys.stdin.readline()\n"
        "try:\n    RunLock(Storage(sys.argv[1])).acquire(); print('mine', flush=True)\n"
        "except Exception as e: print(type(e).__name__, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(process.stdout.readline().strip())
    for process in processes:
        process.communicate("end\n", timeout=30)
    assert sorted(answers) == ["RunDirectoryError", "RunDirectoryError", "mine"]
