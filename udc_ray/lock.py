"""RUN/lock: one live writer a run directory."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from udc_ray.errors import RunDirectoryError
from udc_ray.storage import Storage
from udc_ray.stores import explained

if sys.platform != "win32":
    import fcntl

LOCK = "lock"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A writer that has not beaten for so long is taken for dead."""
SETTLE_SECONDS = 1.0
"""On a URI, after so long we look whether another writer took the lock at the same moment."""
POLL_SECONDS = 1.0
"""While waiting for a sign of life, we look so often."""

_held: set[str] = set()
"""Tokens of the locks that this process holds: a process id alone can come again."""


@dataclass(frozen=True)
class _Seen:
    """Another's lock as it was when we came: what it said, how long it had been silent, and when that was."""

    values: dict[str, Any]
    silence: float
    at: float

    def renewed(self, found: dict[str, Any]) -> bool:
        """Whether its writer has given a sign of life since."""
        return any(found.get(key) != self.values.get(key) for key in ("token", "heartbeat"))

    @property
    def silent_for(self) -> float:
        """Seconds without a sign of life, while it is not renewed."""
        return self.silence + time.monotonic() - self.at


class RunLock:
    """The lock of one writer, with a heartbeat from a daemon thread.

    How long another writer has been silent is measured by the clock of the disk or the store, as the
    clocks of nodes differ; where the store tells no times, by our own, or while we wait for it.

    Between processes on one machine the take-over is exclusive. On a URI nothing can be created
    exclusively: of writers that start together the last to write keeps the lock, and the others see
    that when they read it back a moment later. A writer whose request is delayed for longer than that
    can still overwrite the lock of another, which sees it at its next heartbeat and stops writing.
    What both wrote until then is equal: a part's name says its content, so only work is lost.

    Args:
        storage: the run directory.
        beat: seconds between heartbeats.
        stale: seconds without a heartbeat after which the owner is taken for dead.
        job: id of the cluster job that writes, for those who find the lock.

    Attributes:
        lost: another writer has taken the lock over.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        beat: float = BEAT_SECONDS,
        stale: float = STALE_SECONDS,
        job: str | None = None,
    ) -> None:
        self.storage, self.beat, self.stale, self.job = storage, beat, stale, job
        self.lost = False
        self.token = secrets.token_hex(8)
        self._started = time.time()
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, patience: float = 0.0, waiting: Callable[[str], None] | None = None) -> None:
        """Take the lock, from a dead owner too.

        Args:
            patience: seconds to wait for an owner that may be dead, as its heartbeat is not renewed;
                one that renews it is refused at once.
            waiting: is told once that we wait, and for whom.

        Raises:
            RunDirectoryError: a live writer holds it.
        """
        self.storage.make()
        deadline = time.monotonic() + patience
        seen = self._try(None, patience > 0)
        if seen is not None and waiting is not None and patience > 0:
            waiting(f"{_writer(seen.values)} may still write to {self.storage}; waiting for it to go on or to be dead")
        while seen is not None:
            if time.monotonic() >= deadline:
                raise self._refusal(seen.values)
            time.sleep(min(POLL_SECONDS, max(deadline - time.monotonic(), 0)))
            seen = self._try(seen, patient=True)
        self._settle()
        _held.add(self.token)
        self._thread = threading.Thread(target=self._run, name="run-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stop the heartbeat and remove the lock, where it is still ours."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        with suppress(RunDirectoryError, OSError), _exclusive(self.storage):
            found = self._read()
            if found is not None and found.get("token") == self.token:
                self.storage.delete(LOCK)
        _held.discard(self.token)

    def check(self) -> None:
        """Refuse to write after another writer has taken over.

        Raises:
            RunDirectoryError: the lock is lost.
        """
        if not self.lost and time.monotonic() - self._renewed > self.stale:
            self.heartbeat()  # this process stood still for so long that another may have come
        if self.lost:
            raise RunDirectoryError(
                f"another writer has taken {self.storage} over",
                f"this process gave no sign of life for more than {self.stale:.0f} s",
                "let the other one finish",
            )

    def heartbeat(self) -> None:
        """Say that we live; notice when another writer has taken over."""
        # A full disk must not end a run that could go on: parts that cannot be written say so themselves.
        with suppress(RunDirectoryError, OSError), _exclusive(self.storage):
            found = self._read()
            if found is not None and found.get("token") != self.token:
                self.lost = True
                return
            self._write()

    def _run(self) -> None:
        while not self._stop.wait(self.beat) and not self.lost:
            self.heartbeat()

    def _try(self, seen: _Seen | None, patient: bool) -> _Seen | None:
        """Take the lock if it is free; else what is known of its owner."""
        with _exclusive(self.storage):
            found = self._read()
            if found is not None and not self._is_over(found):
                if seen is None:
                    seen = _Seen(found, self._silence(found, patient), time.monotonic())
                elif seen.renewed(found):
                    raise self._refusal(found)
                if seen.silent_for <= self.stale:
                    return seen
            self._write_first()
        return None

    def _settle(self) -> None:
        """On a URI, look whether another writer has overwritten what we have just written."""
        if self.storage.folder is not None:
            return
        time.sleep(SETTLE_SECONDS)
        found = self._read()
        if found is not None and found.get("token") != self.token:
            raise self._refusal(found)

    def _read(self) -> dict[str, Any] | None:
        data = self.storage.find(LOCK)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError:  # torn: its writer died while it wrote
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        values = {
            "owner": f"{socket.gethostname()}:{os.getpid()}",
            "job": self.job,
            "token": self.token,
            "started": self._started,
            "heartbeat": time.time(),
        }
        self.storage.write(LOCK, json.dumps(values).encode())
        self._renewed = time.monotonic()

    def _write_first(self) -> None:
        try:
            self._write()
        except RunDirectoryError:
            if self.storage.folder is not None:
                with suppress(OSError):
                    self.storage.folder.rmdir()  # made for nothing; one that holds something stays
            raise

    def _refusal(self, found: dict[str, Any]) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self.storage} is being written by {_writer(found)}",
            "the same run is at work there",
            f"wait until it ends or stop it; a dead writer's lock is free after {self.stale:.0f} s",
        )

    def _is_over(self, found: dict[str, Any]) -> bool:
        """Whether the owner is known to have ended, or no owner is written."""
        if not isinstance(found.get("heartbeat"), (int, float)):
            return True
        host, _, pid = str(found.get("owner", "")).rpartition(":")
        if host != socket.gethostname() or not pid.isdigit():
            return False
        if int(pid) == os.getpid():
            return found.get("token") not in _held
        return not _runs(int(pid))

    def _silence(self, found: dict[str, Any], patient: bool) -> float:
        """Seconds since the owner's last sign of life; 0 where only waiting can tell."""
        probe = f".{LOCK}-{self.token}.tmp"
        self.storage.write(probe, b"?")
        now, then = self.storage.modified(probe), self.storage.modified(LOCK)
        self.storage.delete(probe)
        if now is not None and then is not None:
            return now - then
        return 0.0 if patient else time.time() - float(found["heartbeat"])


def _writer(found: dict[str, Any]) -> str:
    job = found.get("job")
    return f"{found.get('owner')}" + (f" (job {job})" if job else "")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, but not ours to signal
        return True
    return True


@contextmanager
def _exclusive(storage: Storage) -> Iterator[None]:
    """Keep other processes of this machine out between reading the lock and writing it."""
    if sys.platform == "win32" or storage.folder is None:
        yield
        return
    with explained(f"cannot open {storage}"):
        descriptor = os.open(storage.folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
