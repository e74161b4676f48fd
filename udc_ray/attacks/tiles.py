"""Geometry of attacks that test many patches with one query: cells, patches with margins, colours.

Everything is a multiple of a cell, the square of pixels over which the host sums squared
differences. A patch is what changes; its neighbourhood, the patch with its margin, is what it is
judged by. Patches that move together have neighbourhoods that do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PATCHES = 4
"""Fewest whole neighbourhoods that must fit side by side, else testing in parallel gains nothing."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes in pixels, multiples of `cell`: the side of a patch, and the margin around it."""

    cell: int
    tile: int
    margin: int

    @property
    def pitch(self) -> int:
        """Closest distance from patch to patch at which neighbourhoods do not overlap."""
        return self.tile + 2 * self.margin

    @property
    def colours(self) -> int:
        """Colours a side: with tiles edge to edge, those of one colour are so many tiles apart."""
        return -(-self.pitch // self.tile)

    def fits(self, height: int, width: int) -> bool:
        """Whether at least `PATCHES` whole neighbourhoods have room in the image."""
        return (height // self.pitch) * (width // self.pitch) >= PATCHES


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Rows and columns of pixels that change, and of cells by which the change is judged."""

    rows: slice
    columns: slice
    near_rows: slice
    near_columns: slice

    @property
    def pixels(self) -> tuple[slice, slice, slice]:
        """Index into C x H x W."""
        return slice(None), self.rows, self.columns

    @property
    def near(self) -> tuple[slice, slice]:
        """Index into the cells."""
        return self.near_rows, self.near_columns


def lattice(height: int, width: int, layout: Layout, *, row: int, column: int, pitch: int | None = None) -> list[Patch]:
    """All patches of a lattice that touch the image, cut at its border.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        layout: sizes.
        row: top of any patch, a multiple of the cell.
        column: left of any patch, likewise.
        pitch: distance from patch to patch, the layout's closest unless given.
    """
    apart = layout.pitch if pitch is None else pitch
    rows = _along(height, layout, row, apart)
    columns = _along(width, layout, column, apart)
    return [
        Patch(rows=r, columns=c, near_rows=near_r, near_columns=near_c) for r, near_r in rows for c, near_c in columns
    ]


def local_sums(sums: NDArray[np.float64], patches: Sequence[Patch]) -> NDArray[np.float64]:
    """Sum over the neighbourhood of every patch, of a map of cells."""
    return np.array([sums[patch.near].sum() for patch in patches])


def cell_count(length: int, cell: int) -> int:
    """Cells along a side; the last may be smaller."""
    return -(-length // cell)


def _along(length: int, layout: Layout, start: int, pitch: int) -> list[tuple[slice, slice]]:
    """Pixels and cells of the patches along one side."""
    last = cell_count(length, layout.cell)
    found = []
    for first in range(start % pitch - pitch, length, pitch):
        low, high = max(first, 0), min(first + layout.tile, length)
        if low < high:
            near_low = max(first - layout.margin, 0) // layout.cell
            near_high = min((first + layout.tile + layout.margin) // layout.cell, last)
            found.append((slice(low, high), slice(near_low, near_high)))
    return found
