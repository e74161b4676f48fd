"""What travels with a job: our own code, and the files of the spec that the cluster cannot see.

A path may be a URI or lie in a folder that the nodes share: then it stays as it is. A file that is
only here travels: straight to the storage root where that is a URI which this machine can write,
else inside the job's working directory, up to a size limit; the driver checks its hash and puts it
under the storage root, so that a resume finds it. A path that is not here is taken for one of the
cluster's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udc_ray.errors import UserError
from udc_ray.hashing import file_sha256
from udc_ray.storage import Storage
from udc_ray.stores import child, is_uri

PACKAGES = ("udc_ray", "udc_ray_cluster", "udc_ray_cli")
EXCLUDES = ("**/__pycache__", "**/*.pyc")
UPLOAD_BYTES = 200 * 1024**2
"""Uploads pass through the memory of the head; anything larger belongs on the storage."""
UPLOADED = "udc-upload://"
"""Begin of a path in a request whose file came with the job: ``udc-upload://DIGEST/NAME``."""
INPUTS = "inputs"


def own_code() -> list[str]:
    """Folders of the three packages, to be shipped as ``py_modules``."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    found = {name: list(spec.submodule_search_locations or ()) if spec else [] for name, spec in specs.items()}
    missing = [name for name, folders in found.items() if not folders]
    if missing:
        raise UserError(f"{missing[0]} is not installed", "an incomplete installation", "install udc-ray again")
    return [folders[0] for folders in found.values()]


@dataclass(frozen=True)
class Freight:
    """Puts what must travel into the working directory of a job.

    Attributes:
        folder: the working directory; it belongs to this freight.
        root: storage root that the client knows, or None.
        shared: folders that are the same on every node.
    """

    folder: Path
    root: str | None
    shared: tuple[str, ...] = ()

    def place(self, path: str) -> str:
        """Where the cluster will find what is at this path here."""
        here = Path(path)
        if is_uri(path) or not here.exists() or self._is_shared(here):
            return path
        if not any(files_of(here)):
            raise UserError(f"{path} holds no files", "an empty folder, or hidden files only", "check the path")
        digest = content_digest(here)
        if self.root is not None and is_uri(self.root):
            return deposit(here, digest, self.root)
        _stage(here, self.folder / INPUTS / digest / here.name)
        return f"{UPLOADED}{digest}/{here.name}"

    def take_code(self, model: str) -> None:
        """Take the user's own package along that a model ``package.module:factory`` comes from.

        Installed packages stay here: the cluster has to have them.
        """
        module, colon, _ = model.partition(":")
        if not colon or is_uri(model):
            return
        source = _source_of(module.partition(".")[0])
        if source is not None:
            _stage(source, self.folder / source.name)

    def check_size(self) -> None:
        """Refuse what is too large to go through the head.

        Raises:
            UserError: the files are larger than `UPLOAD_BYTES`.
        """
        total = sum(path.stat().st_size for path in files_of(self.folder))
        if total > UPLOAD_BYTES:
            largest = max(files_of(self.folder), key=lambda path: path.stat().st_size)
            raise UserError(
                f"{total / 1024**2:.0f} MB would have to be uploaded, {largest.name} among them; "
                f"the limit is {UPLOAD_BYTES / 1024**2:.0f} MB",
                "uploads pass through the memory of the head node",
                "put data and weights where the cluster opens them and give that URI (s3://...), set "
                "UDC_RAY_STORAGE to such a URI, or name a folder that all nodes share with --shared FOLDER",
            )

    def _is_shared(self, path: Path) -> bool:
        roots = [*self.shared, *([self.root] if self.root is not None and not is_uri(self.root) else [])]
        return any(path.absolute().is_relative_to(Path(root).absolute()) for root in roots)


def settle(path: str, folder: Path, root: str) -> str:
    """On the cluster: the lasting place of a path of the request.

    Args:
        path: a path as `Freight.place` gave it.
        folder: the job's working directory.
        root: the storage root.

    Raises:
        UserError: the upload is not what was sent.
    """
    if not path.startswith(UPLOADED):
        return path
    digest, _, name = path.removeprefix(UPLOADED).partition("/")
    source = folder / INPUTS / digest / name
    if not source.exists() or content_digest(source) != digest:
        raise UserError(
            f"the upload of {name} is not complete",
            "a connection that broke, or a file that changed while it was sent",
            "give the command again",
        )
    return deposit(source, digest, root)


def deposit(source: Path, digest: str, root: str) -> str:
    """Put a file or folder under the storage root, once; its name says its content.

    Returns:
        Its path or URI there.
    """
    storage, mark = Storage(root), f"{INPUTS}/{digest}.complete"
    folder = f"{INPUTS}/{digest}/{source.name}"
    if not storage.exists(mark):
        for file in files_of(source):
            name = folder if source.is_file() else f"{folder}/{file.relative_to(source).as_posix()}"
            storage.write(name, file.read_bytes())
        storage.write(mark, b"")  # last: what was cut short is sent again
    return child(root, folder)


def content_digest(path: Path) -> str:
    """Hash of a file, or of the names and contents of a folder."""
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(f"{file.relative_to(path).as_posix()}|{file_sha256(file)}|".encode())
    return digest.hexdigest()[:24]


def files_of(path: Path) -> Iterator[Path]:
    """The files at or below a path, sorted; hidden ones and caches are left out."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if file.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in parts):
            yield file


def _stage(source: Path, target: Path) -> None:
    """Copy a file or folder; as links where the disk is the same."""
    for file in files_of(source):
        to = target if source.is_file() else target / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
        shutil.copyfile(file, temporary)
        os.replace(temporary, to)


def _source_of(package: str) -> Path | None:
    """File or folder of a package that is not installed; None where the cluster has to have it."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as the loader of models does
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or package in PACKAGES:
        return None
    found = next(iter(spec.submodule_search_locations or ()), spec.origin)
    installed = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    if found is None or not Path(found).exists() or any(Path(found).is_relative_to(place) for place in installed):
        return None
    return Path(found)
