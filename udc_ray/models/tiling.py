"""Large images in overlapping tiles, for networks whose result at a pixel depends on its surroundings only."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from udc_ray.errors import SpecError


def tiled(restore: Callable[[Tensor], Tensor], x_BCHW: Tensor, tile: int, overlap: int) -> Tensor:
    """Restore an image tile by tile; every pixel comes from the tile that it lies deepest in.

    With an overlap of twice the network's receptive radius, the result is that of the whole image but near its border
    rounding. Gradients flow.

    Args:
        restore: B x C x h x w to the same shape.
        x_BCHW: the image.
        tile: edge of a tile in px.
        overlap: px that neighbouring tiles share, less than `tile`.
    """
    if not 0 <= overlap < tile:
        raise SpecError(f"tiles of {tile} px cannot overlap by {overlap} px", change="give an overlap below the tile")
    height, width = x_BCHW.shape[-2:]
    rows = []
    for top, (row_from, row_to) in _cover(height, tile, overlap):
        parts = []
        for left, (column_from, column_to) in _cover(width, tile, overlap):
            restored = restore(x_BCHW[..., top : top + tile, left : left + tile])
            parts.append(restored[..., row_from - top : row_to - top, column_from - left : column_to - left])
        rows.append(torch.cat(parts, dim=-1))
    return torch.cat(rows, dim=-2)


def _cover(length: int, tile: int, overlap: int) -> list[tuple[int, tuple[int, int]]]:
    """Starts of the tiles along one side, each with the span that is taken from it."""
    if length <= tile:
        return [(0, (0, length))]
    starts = list(range(0, length - tile, tile - overlap)) + [length - tile]
    borders = [0, *((first + tile + second) // 2 for first, second in pairwise(starts)), length]
    return list(zip(starts, pairwise(borders), strict=True))
