"""One folder or file: clean images sent through a display, or degraded ones without truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from udc_ray import rng
from udc_ray.data import domains, simulate
from udc_ray.data.base import Sample
from udc_ray.data.canonical import DOMAINS, centre_crop, kind_of, mixed, read_canonical
from udc_ray.data.images import SUFFIXES, Kind, index_images, read_image
from udc_ray.errors import DataError
from udc_ray.hashing import file_sha256
from udc_ray.location import Folder, Place, RemoteFile, RemoteFolder


@dataclass(frozen=True, kw_only=True)
class SimulatedFolder:
    """Clean images behind a display; the whole image is degraded, then both are cropped.

    Attributes:
        files: clean image of every id.
        display: the display.
        seed: seed of the sensor noise, independent of the run's seed.
        size: edge of the centre crop, or None.
    """

    name: str
    image_ids: tuple[str, ...]
    domain: domains.Domain
    files: Mapping[str, Place]
    display: simulate.Display
    seed: int = 0
    size: int | None = None
    channels: int = 3
    has_truth: bool = True

    def load(self, image_id: str) -> Sample:
        """Degrade one image; the noise is keyed by seed, image id and display."""
        path = self.files[image_id]
        shot = _photograph(path, modified(path), image_id, self.display, self.seed)
        if shot.domain != self.domain:
            raise mixed(path, shot.kind)
        what = str(path)
        return Sample(
            image_id=image_id,
            degraded=centre_crop(shot.degraded, self.size, what).clone(),
            truth=centre_crop(shot.truth, self.size, what).clone(),
        )

    def places(self) -> list[Place]:
        """The files of its images."""
        return [self.files[i] for i in self.image_ids]

    def check(self, image_id: str) -> None:
        """Read one image without degrading it: the file, its kind and its size."""
        path = self.files[image_id]
        image, kind = read_image(path)
        if simulate.canonical_domain(self.display, kind == "linear") != self.domain:
            raise mixed(path, kind)
        centre_crop(image, self.size, str(path))

    def take(self, image_ids: tuple[str, ...]) -> SimulatedFolder:
        """The same data set with fewer images."""
        return replace(self, image_ids=image_ids)

    def file_hashes(self) -> dict[str, str]:
        """sha256 of every clean image, and of the PSF where it is a file."""
        hashes = {i: file_sha256(self.files[i]) for i in self.image_ids}
        if self.display.psf is not None:
            hashes["display:psf"] = file_sha256(simulate.psf_file(self.display.psf))
        return hashes


class _Shot(NamedTuple):
    degraded: Tensor
    truth: Tensor
    domain: domains.Domain
    kind: Kind


def modified(path: Place) -> int:
    """When a file was written, to key a cache; 0 where that is not known."""
    if isinstance(path, RemoteFile):
        return path.modified
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # reading it says what is wrong


@lru_cache(maxsize=32)
def _photograph(path: Place, modified: int, image_id: str, display: simulate.Display, seed: int) -> _Shot:
    """Degrade one whole image; `modified` only keys the cache."""
    image, kind = read_image(path)
    hdr = kind == "linear"
    linear = simulate.to_linear(image, display, hdr=hdr)
    domain = simulate.canonical_domain(display, hdr)
    generator = rng.generator(seed, image_id, f"simulate/{display.name}")
    truth = image if not hdr else domains.encode(linear, domain)  # a picture is its own truth, bit for bit
    return _Shot(simulate.degrade(linear, display, generator, hdr=hdr), truth, domain, kind)


@dataclass(frozen=True, kw_only=True)
class DegradedFolder:
    """Degraded images without truth (``--no-reference``)."""

    name: str
    image_ids: tuple[str, ...]
    channels: int
    domain: domains.Domain
    files: Mapping[str, Place]
    size: int | None = None
    has_truth: bool = False

    def load(self, image_id: str) -> Sample:
        """Read one image; its truth is None."""
        image = read_canonical(self.files[image_id], self.channels, self.domain)
        return Sample(image_id=image_id, degraded=centre_crop(image, self.size, str(self.files[image_id])), truth=None)

    def places(self) -> list[Place]:
        """The files of its images."""
        return [self.files[i] for i in self.image_ids]

    def check(self, image_id: str) -> None:
        """Read one image and drop it."""
        self.load(image_id)

    def take(self, image_ids: tuple[str, ...]) -> DegradedFolder:
        """The same data set with fewer images."""
        return replace(self, image_ids=image_ids)

    def file_hashes(self) -> dict[str, str]:
        """sha256 of every image."""
        return {i: file_sha256(self.files[i]) for i in self.image_ids}


def index_source(source: Folder | Place) -> dict[str, Place]:
    """Files of a folder by id, or of one file by its stem."""
    if isinstance(source, RemoteFolder) or (isinstance(source, Path) and source.is_dir()):
        return index_images(source)
    if isinstance(source, Path) and not source.exists():
        raise DataError(f"{source} does not exist", "a wrong path", "give a folder or an image file")
    if source.suffix.lower() not in SUFFIXES:
        raise DataError(f"{source} is no image", change=f"an image ends in {', '.join(sorted(SUFFIXES))}")
    return {source.stem: source}


def name_of(source: Folder | Place) -> str:
    """Name of a data set: that of the folder, or of the file without suffix."""
    alone = isinstance(source, RemoteFile) or (isinstance(source, Path) and source.is_file())
    return Path(source.name).stem if alone else source.name


def open_simulated(
    source: Folder | Place, display: simulate.Display, *, seed: int = 0, size: int | None = None
) -> SimulatedFolder:
    """Send the clean images of a folder, or one file, through a display."""
    files = index_source(source)
    hdr = kind_of(next(iter(files.values())), 3) == "linear"
    return SimulatedFolder(
        name=name_of(source),
        image_ids=tuple(files),
        domain=simulate.canonical_domain(display, hdr),
        files=files,
        display=display,
        seed=seed,
        size=size,
    )


def open_degraded(source: Folder | Place, channels: int = 3, size: int | None = None) -> DegradedFolder:
    """Open degraded images that have no truth."""
    return degraded_of(name_of(source), index_source(source), channels, size)


def degraded_of(name: str, files: Mapping[str, Place], channels: int, size: int | None) -> DegradedFolder:
    """Degraded images that have no truth, from files by id."""
    return DegradedFolder(
        name=name,
        image_ids=tuple(files),
        channels=channels,
        domain=DOMAINS[kind_of(next(iter(files.values())), channels)],
        files=files,
        size=size,
    )
