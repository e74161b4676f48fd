"""Attention in windows, against what the words say: places, neighbours and one window at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from published_checks import DOUBLE
from torch import nn

from udc_ray.models.networks.windows import (
    MASKED,
    WindowAttention,
    WindowBlock,
    relative_position_index,
    shift_mask,
    window_merge,
    window_partition,
)


def attention(size: int, channels: int = 6, heads: int = 2) -> WindowAttention:
    torch.manual_seed(0)
    made = WindowAttention(channels, heads, size, nn.Linear(channels, 3 * channels)).double()
    nn.init.normal_(made.relative_position_bias_table)  # nearly zero as made, which would hide mistakes
    return made.requires_grad_(False)


def test_windows_are_cut_row_by_row_and_put_back() -> None:
    x_BHWC = torch.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    windows = window_partition(x_BHWC, 4)
    corners = itertools.product(range(2), range(0, 8, 4), range(0, 12, 4))
    by_hand = [x_BHWC[b, i : i + 4, j : j + 4].reshape(16, 3) for b, i, j in corners]
    assert torch.equal(windows, torch.stack(by_hand))
    assert torch.equal(window_merge(windows, 8, 12), x_BHWC)


@pytest.mark.parametrize("size", [7, 8])
def test_each_offset_has_its_own_row_counted_from_the_upper_left(size: int) -> None:
    index = relative_position_index(size)
    for a, b in itertools.product(range(size * size), repeat=2):
        down, right = a // size - b // size, a % size - b % size
        assert index[a, b] == (down + size - 1) * (2 * size - 1) + right + size - 1


def test_attention_is_the_formula_for_every_window_and_head() -> None:
    made = attention(3)
    x_WNC = torch.randn(2, 9, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    for x_NC, result in zip(x_WNC, made(x_WNC), strict=True):
        q, k, v = made.qkv(x_NC).split(6, -1)
        heads = []
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            bias = made.relative_position_bias_table[made.relative_position_index, head]
            heads.append(((q[:, part] @ k[:, part].T) / 3**0.5 + bias).softmax(-1) @ v[:, part])
        torch.testing.assert_close(result, made.proj(torch.cat(heads, -1)))


@pytest.mark.parametrize(("height", "width", "size"), [(16, 24, 8), (14, 7, 7), (8, 8, 8)])
def test_shifted_windows_join_neighbours_and_never_opposite_borders(height: int, width: int, size: int) -> None:
    """Pixels see each other where they share a window of the moved grid, whose border windows are cut off."""
    mask = shift_mask(height, width, size)
    assert mask.shape == (height * width // size**2, size**2, size**2)
    assert set(mask.unique().tolist()) <= {0.0, MASKED}
    half = size // 2
    place = torch.arange(height * width).reshape(1, height, width, 1)
    origin_MN = window_partition(place.roll((-half, -half), (1, 2)), size).squeeze(-1)
    # Which window of the moved grid a pixel lies in: the grid starts half a window to the lower right.
    down, right = ((origin_MN // width) - half) // size, ((origin_MN % width) - half) // size
    together = (down[:, :, None] == down[:, None]) & (right[:, :, None] == right[:, None])
    assert torch.equal(mask == 0, together)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_pixel_reaches_its_own_window_and_nothing_else(shifted: bool) -> None:
    torch.manual_seed(0)
    block = WindowBlock(attention(4), 4, nn.Linear(6, 6), shifted=shifted, modulated=True).double()
    x_BHWC = torch.randn(1, 8, 12, 6, dtype=DOUBLE)
    mask = shift_mask(8, 12, 4, like=x_BHWC)
    before = block(x_BHWC, mask)
    start = 2 if shifted else 0
    for row, column in ((0, 0), (3, 5), (7, 11)):
        moved = x_BHWC.clone()
        moved[0, row, column, 0] += 1  # one channel: a layer norm takes a common shift away
        reached = (block(moved, mask) - before).abs().amax(-1)[0] > 1e-12
        rows = torch.tensor([(i - start) // 4 == (row - start) // 4 for i in range(8)])
        columns = torch.tensor([(j - start) // 4 == (column - start) // 4 for j in range(12)])
        assert torch.equal(reached, rows[:, None] & columns)


def test_the_modulator_is_added_to_every_window_before_its_attention() -> None:
    made = attention(4)
    plain = WindowBlock(made, 4, nn.Identity(), shifted=False).double()
    modulated = WindowBlock(made, 4, nn.Identity(), shifted=False, modulated=True).double()
    assert modulated.modulator is not None
    pattern = modulated.modulator.weight.detach()
    x_BHWC = torch.randn(1, 8, 8, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    tiled = pattern.reshape(4, 4, 6).repeat(2, 2, 1)
    mask = shift_mask(8, 8, 4, like=x_BHWC)
    here, there = modulated._attend(x_BHWC, mask), plain._attend(x_BHWC + tiled, mask)
    torch.testing.assert_close(here, there)
