"""Labelled images: what is read, how it is named, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udc_ray.data.labelled import is_labelled, open_labelled
from udc_ray.data.open import open_dataset
from udc_ray.errors import DataError, UserError
from udc_ray.spec import Entry

SHIPPED = Path(__file__).parent / "data" / "cifar10_test20.npz"


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def small(count: int = 3, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 16, 18, 3)).astype(np.uint8)
    return {"x": images, "y": np.arange(count) % 3, **changes}


def test_images_and_classes_are_those_of_the_file() -> None:
    dataset = open_dataset(Entry(name=str(SHIPPED)))
    with np.load(SHIPPED) as stored:
        images, labels = stored["x"], stored["y"]
    assert dataset.image_ids == tuple(f"{n:04d}" for n in range(20))
    assert (dataset.name, dataset.channels, dataset.domain, dataset.has_truth) == ("cifar10_test20", 3, "srgb", True)
    for number, image_id in enumerate(dataset.image_ids):
        sample = dataset.load(image_id)
        assert sample.degraded.dtype == torch.float32 and sample.degraded.shape == (3, 32, 32)
        assert np.array_equal(
            (sample.degraded * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0), images[number]
        )
        assert sample.truth is not None and sample.truth.dtype == torch.int64 and sample.truth.ndim == 0
        assert int(sample.truth) == labels[number]


def test_a_limit_is_a_part_of_the_whole_and_the_set_travels() -> None:
    whole, some = (open_dataset(Entry(name=str(SHIPPED)), limit) for limit in (None, 5))
    assert len(some.image_ids) == 5 and set(some.image_ids) <= set(whole.image_ids)
    arrived = pickle.loads(pickle.dumps(some))
    assert arrived == some and len(pickle.dumps(some)) < 1000
    for image_id in some.image_ids:
        assert arrived.load(image_id).degraded.equal(whole.load(image_id).degraded)


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    first = open_labelled(save(tmp_path / "a.npz", **small()))
    same = open_labelled(save(tmp_path / "b.npz", **small()))
    other = open_labelled(save(tmp_path / "c.npz", **small(y=np.array([0, 1, 1]))))
    assert first.file_hashes() == same.file_hashes() != other.file_hashes()


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", **small())
    dataset = open_labelled(path)
    before = dataset.load("0001")
    save(path, **small(x=255 - small()["x"]))
    path.touch()
    assert not dataset.load("0001").degraded.equal(before.degraded)


def test_many_images_have_ids_of_one_length(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((10001, 1, 1, 3), np.uint8), "y": np.zeros(10001, np.uint8)}
    ids = open_labelled(save(tmp_path / "a.npz", **arrays)).image_ids
    assert ids[0] == "00000" and ids[-1] == "10000" and list(ids) == sorted(ids)


def test_the_crop_is_the_centre(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", **small())
    cropped = open_dataset(Entry(name=str(path), params={"size": 16})).load("0002").degraded
    assert cropped.equal(open_labelled(path).load("0002").degraded[:, :, 1:17])
    with pytest.raises(DataError, match="smaller than the crop"):
        open_dataset(Entry(name=str(path), params={"size": 17}))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (small(x=np.zeros((3, 16, 18), np.uint8)), "N x H x W x 3 is wanted"),
        (small(x=np.zeros((0, 16, 18, 3), np.uint8), y=np.zeros(0, int)), "N x H x W x 3 is wanted"),
        (small(x=np.zeros((3, 16, 18, 3), np.float32)), "float32, where uint8 is wanted"),
        (small(y=np.arange(4)), "one class for each image"),
        (small(y=np.zeros(3)), "whole numbers are wanted"),
        (small(y=np.array([0, -1, 2])), "counted from 0"),
        (small(y=np.array([0, 2**64 - 1, 2], dtype=np.uint64)), "counted from 0"),
        (small(y=np.array([0, None, 2])), "pickle"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_dataset(Entry(name=str(save(tmp_path / "a.npz", **arrays))))


@pytest.mark.parametrize("params", [{"display": "toled"}, {"reference": False}, {"part": "test"}, {"psf": 5}])
def test_what_is_for_images_to_restore_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(params))}.* not go with them"):
        open_dataset(Entry(name=str(SHIPPED), params=params))


def test_a_model_of_raw_planes_is_refused() -> None:
    with pytest.raises(DataError, match="4 channels"):
        open_dataset(Entry(name=str(SHIPPED)), channels=4)


def test_only_a_file_with_both_arrays_is_labelled(tmp_path: Path) -> None:
    assert is_labelled(SHIPPED)
    assert not is_labelled(save(tmp_path / "a.npz", x=small()["x"]))
    assert not is_labelled(save(tmp_path / "b.npz", rgb=np.zeros((16, 16, 3), np.float32)))
    assert not is_labelled(tmp_path)
    assert not is_labelled(tmp_path / "gone.npz")


@given(cut=st.integers(0, 59333), value=st.integers(0, 255))
def test_a_damaged_file_is_a_message_or_reads_as_images(
    tmp_path_factory: pytest.TempPathFactory, cut: int, value: int
) -> None:
    content = bytearray(SHIPPED.read_bytes())
    content[cut] ^= value
    path = tmp_path_factory.mktemp("damaged") / "a.npz"
    path.write_bytes(content if value else content[:cut])
    try:
        dataset = open_dataset(Entry(name=str(path)))
    except UserError as error:
        assert error.what
    else:
        assert len(dataset.image_ids) == 20
