"""Cells, patches with margins, and colours: nothing overlaps, everything is covered."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from udc_ray.attacks.tiles import PATCHES, Layout, Patch, cell_count, lattice, local_sums


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, Layout]:
    cell = draw(st.integers(1, 5))
    tile, margin = cell * draw(st.integers(1, 6)), cell * draw(st.integers(0, 4))
    return draw(st.integers(1, 70)), draw(st.integers(1, 70)), Layout(cell=cell, tile=tile, margin=margin)


def cells_of(patches: list[Patch], height: int, width: int, cell: int) -> np.ndarray:
    """How many neighbourhoods every cell lies in."""
    count = np.zeros((cell_count(height, cell), cell_count(width, cell)), dtype=int)
    for patch in patches:
        count[patch.near] += 1
    return count


@settings(max_examples=150, deadline=None)
@given(layouts(), st.integers(0, 40), st.integers(0, 40))
def test_neighbourhoods_never_overlap_and_hold_their_patch(
    case: tuple[int, int, Layout], row: int, column: int
) -> None:
    height, width, layout = case
    cell = layout.cell
    patches = lattice(height, width, layout, row=cell * row, column=cell * column)
    assert cells_of(patches, height, width, cell).max(initial=0) <= 1
    for patch in patches:
        for pixels, near, length in (
            (patch.rows, patch.near_rows, height),
            (patch.columns, patch.near_columns, width),
        ):
            assert 0 <= pixels.start < pixels.stop <= length
            low, high = near.start * cell, min(near.stop * cell, length)
            assert low == max(pixels.start - layout.margin, 0) or pixels.start == 0
            assert low <= pixels.start and high >= min(pixels.stop + layout.margin, length)


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_the_colours_cover_every_pixel_once_and_one_colour_may_move_together(case: tuple[int, int, Layout]) -> None:
    height, width, layout = case
    covered = np.zeros((1, height, width), dtype=int)
    for colour in np.ndindex(layout.colours, layout.colours):
        row, column = (layout.tile * place for place in colour)
        patches = lattice(height, width, layout, row=row, column=column, pitch=layout.tile * layout.colours)
        assert cells_of(patches, height, width, layout.cell).max(initial=0) <= 1
        for patch in patches:
            covered[patch.pixels] += 1
    assert (covered == 1).all()


def test_the_lattice_in_numbers() -> None:
    layout = Layout(cell=2, tile=4, margin=2)
    assert (layout.pitch, layout.colours) == (8, 2)
    patches = lattice(18, 9, layout, row=6, column=0)
    assert [(p.rows.start, p.rows.stop) for p in patches[::2]] == [(0, 2), (6, 10), (14, 18)]
    assert [(p.near_rows.start, p.near_rows.stop) for p in patches[::2]] == [(0, 2), (2, 6), (6, 9)]
    assert [(p.columns.start, p.columns.stop) for p in patches[:2]] == [(0, 4), (8, 9)]
    assert [(p.near_columns.start, p.near_columns.stop) for p in patches[:2]] == [(0, 3), (3, 5)]


def test_a_layout_fits_where_four_whole_neighbourhoods_do() -> None:
    layout = Layout(cell=2, tile=4, margin=4)
    assert layout.fits(24, 24) and not layout.fits(23, 24) and layout.fits(12, 12 * PATCHES)


def test_local_sums_are_sums_over_neighbourhoods() -> None:
    values = np.random.default_rng(0).random((9, 5))
    layout = Layout(cell=2, tile=4, margin=2)
    patches = lattice(18, 9, layout, row=6, column=0)
    wanted = [sum(values[r, c] for r in range(2, 6) for c in range(3)), values[2:6, 3:].sum()]
    assert np.allclose(local_sums(values, patches)[2:4], wanted)
