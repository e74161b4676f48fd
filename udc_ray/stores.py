"""The one door to pyarrow's file systems, and one message for each way in which they fail.

S3 is opened when a URI is first looked at, never at import. A process that has used it must start
others anew (spawn); a forked child would inherit the store's threads without their state.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from udc_ray.errors import RunDirectoryError, UserError
from udc_ray.redact import has_credentials, redact

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_SECRET_QUERY = re.compile(r"[?&][^=&]*(?:secret|token|password|key|sig)[^=&]*=", re.IGNORECASE)
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})
_DISK = {
    errno.ENOSPC: ("the disk is full", "free some space, or give {setting} on another disk"),
    errno.EDQUOT: ("the quota of this disk is used up", "free some space, or give {setting} on another disk"),
    errno.EROFS: ("the disk is read-only", "give {setting} in a folder that can be written"),
    errno.EACCES: ("no permission to use this folder", "give {setting} in a folder that can be written"),
    errno.EPERM: ("no permission to use this folder", "give {setting} in a folder that can be written"),
    errno.ENOTDIR: ("a part of the path is a file", "give {setting} with the path of a folder"),
}
_STORE = {
    "ACCESS_DENIED": ("no credentials, or none that may do this", "check the credentials in the environment"),
    "INVALID_ACCESS_KEY_ID": ("the store does not know the credentials", "check the credentials in the environment"),
    "SIGNATURE_DOES_NOT_MATCH": ("a wrong secret key", "check the credentials in the environment"),
    "NO_SUCH_BUCKET": ("the bucket does not exist", "create the bucket, or give the URI of another one"),
    "NETWORK_CONNECTION": ("the store does not answer", "check the network and the endpoint, then give the same again"),
    "SLOW_DOWN": ("the store is asked for too much at once", "wait a little, then give the same command again"),
}
"""By the word that pyarrow puts into its text."""


class Opened(NamedTuple):
    """What a URI leads to.

    Attributes:
        filesystem: of pyarrow; None for the disks of this machine.
        path: within the file system.
    """

    filesystem: Any
    path: str


def is_uri(text: str) -> bool:
    """Whether a text is a URI such as ``s3://bucket/folder``, not a local path."""
    return _URI.match(text) is not None


@contextmanager
def explained(what: str, kind: type[UserError] = RunDirectoryError, setting: str = "--out") -> Iterator[None]:
    """Turn an error of the disk or the store into one message.

    Args:
        what: what could not be done.
        kind: error to raise.
        setting: what the user can give another value, where the disk is at fault.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        cause, change = _reason(error)
        text = getattr(error, "strerror", None) or str(error)
        raise kind(f"{what}: {redact(text)}", cause, change.format(setting=setting)) from error


def _reason(error: Exception) -> tuple[str, str]:
    default = ("the disk or the store refuses", "check the path, its permissions and the space left")
    number = getattr(error, "errno", None) or 0
    named = (reason for word, reason in _STORE.items() if word in str(error))
    return _DISK.get(number) or next(named, default)


def refuse_secrets(uri: str, kind: type[UserError] = RunDirectoryError) -> None:
    """Refuse a URI that holds a secret: it would be written into spec.yaml and logs."""
    if has_credentials(uri) or (is_uri(uri) and _SECRET_QUERY.search(uri)):
        raise kind(
            f"the URI {_masked(uri)} holds a secret",
            "credentials are written into the address",
            "give them in the environment or in the store's own configuration",
        )


def open_uri(uri: str, kind: type[UserError] = RunDirectoryError) -> Opened:
    """Open the file system of a URI; nothing is read yet.

    Raises:
        UserError: of the given kind: the URI holds a secret, or no file system opens it.
    """
    refuse_secrets(uri, kind)
    try:
        filesystem, path = _from_uri(uri)
    except (OSError, ValueError, ImportError, NotImplementedError) as error:  # pyarrow's own errors derive from these
        raise kind(
            f"cannot open {redact(uri)}: {redact(str(error))}",
            "no file system of pyarrow has this scheme, a character that is not %-escaped, or no answer from the store",
            "give a local path, or a URI such as s3://bucket/folder",
        ) from error
    return Opened(None if isinstance(filesystem, fs.LocalFileSystem) else filesystem, path.rstrip("/"))


def child(root: str, name: str) -> str:
    """The path or URI of a file below a folder; characters that a URI cannot hold are escaped.

    Args:
        root: a local path or a URI, with its query where it has one.
        name: POSIX path relative to it, as it is.
    """
    if not is_uri(root):
        return f"{root.rstrip('/')}/{name}"
    folder, mark, query = root.partition("?")
    return f"{folder.rstrip('/')}/{quote(name)}{mark}{query}"


def is_object_store(filesystem: Any) -> bool:
    """Whether folders are only parts of names there, and a file appears whole when it is closed."""
    return filesystem.type_name in _OBJECT_STORES


def _from_uri(uri: str) -> tuple[Any, str]:
    """An S3 file that fits into one part is then sent by one request, instead of three."""
    if uri.startswith("s3://"):
        with suppress(ValueError):  # pyarrow knows this option since 21; other mistakes come again below
            sooner = f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"
            found: tuple[Any, str] = fs.FileSystem.from_uri(sooner)
            return found
    opened: tuple[Any, str] = fs.FileSystem.from_uri(uri)
    return opened


def _masked(uri: str) -> str:
    return redact(uri.partition("?")[0])
