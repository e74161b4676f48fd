from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
    heartbeat = float(str(values["heartbeat"]))
    os.utime(folder / LOCK, (heartbeat, heartbeat))  # it is written with every heartbeat


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


def test_the_refusal_names_the_job_that_writes(tmp_path: Path) -> None:
    lock = RunLock(Storage(str(tmp_path)), job="udc-0123-1")
    lock.acquire()
    with pytest.raises(RunDirectoryError, match=rf"being written by .*:{os.getpid()} \(job udc-0123-1\)"):
        RunLock(Storage(str(tmp_path))).acquire()
    lock.release()


@pytest.mark.parametrize("skew", [-3600, 3600])
@pytest.mark.parametrize("silence", [5, 65])
def test_the_disk_says_how_long_a_writer_is_silent_whatever_its_clock_says(
    tmp_path: Path, skew: float, silence: float
) -> None:
    plant(tmp_path, heartbeat=time.time() - silence)
    text = json.loads((tmp_path / LOCK).read_text())
    written = (tmp_path / LOCK).stat().st_mtime
    (tmp_path / LOCK).write_text(json.dumps(text | {"heartbeat": text["heartbeat"] + skew}))
    os.utime(tmp_path / LOCK, (written, written))
    lock = RunLock(Storage(str(tmp_path)))
    if silence < 60:
        with pytest.raises(RunDirectoryError, match="elsewhere"):
            lock.acquire()
    else:
        lock.acquire()
        lock.release()
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


class Clock:
    """A clock that only waiting moves; what happens meanwhile is a list of (second, deed)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *deeds: tuple[float, Callable[[], object]]) -> None:
        self.now, self.deeds = 1000.0, [(1000.0 + at, deed) for at, deed in deeds]
        monkeypatch.setattr("udc_ray.lock.time.monotonic", lambda: self.now)
        monkeypatch.setattr("udc_ray.lock.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.deeds and self.deeds[0][0] <= self.now:
            self.deeds.pop(0)[1]()


@contextmanager
def no_times(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that does not say when files were written."""
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "modified", lambda self, name: None)
        yield


@pytest.mark.parametrize("times", [True, False])
def test_patience_takes_over_from_a_writer_that_stays_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: bool
) -> None:
    plant(tmp_path, heartbeat=time.time() - 20, job="udc-7")
    told: list[str] = []
    clock, lock = Clock(monkeypatch), RunLock(Storage(str(tmp_path)))
    with nullcontext() if times else no_times(monkeypatch):
        lock.acquire(90, told.append)
    waited = clock.now - 1000
    assert 39 <= waited <= 42 if times else 60 <= waited <= 62  # where only waiting tells, a whole minute
    assert len(told) == 1 and "elsewhere:1 (job udc-7)" in told[0]
    assert json.loads((tmp_path / LOCK).read_text())["token"] == lock.token
    lock.release()


def test_patience_refuses_a_writer_that_gives_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path)
    now = time.time()
    clock = Clock(monkeypatch, (9, lambda: plant(tmp_path, heartbeat=now + 10)))
    with pytest.raises(RunDirectoryError, match="being written by elsewhere:1"):
        RunLock(Storage(str(tmp_path))).acquire(90)
    assert clock.now - 1000 < 12


def test_patience_takes_a_lock_that_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path)
    clock = Clock(monkeypatch, (5, (tmp_path / LOCK).unlink))
    lock = RunLock(Storage(str(tmp_path)))
    lock.acquire(90)
    assert clock.now - 1000 < 8
    lock.release()


def test_patience_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path)
    clock = Clock(monkeypatch)
    with pytest.raises(RunDirectoryError, match="elsewhere:1"):
        RunLock(Storage(str(tmp_path))).acquire(30)
    assert clock.now - 1000 == 30


def test_a_free_lock_is_taken_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    clock, lock = Clock(monkeypatch), RunLock(Storage(str(tmp_path)))
    lock.acquire(90, told.append)
    assert not told and clock.now == 1000
    lock.release()


def test_a_process_that_stood_still_looks_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(Storage(str(tmp_path)))
    lock.acquire()
    plant(tmp_path, token="another")
    lock.check()  # only looked for at the next heartbeat
    now = time.monotonic()
    monkeypatch.setattr("udc_ray.lock.time.monotonic", lambda: now + 100)
    with pytest.raises(RunDirectoryError, match="another writer"):
        lock.check()
    monkeypatch.undo()
    lock.release()
