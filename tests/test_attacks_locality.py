"""The margin that probes give, for models whose reach is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import Blur, Constant, images, judge_against, query_problem, restorer, run_machine
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from udc_ray.attacks.locality import PROBES, distances, holding_margin, probe_corner, profile
from udc_ray.attacks.tile_machine import TileMachine
from udc_ray.attacks.tile_square import TileSquare


class Rolled(nn.Module):
    """Moves the image to the right: all of the change comes out at a known distance."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.roll(self.by, dims=3)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(1, 4), st.integers(0, 8), st.integers(0, 2**32))
def test_distances_are_those_of_the_nearest_changed_cell(
    height: int, width: int, cell: int, number: int, seed: int
) -> None:
    tile = 4
    row, column = probe_corner(np.random.default_rng(seed), number, height, width, tile)
    assert 0 <= row <= height - tile and 0 <= column <= width - tile
    away = distances(height, width, cell, tile, (row, column))
    touched = {(r // cell, c // cell) for r in range(row, row + tile) for c in range(column, column + tile)}
    for (r, c), found in np.ndenumerate(away):
        assert found == min(max(abs(r - a), abs(c - b)) for a, b in touched)


def test_the_probes_lie_in_different_quarters() -> None:
    rng = np.random.default_rng(0)
    corners = [probe_corner(rng, n, 64, 48, 8) for n in range(4)]
    assert [(r >= 28, c >= 20) for r, c in corners] == [(False, False), (False, True), (True, False), (True, True)]


def test_the_margin_holds_the_share() -> None:
    by_distance = profile(np.array([[90.0, 4.0], [2.0, 4.0]]), np.array([[0, 1], [2, 3]]), 4)
    assert by_distance.tolist() == [90, 4, 2, 4]
    assert holding_margin(by_distance, 4) == 8  # 94 % within one cell, 96 % within two
    assert holding_margin(np.array([1.0, 0.0]), 4) == 4
    assert holding_margin(np.zeros(4), 4) is None and holding_margin(np.array([np.nan, 1.0]), 4) is None


def probed(model: nn.Module, size: int = 64, margin_only: bool = True) -> TileMachine:
    """A machine that has just learnt its margin."""
    x = images(1, 3, size, size)[0] * 0.8 + 0.1
    attack = TileSquare(budget=100)
    machine = attack.start(query_problem(x))
    wrapped = restorer(model)
    with torch.no_grad():
        clean = wrapped(x[None])[0].clamp(0, 1)
    judge = judge_against(wrapped, Blur()(x[None])[0], clean_CHW=clean)
    assert run_machine(machine, judge, machine.before + PROBES) == machine.before + PROBES
    return machine


@pytest.mark.parametrize(("by", "least"), [(0, 4), (4, 4), (6, 4), (12, 12)])
def test_the_margin_is_how_far_a_change_reaches(by: int, least: int) -> None:
    machine = probed(Rolled(by), size=128)
    assert machine.inner is None and least <= machine.margin <= max(least, by + 4)


@pytest.mark.parametrize("model", [Rolled(25), Constant()])
def test_no_margin_is_small_enough_for_what_goes_far_or_nowhere(model: nn.Module) -> None:
    assert probed(model).inner is not None
