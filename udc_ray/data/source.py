"""What was given as data, and what lies there: looked up once, for whoever has to recognise or open it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from udc_ray.data import parts, synth, tree
from udc_ray.data.entries import PathParams
from udc_ray.data.folder import index_source
from udc_ray.data.images import ARRAYS
from udc_ray.data.pairs import shown
from udc_ray.data.stacks import mat_files
from udc_ray.data.stored import Stored, read_stored
from udc_ray.errors import DataError
from udc_ray.location import Folder, Place, RemoteFile, is_uri, look


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder or file, and the parameters of the data entry.

    Attributes:
        where: what was given.
        params: the data entry's.
    """

    where: Folder | Place
    params: PathParams

    @cached_property
    def parts(self) -> tuple[parts.Part, ...]:
        """Pairs of folders in it, or the one that the parameters name."""
        if self.params.degraded is None and self.params.truth is None:
            return parts.find_parts(tree.descend(self.where, "synthetic_data") or self.where)
        return (parts.Part(prefix="", degraded=self._named(self.params.degraded), truth=self._named_truth()),)

    def _named_truth(self) -> Folder | None:
        if self.params.truth is not None:
            return self._named(self.params.truth)
        if not self.params.reference:
            return None
        raise DataError(f"{self.params.degraded} has no truths", "data.degraded was given alone", "give data.truth too")

    def _named(self, name: str | None) -> Folder:
        """A folder by its path relative to what was given, an absolute path, or a URI."""
        found: Folder | Place | None
        if name is None:
            found = self.where
        elif is_uri(name):
            found = look(name)
        elif isinstance(self.where, Path):
            found = self.where / Path(name).expanduser()
        else:
            found = tree.descend(self.where, *name.strip("/").split("/"))
        if found is None or isinstance(found, RemoteFile) or not tree.is_folder(found):
            raise DataError(f"there is no folder {name or self.where} in {self.where}", change="check its path")
        return found

    @cached_property
    def stacks(self) -> dict[str, Place]:
        """The .mat files in it."""
        return mat_files(self.where)

    @cached_property
    def files(self) -> dict[str, Place]:
        """All image files in it, by id; none where two share an id, which is told when they are opened."""
        try:
            return index_source(self.where)
        except DataError:
            return {}

    @cached_property
    def first(self) -> Stored | None:
        """Header of the first degraded image, or of the first image; None where there is none to read.

        A picture in a store is not fetched for it: it is RGB whatever its header says.
        """
        folder = self.parts[0].degraded if self.parts else synth.truths_of(self.where)
        try:
            files = self.files if folder is None else index_source(folder)
        except DataError:
            return None
        file = next(iter(files.values()), None)
        if isinstance(file, RemoteFile) and file.suffix.lower() not in ARRAYS:
            return None
        return None if file is None else read_stored(file)

    def pairs(self, *names: str) -> str:
        """Which pairs have a folder of degraded images of one of these names (in lower case); empty where none."""
        found = [p for p in self.parts if p.truth is not None and p.degraded.name.lower() in names]
        if not found:
            return ""
        both = f"{found[0].degraded.name} and {found[0].truth.name if found[0].truth is not None else ''}"
        return both + (f" in {shown(tuple(p.prefix for p in found), 6)}" if found[0].prefix else "")


def find_source(name: str) -> Folder | Place:
    """What a path or URI names; a path that leads nowhere is refused."""
    try:
        found = look(name) if is_uri(name) else Path(name).expanduser().absolute()  # workers have another directory
        if not isinstance(found, Path) or found.exists():
            return found
    except (OSError, RuntimeError) as error:  # a name too long, no permission, ~user without a home
        raise DataError(f"cannot look up the data {name!r}: {error}", "a wrong path", "check the path") from error
    raise DataError(f"there is no data {name!r}", "a wrong path", "give 'shipped', or a folder, an image or a URI")
