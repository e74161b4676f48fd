"""Keyed noise: a draw is a function of what it is for, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udc_ray import rng
from udc_ray.tape import Tape, normal_like, signs_like, uniform_like

TAPE = Tape(seed=3, image_ids=("a", "b", "c"), stream="eval")
X = torch.zeros(3, 3, 5, 4)


def draw(tape: Tape, name: str = "ddim") -> torch.Tensor:
    return normal_like(tape.generators(name), X[: len(tape.image_ids)])


@given(st.permutations(["a", "b", "c"]))
def test_rows_follow_their_image(order: list[str]) -> None:
    rows = dict(zip(TAPE.image_ids, draw(TAPE), strict=True))
    for image_id, row in zip(order, draw(replace(TAPE, image_ids=tuple(order))), strict=True):
        assert torch.equal(row, rows[image_id])
    assert torch.equal(draw(replace(TAPE, image_ids=("b",)))[0], rows["b"]), "a companion changed the draw"


CHANGES = [{"seed": 4}, {"stream": "select"}, {"restart": 1}, {"sample": 1}, {"step": 1}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_every_part_of_the_key_counts(change: dict[str, int | str]) -> None:
    other = replace(TAPE, **change)  # type: ignore[arg-type]  # one field of any type
    assert not torch.equal(draw(other), draw(TAPE))


def test_the_drawer_counts_and_reading_twice_does_not() -> None:
    assert not torch.equal(draw(TAPE, "ddim"), draw(TAPE, "ddpm"))
    assert torch.equal(draw(TAPE), draw(TAPE))


def test_at_changes_only_what_is_given() -> None:
    tape = replace(TAPE, restart=2, sample=5, step=7)
    assert tape.at() == tape
    assert tape.at(step=0) == replace(tape, step=0)
    assert tape.at(sample=0, stream="select") == replace(tape, sample=0, stream="select")


@given(st.text(), st.text(), st.text(), st.text())
def test_names_that_run_together_are_other_keys(id_a: str, stream_a: str, id_b: str, stream_b: str) -> None:
    same = (id_a, stream_a) == (id_b, stream_b)
    one, other = (rng.generator(0, i, s).integers(0, 2**62) for i, s in ((id_a, stream_a), (id_b, stream_b)))
    assert (one == other) == same


def test_distributions() -> None:
    big = torch.zeros(2, 3, 100, 100)
    tape = Tape(seed=0, image_ids=("a", "b"), stream="control")
    noise, sign, flat = (f(tape.generators("n"), big) for f in (normal_like, signs_like, uniform_like))
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert set(sign.unique().tolist()) == {-1.0, 1.0} and abs(float(sign.mean())) < 0.03
    assert -1 <= float(flat.min()) < -0.99 and 0.99 < float(flat.max()) < 1
    assert abs(float(flat.std()) - 3**-0.5) < 0.01
    assert noise.dtype == sign.dtype == flat.dtype == torch.float32


def test_the_key_is_what_the_documentation_says() -> None:
    """SHA-256 of the JSON list, its first 16 bytes as the little-endian key of Philox."""
    import hashlib

    digest = hashlib.sha256(b'[3,"a","eval/ddim",1,2,4]').digest()
    expected = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).standard_normal(4)
    made = rng.generator(3, "a", "eval/ddim", restart=1, sample=2, step=4).standard_normal(4)
    assert np.array_equal(made, expected)
