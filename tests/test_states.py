"""Saved states: back to the bit, by chain, and no harm where a file is damaged."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from udc_ray.states import decode_state, encode_state, find_state, save_state, state_file
from udc_ray.storage import Storage

arrays = st.sampled_from([np.float64, np.float32, np.int8, np.int64, np.uint8, np.bool_]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)
tensors = arrays.map(lambda a: torch.from_numpy(np.array(a)))
plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text()
values = st.recursive(
    plain | arrays | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
states = st.dictionaries(st.text(), values, max_size=4)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert_same(one.numpy(), other.numpy())
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other)
    else:
        assert one == other and repr(one) == repr(other)


@given(states)
def test_a_state_comes_back_to_the_bit(state: dict[str, Any]) -> None:
    assert_same(decode_state(encode_state(state)), state)


def test_numbers_of_numpy_come_back_as_plain_ones() -> None:
    back = decode_state(encode_state({"a": np.float64(0.1), "b": np.int64(3), "c": np.bool_(True)}))
    assert_same(back, {"a": 0.1, "b": 3, "c": True})


def test_a_state_that_was_read_can_be_changed_in_place() -> None:
    back = decode_state(encode_state({"a": np.zeros(2), "t": torch.zeros(2)}))
    back["a"] += 1
    back["t"] += 1
    assert back["a"].tolist() == [1, 1] and back["t"].tolist() == [1, 1]


def test_every_chain_has_a_file_of_its_own(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    keys = [("a", 0), ("a", 1), ("a/0", 1), ("b", 0), ("../x", 0)]
    for cell in ("c1", "c2"):
        for n, key in enumerate(keys):
            save_state(storage, cell, key, {"n": n, "cell": cell})
    assert len(list((tmp_path / "state").iterdir())) == 2 * len(keys)
    for cell in ("c1", "c2"):
        for n, key in enumerate(keys):
            assert find_state(storage, cell, key) == {"n": n, "cell": cell}
    save_state(storage, "c1", keys[0], {"n": 99})
    assert find_state(storage, "c1", keys[0]) == {"n": 99}
    assert find_state(storage, "c3", keys[0]) is None and find_state(storage, "c1", ("c", 0)) is None


STATE = {
    "asked": 7,
    "curve": [(1, 0.5), (3, 0.75)],
    "best_CHW": torch.linspace(0, 1, 300),
    "signs": np.ones(40, np.int8),
}


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_no_state_and_no_failure(tmp_path: Path, seed: int) -> None:
    rng, storage = random.Random(seed), Storage(str(tmp_path))
    data = bytearray(encode_state(STATE))
    if seed % 3 == 0:
        del data[rng.randrange(len(data)) :]
    for _ in range(1 + seed % 20):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    storage.write(state_file("c", ("a", 0)), bytes(data))
    found = find_state(storage, "c", ("a", 0))
    assert found is None or isinstance(found, dict)


@pytest.mark.parametrize("data", [b"", b"nothing", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."])
def test_what_is_no_state_is_none(tmp_path: Path, data: bytes) -> None:
    storage = Storage(str(tmp_path))
    storage.write(state_file("c", ("a", 0)), data)
    assert find_state(storage, "c", ("a", 0)) is None
