"""Where a run directory lies: a local folder, or any URI that pyarrow's file systems open."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from udc_ray.errors import RunDirectoryError
from udc_ray.redact import has_credentials, redact

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space, or give --out on another disk"),
    errno.EDQUOT: ("the quota of this disk is used up", "free some space, or give --out on another disk"),
    errno.EROFS: ("the disk is read-only", "give --out in a folder that can be written"),
    errno.EACCES: ("no permission to use this folder", "give --out in a folder that can be written"),
    errno.EPERM: ("no permission to use this folder", "give --out in a folder that can be written"),
    errno.ENOTDIR: ("a part of the path is a file", "give --out with the path of a folder"),
}


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an error of the disk or the store into one message."""
    try:
        yield
    except OSError as error:
        default = ("the disk or the store refuses", "check the path, its permissions and the space left")
        cause, change = _CAUSES.get(error.errno or 0, default)
        raise RunDirectoryError(f"{what}: {redact(error.strerror or str(error))}", cause, change) from error


class Storage:
    """Files by name below a root; names are POSIX, such as ``parts/a.parquet``.

    Args:
        out: a local path or a URI (``s3://bucket/run``, ``file:///...``).

    Raises:
        RunDirectoryError: the URI holds a secret, or no file system opens it.
    """

    def __init__(self, out: str) -> None:
        if has_credentials(out):
            raise RunDirectoryError(
                "the URI of the run directory holds a user and a secret",
                "credentials are written into the address",
                "give them in the environment or in the store's own configuration",
            )
        self.name = out
        self._filesystem, self._root = _resolve(out)

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None for a URI elsewhere."""
        return Path(self._root) if self._filesystem is None else None

    def make(self) -> None:
        """Create the root folder, with its parents."""
        with explained(f"cannot create {self}"):
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            else:
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

    def read(self, name: str) -> bytes:
        """Bytes of a file."""
        with explained(f"cannot read {self}/{name}"):
            if self.folder is not None:
                return (self.folder / name).read_bytes()
            with self._filesystem.open_input_stream(self._path(name)) as stream:
                data: bytes = stream.read()
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file as a whole or not at all: temp, fsync and rename here, one close on a URI."""
        with explained(f"cannot write {self}/{name}"):
            if self.folder is not None:
                _write_atomically(self.folder / name, data)
                return
            self._filesystem.create_dir(self._path(name).rpartition("/")[0], recursive=True)
            with self._filesystem.open_output_stream(self._path(name)) as stream:
                stream.write(data)

    def delete(self, name: str) -> None:
        """Delete a file; one that is missing already is no error."""
        with explained(f"cannot delete {self}/{name}"):
            if self.folder is not None:
                (self.folder / name).unlink(missing_ok=True)
            elif self.exists(name):
                self._filesystem.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def is_temporary(name: str) -> bool:
    """Whether a name is that of a file whose writing was cut short."""
    return name.startswith(".") and name.endswith(".tmp")


def _resolve(out: str) -> tuple[Any, str]:
    if not _URI.match(out):
        return None, str(Path(out).expanduser().absolute())
    try:
        filesystem, root = fs.FileSystem.from_uri(out)
    except (OSError, ValueError, ImportError, NotImplementedError) as error:  # pyarrow's own errors derive from these
        raise RunDirectoryError(
            f"cannot open {redact(out)}: {redact(str(error))}",
            "no file system of pyarrow has this scheme, or the store does not answer",
            "give a local path, or a URI such as s3://bucket/folder",
        ) from error
    return (None if isinstance(filesystem, fs.LocalFileSystem) else filesystem), root.rstrip("/")


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
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
