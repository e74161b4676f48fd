"""Images as a target receives them that takes 8 or 16 bits: the ball of an attack lies around what is really sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from udc_ray.data.base import Dataset, Sample
from udc_ray.data.domains import Domain


@dataclass(frozen=True)
class Gridded:
    """A data set whose degraded images are rounded to a number of bits; truths stay as they are.

    Attributes:
        inner: the data set.
        bits: 8 or 16.
    """

    inner: Dataset
    bits: int

    @property
    def name(self) -> str:
        """See `Dataset`."""
        return self.inner.name

    @property
    def image_ids(self) -> tuple[str, ...]:
        """See `Dataset`."""
        return self.inner.image_ids

    @property
    def channels(self) -> int:
        """See `Dataset`."""
        return self.inner.channels

    @property
    def domain(self) -> Domain:
        """See `Dataset`."""
        return self.inner.domain

    @property
    def has_truth(self) -> bool:
        """See `Dataset`."""
        return self.inner.has_truth

    def load(self, image_id: str) -> Sample:
        """See `Dataset`."""
        sample, levels = self.inner.load(image_id), 2**self.bits - 1
        rounded = (sample.degraded.double() * levels).round().div(levels).to(torch.float32)
        return replace(sample, degraded=rounded)

    def take(self, image_ids: tuple[str, ...]) -> Gridded:
        """See `Dataset`."""
        return Gridded(self.inner.take(image_ids), self.bits)

    def file_hashes(self) -> dict[str, str]:
        """See `Dataset`."""
        return self.inner.file_hashes()
