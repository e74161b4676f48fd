"""Trial images: never a pixel of what is evaluated, keyed, spread over the images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from udc_ray.data.open import open_dataset
from udc_ray.errors import SpecError
from udc_ray.spec import RunSpec, parse_spec
from udc_ray.trials import squares, trial_samples


def spec_of(path: Any, limit: int | None = None, **params: Any) -> RunSpec:
    return parse_spec({"data": {"name": str(path), "reference": False, **params}, "attacks": ["pgd"], "limit": limit})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six images in which every pixel says where it is from: image, row and column."""
    where = tmp_path_factory.mktemp("images")
    for number in range(6):
        rows, columns = np.mgrid[:64, :80].astype(np.uint8)
        Image.fromarray(np.dstack([np.full_like(rows, number * 20), rows, columns])).save(where / f"i{number}.png")
    return where


def origins(image_CHW: torch.Tensor) -> set[tuple[int, int, int]]:
    """Where the pixels of a crop are from."""
    pixels: NDArray[np.int64] = (image_CHW * 255).round().long().permute(1, 2, 0).reshape(-1, 3).numpy()
    return {(int(a), int(b), int(c)) for a, b, c in pixels}


def evaluated_origins(spec: RunSpec) -> set[tuple[int, int, int]]:
    data = open_dataset(spec.data, spec.limit, spec.seed)
    return set().union(*(origins(data.load(i).degraded) for i in data.image_ids))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([16, 20, 32]), st.sampled_from([None, 16, 30, 48]), st.integers(1, 5), st.integers(1, 30))
def test_no_pixel_is_evaluated_and_no_square_is_taken_twice(
    folder: Any, edge: int, size: int | None, limit: int, count: int
) -> None:
    spec = spec_of(folder, limit, **({} if size is None else {"size": size}))
    data = open_dataset(spec.data, spec.limit, spec.seed)
    try:
        found = trial_samples(spec, data, count, edge)
    except SpecError as error:
        assert "trial images" in str(error)
        return
    assert len({sample.image_id for sample in found}) == count
    taken = evaluated_origins(spec)
    for sample in found:
        own = origins(sample.degraded)
        assert sample.degraded.shape == (3, edge, edge) and len(own) == edge * edge
        assert not own & taken


def test_images_that_the_limit_left_come_first_and_in_turn(folder: Any) -> None:
    spec = spec_of(folder, 2, size=16)
    data = open_dataset(spec.data, 2, 0)
    few = trial_samples(spec, data, 4, 16)
    assert len({sample.image_id.partition("@")[0] for sample in few}) == 4
    assert not {sample.image_id.partition("@")[0] for sample in few} & set(data.image_ids)
    more = trial_samples(spec, data, 12, 16)
    counts = Counter(sample.image_id.partition("@")[0] for sample in more)
    assert set(counts) == {f"i{n}" for n in range(6)} and set(counts.values()) == {2}


def test_squares_overlap_only_where_there_are_too_few_others(folder: Any) -> None:
    spec = spec_of(folder, 5)
    data = open_dataset(spec.data, 5, 0)
    apart = trial_samples(spec, data, 20, 16)
    assert len(set().union(*(origins(s.degraded) for s in apart))) == 20 * 16 * 16
    overlapping = trial_samples(spec, data, 40, 16)
    assert [s.image_id for s in overlapping[:20]] == [s.image_id for s in apart]
    with pytest.raises(SpecError, match="63 trial images of 16 px .* 64 are wanted") as told:
        trial_samples(spec, data, 64, 16)
    assert "limit" in told.value.change


def test_trial_images_are_keyed_by_the_seed(folder: Any) -> None:
    spec = spec_of(folder, 2)
    data = open_dataset(spec.data, 2, 0)
    ids = [sample.image_id for sample in trial_samples(spec, data, 10, 16)]
    assert ids == [sample.image_id for sample in trial_samples(spec, data, 10, 16)]
    other = spec.model_copy(update={"seed": 1})
    assert ids != [sample.image_id for sample in trial_samples(other, data, 10, 16)]


def test_where_all_is_evaluated_nothing_is_left(folder: Any) -> None:
    spec = spec_of(folder)
    with pytest.raises(SpecError, match="there are 0 trial images"):
        trial_samples(spec, open_dataset(spec.data, None, 0), 4, 16)


def test_shipped_images_give_squares_with_their_truth() -> None:
    spec = parse_spec({"data": {"name": "shipped", "size": 128}, "attacks": ["pgd"], "limit": 8})
    data = open_dataset(spec.data, 8, 0)
    found = trial_samples(spec, data, 16, 64)
    whole = open_dataset(spec.data.model_copy(update={"params": {}}), None, 0)
    for sample in found[:3]:
        image_id, _, place = sample.image_id.partition("@")
        top, left = map(int, place.split(","))
        full = whole.load(image_id)
        assert full.truth is not None and sample.truth is not None
        assert torch.equal(sample.degraded, full.degraded[:, top : top + 64, left : left + 64])
        assert torch.equal(sample.truth, full.truth[:, top : top + 64, left : left + 64])


def test_squares_of_an_image() -> None:
    image = torch.rand(3, 40, 33)
    found = squares(image, 16)
    assert len(found) == 4 and torch.equal(found[3], image[:, 16:32, 16:32])
    assert torch.equal(squares(image, 64)[0], image)
