"""Selectors as parameters of a purifier; levels by the score of an image; one batch at several levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from purifier_doubles import LINEAR, tiny_denoiser
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from udc_ray.attacks.pgd import PGD
from udc_ray.errors import SpecError, UserError
from udc_ray.purifiers.chain import Noise, Segment, make_segments, run_chain
from udc_ray.purifiers.gradients import exact
from udc_ray.purifiers.plan import Plan, Round
from udc_ray.purifiers.selectors import (
    ANLS,
    CANDIDATES,
    AnySelector,
    Fixed,
    Leveled,
    ScoreNorm,
    Selector,
)
from udc_ray.tape import Tape


class Holder(BaseModel):
    model_config = ConfigDict(validate_default=True)
    selector: AnySelector = Fixed()


def read(value: object) -> Selector:
    return Holder(selector=value).selector  # type: ignore[arg-type]  # what YAML gives is read


def tape(*ids: str) -> Tape:
    return Tape(seed=0, image_ids=ids, stream="select")


def images(count: int, edge: int = 16) -> Tensor:
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "value",
    [
        "fixed",
        "anls",
        "score-norm",
        {"name": "anls", "metric": "fid", "levels": [5, 50], "attack": {"name": "fgsm", "eps": "4/255"}},
        {"name": "anls", "sigmas": [5.0, 20.0], "trials": 8},
        {"name": "score-norm", "levels": [5, 20, 40], "thresholds": [2.0, 3.0], "draws": 4},
    ],
)
def test_what_is_dumped_is_read_back(value: object) -> None:
    dumped = json.loads(Holder(selector=value).model_dump_json())["selector"]  # type: ignore[arg-type]  # as YAML gives it
    assert read(dumped) == read(value)
    assert json.loads(Holder(selector=dumped).model_dump_json())["selector"] == dumped


def test_defaults_are_those_of_the_paper_and_filled_in() -> None:
    assert isinstance(Holder().selector, Fixed)
    selector = read("anls")
    assert isinstance(selector, ANLS)
    assert selector.times(LINEAR) == CANDIDATES == (10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120)
    assert selector.attack == PGD()
    assert Holder(selector="anls").model_dump()["selector"]["attack"]["steps"] == PGD().steps  # type: ignore[arg-type]  # a name


def test_a_path_says_nothing_about_the_content() -> None:
    one, other = (Holder(selector={"name": "anls", "clean": c}).model_dump() for c in ("a", "b"))  # type: ignore[arg-type]
    assert one == other


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("anl", "did you mean anls"),
        ({"name": "anls", "metrc": "fid"}, "did you mean metric"),
        ({"name": "anls", "metric": "mmd"}, "metric"),
        ({"name": "anls", "levels": [20, 10]}, "must rise"),
        ({"name": "anls", "levels": []}, "levels"),
        ({"name": "anls", "levels": [1], "sigmas": [1.0]}, "give one"),
        ({"name": "anls", "attack": "square"}, "follows no gradients"),
        ({"name": "anls", "attack": "pdg"}, "did you mean pgd"),
        ({"name": "anls", "trials": 1}, "trials"),
        ({"name": "score-norm", "low": 3, "high": 3}, "above low"),
        ({"name": "score-norm", "levels": [1, 2], "thresholds": [1.0, 2.0]}, "1 rising"),
        ({"name": "score-norm", "levels": [1, 2, 3], "thresholds": [2.0, 1.0]}, "2 rising"),
    ],
)
def test_mistakes_are_told(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(value)


def test_levels_outside_a_schedule_are_refused() -> None:
    for selector in (ANLS(levels=(10, 1000)), ANLS(sigmas=(5.0, 5.001)), ANLS(sigmas=(5.0, 1e6))):
        with pytest.raises(SpecError, match="schedule|different times"):
            selector.times(LINEAR)
    assert ANLS(sigmas=(5.0, 22.0)).times(LINEAR) == (LINEAR.nearest(5), LINEAR.nearest(22))


class Oracle:
    """Knows the clean image: its estimate of the noise is exact."""

    def __init__(self, clean_BCHW: Tensor) -> None:
        self.clean = clean_BCHW * 2 - 1

    def __call__(self, x_t_BCHW: Tensor, t: int) -> Tensor:
        abar = float(LINEAR.alpha_bar[t])
        return (x_t_BCHW - abar**0.5 * self.clean) / (1 - abar) ** 0.5


def test_the_norm_is_the_distance_from_what_the_prior_knows() -> None:
    """With an oracle the expected correction is x - clean, whatever the noise."""
    clean = images(3)
    sizes = torch.tensor([0.0, 4.0, 8.0])
    signs = torch.where(torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    x = clean + sizes[:, None, None, None] / 255 * signs
    for draws in (1, 3):
        norms = ScoreNorm(draws=draws).norms(x, Oracle(clean), LINEAR, tape("a", "b", "c"))
        assert norms.tolist() == pytest.approx(sizes.tolist(), abs=2e-3)


def test_images_further_off_get_more_noise() -> None:
    clean = images(5)
    x = clean + torch.tensor([0.0, 1.9, 2.1, 4.1, 30.0])[:, None, None, None] / 255
    keyed = tape(*"abcde")
    by_line = ScoreNorm(levels=(10, 20, 40), low=1, high=5)  # thresholds in the middle: 2 and 4
    assert by_line.choose(x, Oracle(clean), LINEAR, keyed).tolist() == [0, 0, 1, 2, 2]
    by_hand = ScoreNorm(levels=(10, 20, 40), thresholds=(3.0, 20.0))
    assert by_hand.choose(x, Oracle(clean), LINEAR, keyed).tolist() == [0, 0, 0, 1, 2]
    alone = by_line.choose(x[3:4], Oracle(clean[3:4]), LINEAR, tape("d"))
    assert alone.tolist() == [2]
    assert ScoreNorm(levels=(10,)).choose(x, Oracle(clean), LINEAR, keyed).tolist() == [0] * 5


def test_the_choice_passes_no_gradient_and_is_keyed() -> None:
    x = images(2).requires_grad_()
    selector = ScoreNorm(draws=1)
    norms = selector.norms(x, tiny_denoiser(), LINEAR, tape("a", "b"))
    assert not norms.requires_grad
    assert torch.equal(norms, selector.norms(x, tiny_denoiser(), LINEAR, tape("a", "b")))
    assert not torch.equal(norms, selector.norms(x, tiny_denoiser(), LINEAR, tape("c", "b")))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 60), min_size=1, max_size=6), st.integers(1, 12))
def test_an_index_is_a_candidate_and_rises_with_the_norm(offsets: list[float], count: int) -> None:
    clean = images(len(offsets), 4)
    x = clean + torch.tensor(sorted(offsets))[:, None, None, None] / 255
    selector = ScoreNorm(levels=CANDIDATES[:count])
    found = selector.choose(x, Oracle(clean), LINEAR, tape(*map(str, range(len(offsets))))).tolist()
    assert found == sorted(found) and found[0] >= 0 and found[-1] < count


class Toy(Leveled):
    """Three steps from its level."""

    name = "toy"
    random = True
    sigma: float = 3.0

    def chain(self, tape: Tape) -> list[Segment]:
        plan = Plan(rounds=(Round(timesteps=LINEAR.timesteps(self.t or 0, 3), eta=1.0, clip_x0=False),))
        return make_segments(plan, tiny_denoiser(), LINEAR, Noise(tape=tape, name=self.noise_key))


SPREAD = Toy(selector=ScoreNorm(levels=(12, 30, 60), thresholds=(10.0, 20.0), draws=1))


def spread(x_BCHW: Tensor, clean_BCHW: Tensor, keyed: Tape, *, gradient: bool = False) -> Tensor:
    """Purified at the levels that an oracle of the clean images gives."""

    def run(purifier: Toy) -> Tensor:
        chain = purifier.chain(keyed)
        return exact(chain, x_BCHW) if gradient else run_chain(chain, x_BCHW)

    return SPREAD.at_levels(x_BCHW, Oracle(clean_BCHW), LINEAR, keyed, run)


def off(clean_BCHW: Tensor, *levels: float) -> Tensor:
    return clean_BCHW + torch.tensor(levels)[:, None, None, None] / 255


def test_an_image_has_the_bits_of_its_own_level_whatever_its_companions() -> None:
    clean, before = images(4), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = off(clean, 30, 0, 15, 0)
        mixed = spread(x, clean, tape(*"abcd"))
        for b, t in enumerate((60, 12, 30, 12)):
            alone = run_chain(Toy(t=t).chain(tape(*"abcd"[b] * 4)), x[b : b + 1].repeat(4, 1, 1, 1))
            assert torch.equal(mixed[b], alone[0])
        assert not torch.equal(mixed[0], run_chain(Toy(t=12).chain(tape(*"abcd")), x)[0])
    finally:
        torch.set_num_threads(before)


def test_gradients_pass_the_levels_and_not_the_choice() -> None:
    clean = images(2)
    x = off(clean, 30, 0).requires_grad_()
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((spread(x, clean, tape("a", "b"), gradient=True) * weights).sum(), x)[0]
    for b, t in enumerate((60, 12)):
        fixed = torch.autograd.grad((exact(Toy(t=t).chain(tape("a", "b")), x) * weights).sum(), x)[0]
        assert torch.allclose(found[b], fixed[b], rtol=1e-4, atol=1e-6) and fixed[b].abs().max() > 0


def test_only_a_selector_per_image_spreads_levels() -> None:
    with pytest.raises(SpecError, match="score-norm"):
        Toy().at_levels(images(1), tiny_denoiser(), LINEAR, tape("a"), lambda purifier: images(1))


def test_a_frozen_level_is_the_purifier_that_was_given_it() -> None:
    open_level = Toy(selector={"name": "anls", "levels": [5, 9]})  # type: ignore[arg-type]  # as YAML gives it
    with pytest.raises(SpecError, match="not chosen yet"):
        open_level.require_level()
    frozen = open_level.with_level(9)
    frozen.require_level()
    assert frozen == Toy(t=9) and frozen.identity() == Toy(t=9).identity() == Toy(t=9).noise_key
    assert frozen.identity() != open_level.identity() != Toy().identity()
    assert Toy(selector="score-norm").identity() != Toy().identity()  # type: ignore[arg-type]  # a name


def test_the_content_of_the_clean_side_is_hashed(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", features=np.zeros((4, 2), np.float16))
    np.savez(tmp_path / "two.npz", features=np.ones((4, 2), np.float16))
    hashes = [
        Toy(selector={"name": "anls", "clean": str(tmp_path / name)}).weight_hashes()  # type: ignore[arg-type]
        for name in ("one.npz", "two.npz")
    ]
    assert list(hashes[0]) == ["selector/clean"] and hashes[0] != hashes[1]
    assert Toy().weight_hashes() == {}
    shipped = Toy(selector="anls").weight_hashes()  # type: ignore[arg-type]  # a name
    assert shipped.keys() == {"selector/clean"}
