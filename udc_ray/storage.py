"""Where a run directory lies: a local folder, or any URI that pyarrow's file systems open."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from udc_ray.stores import Opened, explained, is_object_store, is_uri, open_uri, refuse_secrets

AT_ONCE = 16
"""Requests to a store that are under way together; it has 25 connections."""

T = TypeVar("T")
R = TypeVar("R")


class Storage:
    """Files by name below a root; names are POSIX, such as ``parts/a.parquet``.

    Args:
        out: a local path or a URI (``s3://bucket/run``, ``file:///...``).

    Raises:
        RunDirectoryError: the URI holds a secret, or no file system opens it.
    """

    def __init__(self, out: str) -> None:
        refuse_secrets(out)
        self.name = out
        local = Opened(None, str(Path(out).expanduser().absolute()))
        self._filesystem, self._root = open_uri(out) if is_uri(out) else local
        self._needs_folders = self._filesystem is not None and not is_object_store(self._filesystem)

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None for a URI elsewhere."""
        return Path(self._root) if self._filesystem is None else None

    def make(self) -> None:
        """Create the root folder, with its parents; an object store needs none."""
        with explained(f"cannot create {self}"):
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            elif self._needs_folders:
                self._filesystem.create_dir(self._root, recursive=True)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of that name."""
        with explained(f"cannot look into {self}"):
            if self.folder is not None:
                return (self.folder / name).exists()
            found: bool = self._filesystem.get_file_info(self._path(name)).type != fs.FileType.NotFound
            return found

    def names(self, folder: str = "") -> list[str]:
        """Names directly in a folder, sorted; none where the folder is missing."""
        with explained(f"cannot list {self}/{folder}"):
            if self.folder is not None:
                path = self.folder / folder
                return sorted(p.name for p in path.iterdir()) if path.is_dir() else []
            selector = fs.FileSelector(self._path(folder), allow_not_found=True)
            return sorted(info.base_name for info in self._filesystem.get_file_info(selector))

    def modified(self, name: str) -> float | None:
        """When a file was written, by the clock of the disk or the store; None where that is not known."""
        with explained(f"cannot look into {self}"):
            if self.folder is not None:
                return (self.folder / name).stat().st_mtime
            nanoseconds: int | None = self._filesystem.get_file_info(self._path(name)).mtime_ns
            return None if nanoseconds is None else nanoseconds / 1e9

    def read(self, name: str) -> bytes:
        """Bytes of a file."""
        with explained(f"cannot read {self}/{name}"):
            return self._read(name)

    def find(self, name: str) -> bytes | None:
        """Bytes of a file, or None where there is none."""
        with explained(f"cannot read {self}/{name}"):
            if self.folder is not None and not (self.folder / name).exists():
                return None
            try:
                return self._read(name)
            except FileNotFoundError:
                return None

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results of a function in the order of the items; a far store is asked for many at once."""
        if self.folder is not None:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="storage") as threads:
            waiting: deque[Future[R]] = deque()
            for item in items:
                waiting.append(threads.submit(work, item))
                if len(waiting) == AT_ONCE:  # no more, as what is not taken yet lies in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole or not at all: temp, fsync and rename here, one close on an object store."""
        with explained(f"cannot write {self}/{name}"):
            if self.folder is not None:
                _write_atomically(self.folder / name, data)
            elif self._needs_folders:
                parent, _, base = self._path(name).rpartition("/")
                temporary = f"{parent}/{_temporary_name(base)}"
                self._filesystem.create_dir(parent, recursive=True)
                self._upload(temporary, data)
                self._filesystem.move(temporary, self._path(name))
            else:
                self._upload(self._path(name), data)

    def delete(self, name: str) -> None:
        """Delete a file; one that is missing already is no error."""
        with explained(f"cannot delete {self}/{name}"):
            if self.folder is not None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                with suppress(FileNotFoundError):
                    self._filesystem.delete_file(self._path(name))

    def _read(self, name: str) -> bytes:
        if self.folder is not None:
            return (self.folder / name).read_bytes()
        with self._filesystem.open_input_stream(self._path(name)) as stream:
            data: bytes = stream.read()
        return data

    def _upload(self, path: str, data: bytes) -> None:
        with self._filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def is_temporary(name: str) -> bool:
    """Whether a name is that of a file whose writing was cut short."""
    return name.startswith(".") and name.endswith(".tmp")


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:  # whatever it was, Ctrl-C too, no torn file stays
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; not every file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
