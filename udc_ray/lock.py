"""RUN/lock: one live writer a run directory."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from udc_ray.errors import RunDirectoryError
from udc_ray.storage import Storage, explained

if sys.platform != "win32":
    import fcntl

LOCK = "lock"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A writer that has not beaten for so long is taken for dead."""

_held: set[str] = set()
"""Tokens of the locks that this process holds: a process id alone can come again."""


class RunLock:
    """The lock of one writer, with a heartbeat from a daemon thread.

    Between processes on one machine the take-over is exclusive. On a URI, where nothing can be
    created exclusively, the last of several writers that start within the same moment wins; the
    others see it at their next heartbeat and stop writing.

    Args:
        storage: the run directory.
        beat: seconds between heartbeats.
        stale: seconds without a heartbeat after which the owner is taken for dead.

    Attributes:
        lost: another writer has taken the lock over.
    """

    def __init__(self, storage: Storage, *, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.storage, self.beat, self.stale = storage, beat, stale
        self.lost = False
        self.token = secrets.token_hex(8)
        self._started = time.time()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, from a dead owner too.

        Raises:
            RunDirectoryError: a live writer holds it.
        """
        self.storage.make()
        with _exclusive(self.storage):
            found = self._read()
            if found is not None and self._alive(found):
                raise RunDirectoryError(
                    f"{self.storage} is being written by {found.get('owner')}",
                    "the same run is at work there",
                    f"wait until it ends or stop it; a dead writer's lock is free after {self.stale:.0f} s",
                )
            self._write_first()
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

    def _read(self) -> dict[str, Any] | None:
        if not self.storage.exists(LOCK):
            return None
        try:
            found = json.loads(self.storage.read(LOCK))
        except ValueError:  # torn: its writer died while it wrote
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        values = {
            "owner": f"{socket.gethostname()}:{os.getpid()}",
            "token": self.token,
            "started": self._started,
            "heartbeat": time.time(),
        }
        self.storage.write(LOCK, json.dumps(values).encode())

    def _write_first(self) -> None:
        try:
            self._write()
        except RunDirectoryError:
            if self.storage.folder is not None:
                with suppress(OSError):
                    self.storage.folder.rmdir()  # made for nothing; one that holds something stays
            raise

    def _alive(self, found: dict[str, Any]) -> bool:
        heartbeat = found.get("heartbeat")
        if not isinstance(heartbeat, (int, float)) or time.time() - heartbeat > self.stale:
            return False
        host, _, pid = str(found.get("owner", "")).rpartition(":")
        if host != socket.gethostname() or not pid.isdigit():
            return True
        if int(pid) == os.getpid():
            return found.get("token") in _held
        return _runs(int(pid))


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
