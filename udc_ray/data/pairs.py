"""Paired folders: degraded images and their truths, matched by path without suffix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from udc_ray.data.base import Sample
from udc_ray.data.canonical import DOMAINS, centre_crop, kind_of, read_canonical
from udc_ray.data.domains import Domain
from udc_ray.data.parts import Matched, Part, find_pair, match
from udc_ray.errors import DataError
from udc_ray.hashing import file_sha256
from udc_ray.location import Folder, Place


@dataclass(frozen=True, kw_only=True)
class FolderPairs:
    """A folder with ``LQ`` and ``HQ``, or ``input`` and ``GT``; or several of them.

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


def open_pairs(folder: Folder | Place, channels: int = 3, size: int | None = None) -> FolderPairs:
    """Open a paired folder.

    Raises:
        DataError: no pair, an empty folder, equal ids, or degraded images without truth.
    """
    found = find_pair(folder)
    if found is None:
        raise DataError(f"{folder} holds no pair", change="it needs the folders LQ and HQ, or input and GT")
    matched = match([Part(prefix="", degraded=found[0], truth=found[1])])
    return open_matched(folder, matched, channels, size)


def open_matched(folder: Folder | Place, matched: Matched, channels: int, size: int | None = None) -> FolderPairs:
    """Open images that have been matched with their truths.

    Raises:
        DataError: degraded images without truth; the message names the files of both sides that are alone.
    """
    if matched.lonely:
        alone = f"; {len(matched.extra)} truths are alone too: {shown(matched.extra)}" if matched.extra else ""
        raise DataError(
            f"{len(matched.lonely)} of {len(matched.degraded)} degraded images have no truth in {matched.searched}: "
            f"{shown(matched.lonely)}{alone}",
            "the names differ: pairs are matched by the path without suffix",
            "rename the files, remove those without truth, or use --no-reference; udc-ray check-data lists them all",
        )
    extra = len(matched.extra)
    return FolderPairs(
        name=folder.name,
        image_ids=tuple(matched.degraded),
        channels=channels,
        domain=DOMAINS[kind_of(next(iter(matched.degraded.values())), channels)],
        degraded=matched.degraded,
        truths=matched.truths,
        size=size,
        notes=(f"{extra} truths without degraded image left out",) if extra else (),
    )


def shown(paths: tuple[str, ...], most: int = 3) -> str:
    """The first few of many."""
    return ", ".join(paths[:most]) + (", ..." if len(paths) > most else "")
