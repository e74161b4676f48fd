"""The SQLite file of a ledger: one live writer, durable commits that are shared by calls that come together."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from udc_ray.metered.account import LedgerError

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE ledger (
    one INTEGER PRIMARY KEY CHECK (one = 1), schema_version INTEGER NOT NULL, target TEXT NOT NULL, budget INTEGER,
    lease INTEGER NOT NULL, asked_lease INTEGER NOT NULL, leased INTEGER,
    lost INTEGER NOT NULL, rebuilt INTEGER NOT NULL
);
CREATE TABLE queries (
    row INTEGER PRIMARY KEY, purpose TEXT NOT NULL, cell TEXT NOT NULL, image_id TEXT NOT NULL,
    restart INTEGER NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL, candidate TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'sent', 'answered', 'unknown', 'refused')),
    reason TEXT, answer BLOB, lease INTEGER NOT NULL,
    reserved_at REAL NOT NULL, sent_at REAL, settled_at REAL, mirrored INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX by_key ON queries (cell, image_id, restart, step, purpose, attempt);
CREATE INDEX to_mirror ON queries (row) WHERE mirrored = 0;
"""
WAIT_SECONDS = 30
"""For a reader that keeps the write-ahead log busy for a moment."""

T = TypeVar("T")


class _Batch:
    """Calls that share a commit."""

    error: sqlite3.Error | None = None


class Database:
    """A ledger's file, opened by its one writer.

    Power loss: the file is in WAL mode with synchronous=FULL, so a commit returns once the log has been
    flushed to the disk; what a kill leaves is a prefix of the commits.

    Args:
        path: the file.
        create: makes the file's content where there is none, within one transaction.

    Attributes:
        lock: held by whoever works on the file; it may be taken again by its holder, who then must not ask
            for a durable `run`.
        connection: to be used with the lock held.
        closed: nothing can be done with it any more.
        rolled_back: is called when something was, so that what is kept in memory is read anew.

    Raises:
        LedgerError: another process writes it, or it is damaged.
    """

    def __init__(self, path: Path, create: Callable[[sqlite3.Connection], None]) -> None:
        self.path, self.closed, self._stale = path, False, False
        self.rolled_back: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        self._turn = threading.Lock()
        self._batch = _Batch()
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._guard = _only_writer(path)
        try:
            with explained(path):
                if not path.exists():
                    _create(path, create)
                self.connection = _connect(path)
        except BaseException:
            self._guard.close()
            raise

    def run(self, work: Callable[[], T], *, durable: bool = True) -> T:
        """Do some statements as a whole or not at all.

        Args:
            work: uses `connection`.
            durable: return once they are on the disk. Else they go there with the next durable ones, in order.

        Raises:
            LedgerError: they could not be written.
        """
        with explained(self.path):
            with self.lock:
                if self._stale:
                    self._read_anew()
                if not self.connection.in_transaction:
                    self._batch = _Batch()
                    self.connection.execute("BEGIN IMMEDIATE")
                batch = self._batch
                result = self._whole(work)
            if durable:
                with self._turn:  # while one commits, the others gather here, and the next commit is theirs together
                    self.commit(batch)
                if batch.error is not None:
                    raise batch.error
        return result

    def commit(self, batch: _Batch | None = None) -> None:
        """Commit what is open; only if that is `batch`, where one is given.

        Raises:
            LedgerError: it could not be written; every call that shared it is told.
        """
        with explained(self.path), self.lock:
            if not self.connection.in_transaction or batch not in {None, self._batch}:
                return
            try:
                self.connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._batch.error = error
                self._roll_back("ROLLBACK")
                raise

    def close(self) -> None:
        """Commit, close, and let another writer in."""
        with self.lock:
            try:
                if not self.closed:
                    self.commit()
            finally:
                self.closed = True
                self.connection.close()
                self._guard.close()

    def _whole(self, work: Callable[[], T]) -> T:
        self.connection.execute("SAVEPOINT work")
        try:
            result = work()
            self.connection.execute("RELEASE work")
        except BaseException as error:
            if self.connection.in_transaction:
                self._roll_back("ROLLBACK TO work")
            else:  # a full disk ends the whole transaction, and with it the calls that share it
                self._batch.error = error if isinstance(error, sqlite3.Error) else sqlite3.OperationalError("ended")
                self._read_anew()
            raise
        return result

    def _roll_back(self, statement: str) -> None:
        self._stale = True
        if self.connection.in_transaction:
            self.connection.execute(statement)
        self._read_anew()

    def _read_anew(self) -> None:
        self._stale = True  # until it has been read; a disk that fails now may work again later
        self.rolled_back()
        self._stale = False


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the disk into one message for the user."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _unusable(path, error) from error


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that takes no lock that a writer would wait for.

    Raises:
        LedgerError: there is no such file, or it is damaged.
    """
    with explained(path):
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=WAIT_SECONDS)
        connection.row_factory = sqlite3.Row
        try:
            _check_version(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # on macOS a plain fsync stops at the drive's cache
        _check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, create: Callable[[sqlite3.Connection], None]) -> None:
    """Make the file under another name first: a file of the right name is a whole ledger or a damaged one."""
    new = path.with_name(f"{path.name}.new")
    for name in (new, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        name.unlink(missing_ok=True)  # the log of a file that is gone must not be played into this one
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}")
        create(connection)
        connection.execute("COMMIT")
    finally:
        connection.close()
    os.replace(new, path)
    _sync_folder(path.parent)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(str(found))
    _check_version(connection, path)


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("SELECT schema_version FROM ledger").fetchone()
    if found is None:
        raise sqlite3.DatabaseError("its head is missing")
    if found[0] != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} is a ledger of schema {found[0]}, and this udc-ray reads schema {SCHEMA_VERSION}",
            "it was written by another version of udc-ray",
            "go on with the version that wrote it",
        )


def _only_writer(path: Path) -> sqlite3.Connection:
    """Hold a lock that ends with this process, however it ends, and that readers never ask for."""
    guard = sqlite3.connect(
        path.with_name(f"{path.name}.lock"), timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        guard.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        guard.close()
        if "locked" not in str(error):
            raise _unusable(path, error) from error
        raise LedgerError(
            f"{path} is being written by another process",
            "a campaign against the same target is at work on this machine",
            "wait until it ends or stop it; a writer that died holds nothing",
        ) from None
    return guard


def _unusable(path: Path, error: Exception) -> LedgerError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in text:
        return LedgerError(f"the ledger {path} is closed", "the campaign has ended", "open it anew")
    if isinstance(error, (sqlite3.OperationalError, OSError)) and "no such table" not in text:
        return LedgerError(
            f"the ledger {path} cannot be used: {text}",
            "the disk is full, gone or read-only, or the path is wrong; nothing was sent for this query",
            "free some space or give a folder that can be written, then resume",
        )
    return LedgerError(
        f"the ledger {path} is damaged: {text}",
        "the disk is damaged, or the file was changed by something else than udc-ray",
        "remove it with its -wal file and resume: a ledger that is mirrored in the run's storage is rebuilt from "
        "there, and what is not known counts as spent; without a mirror give what is left as the new budget",
    )


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; not every file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
