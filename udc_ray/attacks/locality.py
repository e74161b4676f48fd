"""How far a change of the input reaches in the output: the probes, and the margin that follows.

A probe sets one tile of the untouched image to +-eps, whichever has more room in the box. The
squared change of the output is summed by distance from the tile, over `PROBES` probes in
different quarters of the image; the margin is the smallest distance that holds `SHARE` of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from udc_ray.attacks.tiles import cell_count

PROBES = 4
"""Charged queries, one tile each."""
SHARE = 0.95
"""Share of the squared output change that has to lie within the margin."""


def probe_corner(rng: np.random.Generator, number: int, height: int, width: int, tile: int) -> tuple[int, int]:
    """Top and left of the tile of probe `number`, at a uniform place of its quarter of the image."""
    down, right = divmod(number % 4, 2)
    return _within(rng, down, height, tile), _within(rng, right, width, tile)


def distances(height: int, width: int, cell: int, tile: int, corner: tuple[int, int]) -> NDArray[np.int64]:
    """Cells between every cell and the tile, 0 where it lies (the larger of rows and columns); a map of cells."""
    rows = _gaps(cell_count(height, cell), corner[0] // cell, (corner[0] + tile - 1) // cell)
    columns = _gaps(cell_count(width, cell), corner[1] // cell, (corner[1] + tile - 1) // cell)
    return np.maximum(rows[:, None], columns[None, :])


def profile(change: NDArray[np.float64], away: NDArray[np.int64], length: int) -> NDArray[np.float64]:
    """Squared output change summed by distance in cells, `length` values; `away` is less than that."""
    return np.bincount(away.ravel(), change.ravel(), length).astype(np.float64)


def holding_margin(by_distance: NDArray[np.float64], cell: int) -> int | None:
    """Smallest margin in pixels, at least one cell, that holds the share; None where nothing changed or is finite."""
    total = by_distance.sum()
    if not (np.isfinite(total) and total > 0):
        return None
    return max(int(np.argmax(np.cumsum(by_distance) >= SHARE * total)), 1) * cell


def _within(rng: np.random.Generator, half: int, length: int, tile: int) -> int:
    """Start of the tile along one side, in the first or the second half of the places it can have."""
    places = length - tile + 1
    low, high = (0, -(-places // 2)) if half == 0 else (places // 2, places)
    return int(rng.integers(low, high))


def _gaps(count: int, first: int, last: int) -> NDArray[np.int64]:
    """Distance in cells of every cell along one side to the cells from `first` to `last`."""
    cells = np.arange(count)
    return np.maximum(np.maximum(first - cells, cells - last), 0)
