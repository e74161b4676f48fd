"""What a host makes of returned images: scores, events and tile sums, each row on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import images, tiled
from hypothesis import given
from hypothesis import strategies as st

from udc_ray.attacks.objectives import OBJECTIVES, get_objective
from udc_ray.attacks.oracle import Row
from udc_ray.attacks.query import EVENT, SCALAR, Wanted
from udc_ray.attacks.reduction import reduce_rows, tile_sums

sides = st.integers(1, 23)


def pair(channels: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An output that leaves the box, and a reference."""
    rng = np.random.default_rng(seed)
    output = rng.normal(0.5, 0.6, (channels, height, width)).astype(np.float32)
    return torch.from_numpy(output), images(1, channels, height, width, seed=seed)[0]


@given(st.sampled_from([1, 3, 4]), sides, sides, st.integers(1, 30), st.integers(0, 99))
def test_tile_sums_are_those_of_a_loop_over_tiles(channels: int, height: int, width: int, tile: int, seed: int) -> None:
    output, reference = pair(channels, height, width, seed)
    sums = tile_sums(output, reference, tile)
    squares = np.square(output.clamp(0, 1).numpy().astype(np.float64) - reference.numpy().astype(np.float64))
    assert sums.shape == (-(-height // tile), -(-width // tile)) and sums.dtype == np.float64
    assert np.allclose(sums, tiled(squares, tile), rtol=1e-12, atol=0)


@given(st.sampled_from([1, 3, 4]), sides, sides, st.integers(1, 30))
def test_all_tiles_together_are_the_mean_squared_error(channels: int, height: int, width: int, tile: int) -> None:
    output, reference = pair(channels, height, width)
    score = float(get_objective("mse").score(output[None], reference[None])[0])
    assert tile_sums(output, reference, tile).sum() == pytest.approx(channels * height * width * score, rel=1e-12)


def test_a_tile_answers_for_its_own_pixels_only() -> None:
    reference = torch.full((3, 10, 7), 0.25)
    output = reference.clone()
    output[1, 9, 6], output[2, 0, 3] = 0.75, 5.0  # the second one counts as 1
    sums = tile_sums(output, reference, 4)
    wanted = np.zeros((3, 2))
    wanted[2, 1], wanted[0, 0] = 0.25, 0.75**2
    assert np.allclose(sums, wanted, atol=1e-12)


def test_every_row_gets_what_it_wanted() -> None:
    output, reference = (torch.stack(both) for both in zip(*(pair(3, 16, 18, n) for n in range(4)), strict=True))
    scores = {name: get_objective(name).score(output, reference).tolist() for name in ("mse", "ssim-clean")}
    middle = scores["ssim-clean"][3]
    rows = (
        Row(image_id="a", wanted=SCALAR),
        Row(image_id="b", wanted=Wanted(kind="tile-sums", tile=5)),
        Row(image_id="c", objective="ssim-clean", wanted=SCALAR),
        Row(image_id="d", objective="ssim-clean", wanted=EVENT, goal=middle),
        Row(image_id="d", objective="ssim-clean", wanted=EVENT, goal=middle * 1.001),
    )
    pick = [0, 1, 2, 3, 3]
    found = reduce_rows(output[pick], rows, [reference[n] for n in pick], OBJECTIVES)
    assert found[0] == pytest.approx(scores["mse"][0], rel=1e-12)
    assert np.array_equal(np.asarray(found[1]), tile_sums(output[1], reference[1], 5))
    assert found[2] == pytest.approx(scores["ssim-clean"][2], rel=1e-12)
    assert found[3:] == [1.0, 0.0], "an event has happened from its goal on"
    assert all(isinstance(found[n], float) for n in (0, 2, 3, 4))


@pytest.mark.parametrize("objective", ["mse", "ssim"])
def test_companions_padding_and_place_change_no_bit(objective: str) -> None:
    output, reference = (torch.stack(both) for both in zip(*(pair(3, 16, 18, n) for n in range(6)), strict=True))

    def answers(order: list[int], count: int) -> dict[int, float]:
        rows = tuple(Row(image_id=f"{n}", objective=objective) for n in order[:count])
        found = reduce_rows(output[order], rows, [reference[n] for n in order], OBJECTIVES)
        assert len(found) == count
        return {n: float(answer) for n, answer in zip(order, found, strict=False)}

    first, other, padded = answers([0, 1, 2, 3], 4), answers([4, 3, 5, 0], 4), answers([3, 0, 3, 3], 2)
    assert (first[0], first[3]) == (other[0], other[3]) == (padded[0], padded[3])
