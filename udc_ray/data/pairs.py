"""Paired folders: degraded images and their truths, matched by path without suffix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from udc_ray.data.base import Sample
from udc_ray.data.canonical import DOMAINS, centre_crop, kind_of, read_canonical
from udc_ray.data.domains import Domain
from udc_ray.data.images import index_images
from udc_ray.errors import DataError
from udc_ray.hashing import file_sha256
from udc_ray.location import Folder, Place, RemoteFile, RemoteFolder

LAYOUTS = (("LQ", "HQ"), ("input", "GT"))
"""Names of the folders of degraded images and of truths; case does not matter."""


@dataclass(frozen=True, kw_only=True)
class FolderPairs:
    """A folder with ``LQ`` and ``HQ``, or ``input`` and ``GT``.

    Attributes:
        degraded: file of every degraded image, by id.
        truths: file of every truth, by the id of the degraded image.
        size: edge of the centre crop, or None.
        notes: what was left out, for the report.
    """

    name: str
    image_ids: tuple[str, ...]
    channels: int
    domain: Domain
    degraded: Mapping[str, Place]
    truths: Mapping[str, Place]
    size: int | None = None
    notes: tuple[str, ...] = ()
    has_truth: bool = True

    def load(self, image_id: str) -> Sample:
        """Read one pair; sizes that differ are refused."""
        degraded = read_canonical(self.degraded[image_id], self.channels, self.domain)
        truth = read_canonical(self.truths[image_id], self.channels, self.domain)
        if degraded.shape != truth.shape:
            sizes = " and ".join(f"{t.shape[1]} x {t.shape[2]}" for t in (degraded, truth))
            raise DataError(
                f"the sizes of the pair {image_id!r} differ: {sizes}",
                "a crop, a rotation or another scale on one side",
                f"mend {self.degraded[image_id]} or {self.truths[image_id]}",
            )
        return Sample(
            image_id=image_id,
            degraded=centre_crop(degraded, self.size, str(self.degraded[image_id])),
            truth=centre_crop(truth, self.size, str(self.truths[image_id])),
        )

    def places(self) -> list[Place]:
        """The files of its pairs."""
        return [table[i] for i in self.image_ids for table in (self.degraded, self.truths)]

    def check(self, image_id: str) -> None:
        """Read one pair and drop it."""
        self.load(image_id)

    def take(self, image_ids: tuple[str, ...]) -> FolderPairs:
        """The same pairs, fewer of them."""
        return replace(self, image_ids=image_ids)

    def file_hashes(self) -> dict[str, str]:
        """sha256 of both files of every pair."""
        files = {i: self.degraded[i] for i in self.image_ids} | {f"{i}:truth": self.truths[i] for i in self.image_ids}
        return {key: file_sha256(path) for key, path in files.items()}


def find_pair(folder: Folder | Place) -> tuple[Folder, Folder] | None:
    """The folders of degraded images and truths in `folder`, or None where it is no pair, or a file."""
    table = {name.lower(): inside for name, inside in _folders(folder).items()}
    found = [(table[a.lower()], table[b.lower()]) for a, b in LAYOUTS if a.lower() in table and b.lower() in table]
    if len(found) > 1:
        raise DataError(
            f"{folder} holds both LQ/HQ and input/GT", "two data sets in one folder", "move one pair elsewhere"
        )
    return found[0] if found else None


def _folders(folder: Folder | Place) -> Mapping[str, Folder]:
    if isinstance(folder, RemoteFolder):
        return folder.folders()
    if isinstance(folder, RemoteFile) or folder.is_file():
        return {}
    try:
        return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}", change="check its permissions") from error


def _truth_of(image_id: str, truths: Mapping[str, Place]) -> Place | None:
    """Truth of a degraded image: the same path, else the path less its leading folders.

    The SYNTH data set stores ``input/ZTE_new_5/test/a.npy`` against ``GT/test/a.npy``.
    """
    parts = image_id.split("/")
    candidates = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((truths[c] for c in candidates if c in truths), None)


def open_pairs(folder: Folder | Place, channels: int = 3, size: int | None = None) -> FolderPairs:
    """Open a paired folder.

    Raises:
        DataError: no pair, an empty folder, equal ids, or degraded images without truth.
    """
    found = find_pair(folder)
    if found is None:
        raise DataError(f"{folder} holds no pair", change="it needs the folders LQ and HQ, or input and GT")
    degraded, all_truths = index_images(found[0]), index_images(found[1])
    matched = {i: _truth_of(i, all_truths) for i in degraded}
    lonely = [f"{found[0].name}/{i}{degraded[i].suffix}" for i, truth in matched.items() if truth is None]
    if lonely:
        shown = ", ".join(lonely[:3]) + (", ..." if len(lonely) > 3 else "")
        raise DataError(
            f"{len(lonely)} of {len(degraded)} degraded images have no truth in {found[1]}: {shown}",
            "the names differ: pairs are matched by the path without suffix",
            "rename the files, remove those without truth, or use --no-reference",
        )
    truths = {i: truth for i, truth in matched.items() if truth is not None}
    extra = len(set(all_truths.values()) - set(truths.values()))
    return FolderPairs(
        name=folder.name,
        image_ids=tuple(degraded),
        channels=channels,
        domain=DOMAINS[kind_of(next(iter(degraded.values())), channels)],
        degraded=degraded,
        truths=truths,
        size=size,
        notes=(f"{extra} truths without degraded image left out",) if extra else (),
    )
