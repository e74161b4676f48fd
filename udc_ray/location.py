"""Weights and data behind a URI: looked up in the store, fetched once per node into a cache folder.

Local paths and ``file://`` stay where they are. Of any other URI that pyarrow opens (s3://, gs://,
abfs://, hdfs://), what is needed is copied into UDC_RAY_CACHE, or ``XDG_CACHE_HOME/udc-ray``
(``~/.cache/udc-ray``); the folder may be deleted at any time. s3:// is tested; gs:// and the rest
go the same way and are not.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from pyarrow import fs

from udc_ray.errors import DataError, UserError
from udc_ray.stores import explained, is_uri, open_uri

if sys.platform != "win32":
    import fcntl

__all__ = [
    "Folder",
    "Place",
    "RemoteFile",
    "RemoteFolder",
    "fetch",
    "is_uri",
    "list_files",
    "local",
    "local_folder",
    "look",
    "place",
]

CACHE = "UDC_RAY_CACHE"
"""Environment variable with the cache folder of this node."""
AT_ONCE = 16
"""Files that are fetched at once."""
_CHUNK = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file in a store, as it was when it was looked up; hashable, small and picklable.

    Attributes:
        store: URI that opens the file system.
        path: of the file in it.
        uri: to be read by people.
        size: bytes.
        modified: when it was written, in whole seconds by the store's clock; 0 where that is not known.
    """

    store: str
    path: str
    uri: str
    size: int
    modified: int

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """`name` without suffix."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """Suffix with its dot."""
        return PurePosixPath(self.path).suffix

    @property
    def key(self) -> str:
        """Name in the cache: another version of the file has another one."""
        facts = f"{self.store.partition('?')[2]}|{self.uri}|{self.size}|{self.modified}"
        return hashlib.sha256(facts.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """All files below a folder in a store.

    Attributes:
        uri: to be read by people.
        name: last part of the path.
        files: by POSIX path relative to the folder, sorted.
    """

    uri: str
    name: str
    files: Mapping[str, RemoteFile]

    def __str__(self) -> str:
        return self.uri

    def folders(self) -> dict[str, RemoteFolder]:
        """The folders directly below, by name."""
        inside: dict[str, dict[str, RemoteFile]] = {}
        for path, file in self.files.items():
            first, slash, rest = path.partition("/")
            if slash:
                inside.setdefault(first, {})[rest] = file
        return {name: RemoteFolder(uri=f"{self.uri}/{name}", name=name, files=inside[name]) for name in sorted(inside)}


Place = Path | RemoteFile
"""A file, wherever it is."""
Folder = Path | RemoteFolder
"""A folder, wherever it is."""


def look(text: str, kind: type[UserError] = DataError) -> Path | RemoteFile | RemoteFolder:
    """What a path or URI names; a local path is not looked at.

    Raises:
        UserError: of the given kind: nothing is there, a secret in the URI, or the store refuses.
    """
    if not is_uri(text):
        return Path(text).expanduser()
    filesystem, root = open_uri(text, kind)
    if filesystem is None:
        return Path(root)
    shown = unquote(text.partition("?")[0]).rstrip("/")
    with explained(f"cannot look up {shown}", kind):
        info = filesystem.get_file_info(root)
        if info.type == fs.FileType.File:
            return _remote(text, shown, info)
        selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
        found = [] if info.type == fs.FileType.NotFound else filesystem.get_file_info(selector)
    if info.type == fs.FileType.NotFound:
        raise kind(f"there is nothing at {shown}", "a wrong URI, or no permission to see it", "check the URI")
    files = {i.path[len(root) :].lstrip("/"): i for i in found if i.type == fs.FileType.File}
    table = {path: _remote(text, f"{shown}/{path}", files[path]) for path in sorted(files)}
    return RemoteFolder(uri=shown, name=PurePosixPath(root).name, files=table)


def place(text: str, kind: type[UserError] = DataError) -> Place:
    """The file that a path or URI names; a folder at a URI is refused."""
    found = look(text, kind)
    if isinstance(found, RemoteFolder):
        raise kind(f"{found} is a folder, where a file is wanted", change="give the file in it")
    return found


def local(where: str | Place, kind: type[UserError] = DataError) -> Path:
    """The path of a file on this machine; one behind a URI is fetched unless the node has it.

    Raises:
        UserError: of the given kind: it is not there, or the store or the cache folder refuses.
    """
    found = place(where, kind) if isinstance(where, str) else where
    return found if isinstance(found, Path) else _fetched(found, kind)


def fetch(places: Iterable[Place], kind: type[UserError] = DataError) -> None:
    """Bring files to this node, several at once, so that reading them one by one does not wait."""
    remote = [p for p in dict.fromkeys(places) if isinstance(p, RemoteFile)]
    if remote:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as threads:
            for _ in threads.map(lambda file: _fetched(file, kind), remote):
                pass


def list_files(text: str, kind: type[UserError] = DataError) -> list[str]:
    """POSIX paths of all files below a folder, relative to it, sorted."""
    found = look(text, kind)
    if isinstance(found, RemoteFile):
        raise kind(f"{found} is a file, where a folder is wanted", change="give the folder that holds it")
    if isinstance(found, RemoteFolder):
        return list(found.files)
    with explained(f"cannot list {text}", kind):
        return sorted(p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file())


def local_folder(text: str, names: Iterable[str], kind: type[UserError] = DataError) -> Path:
    """A local folder with those of the named files that a folder has; fetched where it is behind a URI."""
    found = look(text, kind)
    if isinstance(found, Path):
        return found
    if isinstance(found, RemoteFile):
        raise kind(f"{found} is a file, where a folder is wanted", change="give the folder that holds it")
    wanted = [found.files[name] for name in names if name in found.files]
    fetch(wanted, kind)
    together = hashlib.sha256("|".join(file.key for file in wanted).encode()).hexdigest()[:32]
    folder = _cache(kind) / together / (found.name or "folder")
    with explained(f"cannot keep {found} in {folder}", kind, CACHE), _alone(folder.parent):
        folder.mkdir(exist_ok=True)
        for file in wanted:
            if not (folder / file.name).exists():
                _link(_fetched(file, kind), folder / file.name)
    return folder


def _remote(text: str, shown: str, info: Any) -> RemoteFile:
    modified = (info.mtime_ns or 0) // 10**9  # what a listing says and what one file says differ in the fraction
    return RemoteFile(store=text, path=info.path, uri=shown, size=info.size, modified=modified)


@lru_cache(maxsize=32)
def _filesystem(store: str) -> Any:
    """Opened once a process, as the region of a bucket may have to be asked for."""
    return open_uri(store, DataError).filesystem


def _cache(kind: type[UserError]) -> Path:
    given, general = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME")
    if given or general:
        return Path(given).absolute() if given else Path(general or "").absolute() / "udc-ray"
    try:
        return Path.home() / ".cache" / "udc-ray"
    except RuntimeError as error:
        raise kind(
            "there is no folder to keep files in", "a user without a home", f"set {CACHE} to a folder"
        ) from error


def _fetched(file: RemoteFile, kind: type[UserError]) -> Path:
    target = _cache(kind) / file.key / file.name
    if _is_whole(target, file):
        return target
    with explained(f"cannot fetch {file} into {target.parent}", kind, CACHE), _alone(target.parent):
        if not _is_whole(target, file):  # another process of this node was faster
            _download(file, target, kind)
    return target


def _is_whole(target: Path, file: RemoteFile) -> bool:
    try:
        return target.stat().st_size == file.size
    except OSError:
        return False  # fetching it says what is wrong


def _download(file: RemoteFile, target: Path, kind: type[UserError]) -> None:
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with _filesystem(file.store).open_input_stream(file.path) as source, temporary.open("xb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
        if temporary.stat().st_size != file.size:
            raise kind(
                f"{file} has {temporary.stat().st_size} bytes, not {file.size} as when it was looked up",
                "it was replaced since the run began",
                "leave data and weights alone while a run uses them, and start again",
            )
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, and keep other processes of this node out of it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):  # some network file systems cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
