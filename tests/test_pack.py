"""Candidates on their way: a byte a value where that is exact, and always the values that were sent."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from doubles import images
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from udc_ray.attacks.oracle import Row, ScoreRequest, pack, unpack
from udc_ray.attacks.threat import Norm, Threat

SHAPES = hnp.array_shapes(min_dims=4, max_dims=4, max_side=4)
LEVELS = np.arange(256).reshape(1, 1, 16, 16)


def bits(values: object) -> bytes:
    return np.asarray(values, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    "made",
    [
        torch.from_numpy(LEVELS.astype(np.float32) / np.float32(255)),
        torch.from_numpy((LEVELS / 255).astype(np.float32)),
        torch.from_numpy(LEVELS.astype(np.uint8)) / 255,
        torch.from_numpy(LEVELS.astype(np.uint8)).double().div(255).float(),
    ],
    ids=["numpy", "rounded from float64", "torch", "torch from float64"],
)
def test_every_level_however_it_was_divided_travels_as_a_byte(made: torch.Tensor) -> None:
    packed = pack(made)
    assert packed.dtype == np.uint8 and np.array_equal(packed, LEVELS)
    assert bits(unpack(packed)) == bits(made)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32).map(abs)))
def test_float_candidates_arrive_to_the_bit(values: np.ndarray) -> None:
    assert bits(unpack(pack(torch.from_numpy(values.copy())))) == bits(values)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-1e3, 1e3, width=32)))
def test_values_outside_the_box_are_never_taken_for_levels(values: np.ndarray) -> None:
    returned = unpack(pack(torch.from_numpy(values.copy()))).numpy()
    assert np.array_equal(returned, values)


@given(
    hnp.arrays(np.uint8, SHAPES),
    st.floats(0, 1, width=32).filter(lambda v: v != np.float32(round(v * 255) / 255)),
    st.randoms(use_true_random=False),
)
def test_one_value_off_the_grid_makes_the_whole_batch_float(levels: np.ndarray, odd: float, chance: object) -> None:
    values = (levels / 255).astype(np.float32)
    assert pack(torch.from_numpy(values.copy())).dtype == np.uint8
    values.flat[chance.randrange(values.size)] = odd  # type: ignore[attr-defined]  # a random.Random
    packed = pack(torch.from_numpy(values.copy()))
    assert packed.dtype == np.float32 and bits(unpack(packed)) == bits(values)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_a_threat_of_eight_bits_stores_is_a_quarter_of_the_bytes(norm: Norm) -> None:
    clean = images(3, 3, 8, 9)
    threat = Threat(norm=norm, eps=0.1 if norm == "linf" else 2.0, depth=8)
    stored = threat.project(clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)), clean)
    rows = tuple(Row(image_id=f"{n}") for n in range(3))
    request = ScoreRequest(victim=0, rows=rows, packed=pack(stored))
    plain = ScoreRequest(victim=0, rows=rows, packed=pack(stored + 1e-4))
    assert request.packed.nbytes * 4 == plain.packed.nbytes
    arrived = pickle.loads(pickle.dumps(request))
    assert arrived.rows == rows and arrived.x_NCHW.equal(stored)


def test_what_was_packed_is_neither_shared_nor_needs_to_be_in_order() -> None:
    odd = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).permute(0, 1, 3, 2)
    packed = pack(odd)
    assert bits(unpack(packed)) == bits(odd.contiguous())
    packed.flags.writeable = False  # as it comes out of an object store
    returned = unpack(packed)
    returned += 1  # a purifier may work in place
    assert bits(packed) == bits(odd.contiguous())
