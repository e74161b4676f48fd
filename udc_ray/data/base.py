"""Data sets: stable image ids, loaded on demand, hashed for the fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from udc_ray.data.domains import Domain


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image, and what a model should make of it.

    Attributes:
        image_id: its id.
        degraded: what the model gets, C x H x W float32 in [0, 1], canonical domain.
        truth: what it should answer: an image of the same shape and range, or the class of a labelled image
            as an int64 tensor without axes; None where it is not known.
    """

    image_id: str
    degraded: Tensor
    truth: Tensor | None


class Dataset(Protocol):
    """Images to evaluate on; picklable and small, as it travels to the hosts.

    Attributes:
        name: name in reports.
        image_ids: stable ids in order: POSIX path without suffix, relative to the folder of the
            degraded images for pairs, to the given folder otherwise, the stem for one file.
        channels: 3 or 4.
        domain: canonical domain of the images.
        has_truth: whether the samples say what a model should make of them; False with ``--no-reference``.
    """

    @property
    def name(self) -> str: ...
    @property
    def image_ids(self) -> tuple[str, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def domain(self) -> Domain: ...
    @property
    def has_truth(self) -> bool: ...

    def load(self, image_id: str) -> Sample:
        """Read one image."""
        ...

    def take(self, image_ids: tuple[str, ...]) -> Dataset:
        """The same data set with fewer images."""
        ...

    def file_hashes(self) -> dict[str, str]:
        """sha256 of every image file, by id (``id:truth`` for truths)."""
        ...
