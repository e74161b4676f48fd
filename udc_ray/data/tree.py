"""What lies in a folder, here or in a store, by listing alone; no file is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from udc_ray.errors import DataError
from udc_ray.location import Folder, Place, RemoteFile, RemoteFolder

DEPTH = 3
"""Folders below the given one that are looked through: ``Test/Poled/LQ_patch`` is the deepest layout known."""


def is_folder(source: Folder | Place) -> bool:
    """Whether a source is a folder; a path that leads nowhere is none."""
    if isinstance(source, Path):
        return source.is_dir()
    return isinstance(source, RemoteFolder)


def subfolders(folder: Folder | Place) -> Mapping[str, Folder]:
    """The folders directly in a folder, by name, sorted; a file has none."""
    if isinstance(folder, RemoteFolder):
        return folder.folders()
    if isinstance(folder, RemoteFile) or folder.is_file():
        return {}
    return {p.name: p for p in _inside(folder) if p.is_dir()}


def files_in(folder: Folder) -> dict[str, Place]:
    """The files directly in a folder, by name, sorted; hidden ones are left out."""
    if isinstance(folder, RemoteFolder):
        found: dict[str, Place] = {path: file for path, file in folder.files.items() if "/" not in path}
    else:
        found = {p.name: p for p in _inside(folder) if not p.is_dir()}
    return {name: place for name, place in found.items() if not name.startswith(".")}


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}", change="check its permissions") from error


def descend(folder: Folder | Place, *names: str) -> Folder | None:
    """The folder that a chain of names leads to, whatever their case; None where there is none."""
    here: Folder | Place = folder
    for name in names:
        table = {key.lower(): inside for key, inside in subfolders(here).items()}
        if name.lower() not in table:
            return None
        here = table[name.lower()]
    return here if is_folder(here) and not isinstance(here, RemoteFile) else None


def walk(folder: Folder | Place, depth: int = DEPTH) -> Iterator[tuple[str, Folder]]:
    """A folder and those below it, each once, with their POSIX paths relative to it; links may lead round."""
    if not isinstance(folder, RemoteFile) and is_folder(folder):
        yield from _walk(folder, "", depth, set())


def _walk(folder: Folder, prefix: str, depth: int, seen: set[tuple[int, int]]) -> Iterator[tuple[str, Folder]]:
    if isinstance(folder, Path):
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
    yield prefix, folder
    for name, inside in subfolders(folder).items() if depth else ():
        if not name.startswith("."):
            yield from _walk(inside, f"{prefix}/{name}" if prefix else name, depth - 1, seen)
