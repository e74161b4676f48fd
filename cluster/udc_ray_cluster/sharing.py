"""Whether every node of a connected cluster sees the same files: refused at the start, not found out at the end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from udc_ray.errors import UserError
from udc_ray.machine import missing_folders, remove_folders
from udc_ray.storage import Storage
from udc_ray_cluster.everywhere import ask_every_node

TIMEOUT_SECONDS = 120.0
"""How long the nodes may take to answer: a new worker process each, on nodes that may be busy."""
PATIENCE_SECONDS = 5.0
"""A network file system may show a new file late."""
SHOWN = 3
"""Nodes that a message names."""


class Unshared(NamedTuple):
    """A node that does not see what this process sees."""

    node: str
    reason: str


class Place(NamedTuple):
    """A file, a folder or a URI that a run reads; `size` in bytes for a file of this machine."""

    path: str
    size: int | None


def refuse_unshared(out: str, inputs: Sequence[str] = (), timeout: float = TIMEOUT_SECONDS) -> None:
    """Refuse a run whose nodes do not all see its output and its inputs.

    Args:
        out: where it writes: a path or a URI.
        inputs: what it reads: paths or URIs.
        timeout: seconds that the nodes have.

    Raises:
        UserError: with the first few nodes and their reasons.
    """
    _refuse(f"the nodes do not share {out}", unshared_nodes(out, timeout), "--out")
    if inputs:
        _refuse("not every node sees the files of the spec", nodes_without(inputs, timeout), "the files")


def unshared_nodes(path: str, timeout: float = TIMEOUT_SECONDS) -> list[Unshared]:
    """Write a random file below a path here and read it back on every other living node.

    The file, and folders that were made for it, are removed afterwards.

    Args:
        path: a local path, the same on every node, or a URI.
        timeout: seconds that the nodes have, all together.

    Returns:
        The nodes that do not see it, with the reason; empty where all is well.

    Raises:
        UserError: the path cannot be written from here.
    """
    storage = Storage(path)
    path = path if storage.folder is None else str(storage.folder)  # a node's working folder is another one
    name, content = f"sharing-{secrets.token_hex(8)}.probe", secrets.token_bytes(64)
    made = missing_folders(storage.folder)
    try:
        storage.write(name, content)
        found = _ask(_misses, (path, name, content), timeout)
    finally:
        storage.delete(name)
        remove_folders(made)
    return found


def nodes_without(paths: Sequence[str], timeout: float = TIMEOUT_SECONDS) -> list[Unshared]:
    """The other nodes on which one of these files, folders or URIs is missing, or is another file.

    Args:
        paths: local paths, the same on every node, or URIs.
        timeout: seconds that the nodes have, all together.
    """
    return _ask(_lacks, (tuple(_place(path) for path in paths),), timeout)


def first_lines(unshared: Sequence[Unshared]) -> str:
    """The first few nodes and their reasons, for a message."""
    listed = [f"{node}: {reason}" for node, reason in unshared[:SHOWN]]
    return "; ".join(listed) + (f"; and {len(unshared) - SHOWN} more" if len(unshared) > SHOWN else "")


def _refuse(what: str, unshared: Sequence[Unshared], setting: str) -> None:
    if unshared:
        raise UserError(
            f"{what}: {first_lines(unshared)}",
            "a local path that is not a shared disk, a mount that failed, or no credentials there",
            f"give {setting} on a disk that all nodes mount at the same path, or a URI such as s3://bucket/runs",
        )


def _ask(function: Callable[..., str], arguments: tuple[object, ...], timeout: float) -> list[Unshared]:
    answers = ask_every_node(function, arguments, timeout, but_here=True)
    return [Unshared(a.node, a.error or a.value) for a in answers if a.error or a.value]


def _place(path: str) -> Place:
    if Storage(path).folder is None:
        return Place(path, None)
    local = Path(path).expanduser().absolute()
    return Place(str(local), local.stat().st_size if local.is_file() else None)


def _misses(path: str, name: str, content: bytes) -> str:
    """Why this node does not see the file; empty where it does."""
    storage = Storage(path)
    end = time.monotonic() + PATIENCE_SECONDS
    while not storage.exists(name):
        if time.monotonic() > end:
            return f"{path} is another folder there" if storage.exists() else f"there is no {path} there"
        time.sleep(0.2)
    return "" if storage.read(name) == content else f"{path} holds another file of the same name there"


def _lacks(places: Sequence[Place]) -> str:
    """The first thing that this node does not have; empty where it has all."""
    for path, size in places:
        if not Storage(path).exists():
            return f"there is no {path} there"
        if size is not None and Path(path).stat().st_size != size:
            return f"{path} is another file there"
    return ""
