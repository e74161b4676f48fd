"""Micro-batches of one fixed shape: empty slots are filled with copies, images never resized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Images in exactly `slots` places; the first `count` are real.

    Attributes:
        image_ids: one a slot.
        x_BCHW: one image a slot.
        count: number of real images; results beyond it are thrown away.
        where: positions of the real images in the caller's sequence.
    """

    image_ids: tuple[str, ...]
    x_BCHW: Tensor
    count: int
    where: tuple[int, ...]


def stack(images: Sequence[Tensor], slots: int) -> Tensor:
    """Images of one shape in `slots` places, the first image repeated in the empty ones."""
    return torch.stack([*images, *(images[0] for _ in range(slots - len(images)))])


def micro_batches(image_ids: Sequence[str], images: Sequence[Tensor], slots: int) -> Iterator[MicroBatch]:
    """Cut images into micro-batches; one micro-batch holds images of one H x W."""
    by_shape: dict[torch.Size, list[int]] = {}
    for position, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(position)
    for positions in by_shape.values():
        for start in range(0, len(positions), slots):
            where = positions[start : start + slots]
            padded = [*where, *(where[0] for _ in range(slots - len(where)))]
            yield MicroBatch(
                image_ids=tuple(image_ids[p] for p in padded),
                x_BCHW=stack([images[p] for p in where], slots),
                count=len(where),
                where=tuple(where),
            )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One micro-batch of draws of images; rows beyond `count` repeat the first one and are thrown away."""

    images: list[int]
    draws: list[int]
    count: int


def packed(images: int, draws: int, slots: int) -> Iterator[Rows]:
    """All draws of all images in full micro-batches of `slots` rows; only the last one can have empty slots.

    An image's draws come in their order, so that sums over them do not depend on the batch.
    """
    pairs = [(image, draw) for draw in range(draws) for image in range(images)]
    for start in range(0, len(pairs), slots):
        real = pairs[start : start + slots]
        filled = [*real, *(real[0] for _ in range(slots - len(real)))]
        yield Rows(images=[i for i, _ in filled], draws=[d for _, d in filled], count=len(real))
