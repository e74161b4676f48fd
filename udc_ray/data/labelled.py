"""Labelled images for classifiers: one .npz file with the images ``x`` and their classes ``y``."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from udc_ray.data.arrays import read_member
from udc_ray.data.base import Sample
from udc_ray.data.canonical import centre_crop
from udc_ray.data.domains import Domain
from udc_ray.data.folder import modified, name_of
from udc_ray.data.images import read_bytes
from udc_ray.errors import DataError, UserError
from udc_ray.hashing import file_sha256
from udc_ray.location import Folder, Place, RemoteFolder, local

IMAGES, LABELS = "x", "y"
DIGITS = 4
"""Digits of an id at least, so that the ids of a file stay as they are while it grows to 10,000 images."""


class Arrays(NamedTuple):
    """What a file holds.

    Attributes:
        x_NHWC: images, uint8.
        y_N: classes, int64, counted from 0.
    """

    x_NHWC: NDArray[np.uint8]
    y_N: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with a class each; ids are their places in the file, counted from 0 and padded with zeros.

    Attributes:
        file: the .npz file.
        size: edge of the centre crop, or None.
    """

    name: str
    image_ids: tuple[str, ...]
    file: Place
    size: int | None = None
    channels: int = 3
    domain: Domain = "srgb"
    has_truth: bool = True

    def load(self, image_id: str) -> Sample:
        """One image; its truth is its class, an int64 tensor without axes."""
        arrays, number = read_labelled(self.file, modified(self.file)), int(image_id)
        image = torch.from_numpy(np.ascontiguousarray(arrays.x_NHWC[number].transpose(2, 0, 1))).float() / 255
        label = torch.tensor(int(arrays.y_N[number]), dtype=torch.int64)
        return Sample(image_id=image_id, degraded=centre_crop(image, self.size, f"image {image_id}"), truth=label)

    def places(self) -> list[Place]:
        """The file."""
        return [self.file]

    def check(self, image_id: str) -> None:
        """Read one image and drop it."""
        self.load(image_id)

    def take(self, image_ids: tuple[str, ...]) -> LabelledImages:
        """The same data set with fewer images."""
        return replace(self, image_ids=image_ids)

    def file_hashes(self) -> dict[str, str]:
        """sha256 of the file, which holds images and classes."""
        return {"labelled": file_sha256(self.file)}


def is_labelled(source: Folder | Place) -> bool:
    """Whether a source is a .npz file with the arrays ``x`` and ``y``."""
    if isinstance(source, RemoteFolder) or source.suffix.lower() != ".npz":
        return False
    try:
        with zipfile.ZipFile(local(source)) as archive:
            return {f"{IMAGES}.npy", f"{LABELS}.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile, UserError):
        return False  # who reads it as an image is told why it cannot be read


def open_labelled(file: Place, size: int | None = None) -> LabelledImages:
    """Open a file of labelled images.

    Raises:
        DataError: it cannot be read, or its arrays are not of the right kind.
    """
    count = len(read_labelled(file, modified(file)).y_N)
    digits = max(DIGITS, len(str(count - 1)))
    ids = tuple(f"{number:0{digits}d}" for number in range(count))
    return LabelledImages(name=name_of(file), image_ids=ids, file=file, size=size)


@lru_cache(maxsize=2)
def read_labelled(file: Place, modified: int) -> Arrays:
    """Read a whole file; `modified` only keys the cache.

    Raises:
        DataError: with what is wrong.
    """
    try:
        content = read_bytes(file)
        images, labels = read_member(content, IMAGES), read_member(content, LABELS)
        wrong = _what_is_wrong(images, labels)
        if wrong:
            raise ValueError(wrong)
    except DataError:
        raise
    except Exception as error:  # decoders raise all sorts of things on foreign bytes; each is the file's fault
        raise DataError(
            f"cannot use the labelled images {file}: {error or type(error).__name__}",
            "the file is damaged, or was saved in another form",
            "save it as numpy.savez(file, x=images, y=classes): uint8 N x H x W x 3, and N whole numbers from 0",
        ) from error
    images.setflags(write=False)
    return Arrays(images, labels.astype(np.int64))


def _what_is_wrong(images: NDArray[Any], labels: NDArray[Any]) -> str:
    """The first thing in which two arrays are no labelled images; empty where they are."""
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        return f"x has the shape {images.shape}, where N x H x W x 3 is wanted"
    if images.dtype != np.uint8:
        return f"x is of type {images.dtype}, where uint8 is wanted"
    if labels.shape != images.shape[:1]:
        return f"y has the shape {labels.shape}, where {images.shape[:1]} is wanted: one class for each image"
    if labels.dtype.kind not in "iu":
        return f"y is of type {labels.dtype}, where whole numbers are wanted"
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        return f"y reaches from {labels.min()} to {labels.max()}: classes are counted from 0"
    return ""
