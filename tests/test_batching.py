"""Micro-batches: every image once, one shape and a fixed number of slots a batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.batching import micro_batches, packed, stack

SHAPES = [(3, 4, 4), (3, 4, 6), (3, 6, 4), (4, 4, 4)]


@st.composite
def image_lists(draw: st.DrawFn) -> list[Tensor]:
    """Images of mixed shapes; every value of image n is n."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), max_size=14))
    return [torch.full(shape, float(n)) for n, shape in enumerate(shapes)]


@given(image_lists(), st.integers(1, 6))
def test_every_image_is_in_exactly_one_place(images: list[Tensor], slots: int) -> None:
    ids = [f"id{n}" for n in range(len(images))]
    seen: list[int] = []
    for batch in micro_batches(ids, images, slots):
        assert batch.x_BCHW.shape[0] == len(batch.image_ids) == slots
        assert 1 <= batch.count == len(batch.where) <= slots
        for b in range(slots):
            original = int(batch.image_ids[b].removeprefix("id"))
            assert torch.equal(batch.x_BCHW[b], images[original]), "the id of a slot is not its image's"
        assert [batch.image_ids[b] for b in range(batch.count)] == [ids[p] for p in batch.where]
        seen += batch.where
    assert sorted(seen) == list(range(len(images)))


@given(st.integers(1, 30), st.integers(1, 8))
def test_images_of_one_shape_fill_the_fewest_batches(count: int, slots: int) -> None:
    images = list(torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 3, 2, 2))
    batches = list(micro_batches([str(n) for n in range(count)], images, slots))
    assert len(batches) == -(-count // slots)
    assert [b.count for b in batches[:-1]] == [slots] * (len(batches) - 1)
    assert [p for b in batches for p in b.where] == list(range(count))


def test_empty_slots_hold_the_first_image() -> None:
    first, second = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    assert stack([first, second], 4).mean(dim=(1, 2, 3)).tolist() == [0, 1, 0, 0]


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 8))
def test_draws_fill_every_batch_but_the_last_in_their_order(images: int, draws: int, slots: int) -> None:
    batches = list(packed(images, draws, slots))
    assert len(batches) == -(-images * draws // slots)
    assert [b.count for b in batches[:-1]] == [slots] * (len(batches) - 1)
    assert all(len(b.images) == len(b.draws) == slots for b in batches)
    real = [(i, d) for b in batches for i, d in zip(b.images[: b.count], b.draws[: b.count], strict=True)]
    assert sorted(real) == [(i, d) for i in range(images) for d in range(draws)]
    for image in range(images):
        assert [d for i, d in real if i == image] == list(range(draws))
