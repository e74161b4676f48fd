"""Diffusion purifiers whose level is chosen: before the run, or for every image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from purifier_doubles import tiny_denoiser, tiny_prior
from torch import Tensor

from udc_ray.errors import SpecError
from udc_ray.places import with_places
from udc_ray.purifiers.diffusion import DDIM, DDPM
from udc_ray.purifiers.selectors import ANLS, ScoreNorm
from udc_ray.spec import parse_spec
from udc_ray.tape import Tape

PRIOR = tiny_denoiser()


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 13, 16, generator=torch.Generator().manual_seed(1))


def tape(*ids: str) -> Tape:
    return Tape(seed=0, image_ids=ids, stream="eval")


def spread(x_BCHW: Tensor, keyed: Tape, **params: int) -> tuple[DDIM, list[int]]:
    """A purifier that gives these images different levels, and the levels."""
    norms = ScoreNorm(draws=1).norms(x_BCHW, PRIOR, PRIOR.schedule, keyed).sort().values.tolist()
    selector = ScoreNorm(levels=(10, 40), thresholds=((norms[1] + norms[2]) / 2,), draws=1)
    indices = selector.choose(x_BCHW, PRIOR, PRIOR.schedule, keyed).tolist()
    assert sorted(indices) == [0, 0, 1, 1]
    return DDIM(selector=selector, steps=2, **params), [(10, 40)[index] for index in indices]


def test_every_image_is_purified_as_by_the_purifier_of_its_level() -> None:
    x, keyed, before = images(4), tape(*"abcd"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        purifier, levels = spread(x, keyed)
        purified, trace = purifier.purify(x, keyed, PRIOR)
        for b, t in enumerate(levels):
            assert torch.equal(purified[b], DDIM(t=t, steps=2).purify(x, keyed, PRIOR)[0][b])
    finally:
        torch.set_num_threads(before)
    assert trace.nfe == 2 + 1


@pytest.mark.parametrize("mode", ["full", "bpda", "surrogate-1", "forward-noise"])
def test_gradients_are_those_of_the_levels(mode: str) -> None:
    x, keyed = images(4), tape(*"abcd")
    purifier, levels = spread(x, keyed)

    def gradient(one: DDIM) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        output = one.differentiable(leaf, keyed, PRIOR, mode)
        return output.detach(), torch.autograd.grad(output.square().sum(), leaf)[0]

    output, found = gradient(purifier)
    for b, t in enumerate(levels):
        fixed_output, fixed = gradient(DDIM(t=t, steps=2))
        assert torch.allclose(output[b], fixed_output[b], atol=1e-6)
        assert torch.allclose(found[b], fixed[b], rtol=1e-4, atol=1e-6) and fixed[b].abs().max() > 0


@pytest.mark.parametrize("mode", ["full", "bpda", "forward-noise"])
def test_a_level_that_is_to_be_chosen_has_to_be_known(mode: str) -> None:
    purifier = DDPM(selector=ANLS(), steps=2)
    with pytest.raises(SpecError, match="not chosen yet"):
        purifier.purify(images(1), tape("a"), PRIOR)
    with pytest.raises(SpecError, match="not chosen yet"):
        purifier.differentiable(images(1).requires_grad_(), tape("a"), PRIOR, mode)
    frozen = purifier.with_level(7)
    assert frozen == DDPM(t=7, steps=2) and frozen.noise_key == DDPM(t=7, steps=2).noise_key
    assert frozen.purify(images(1), tape("a"), PRIOR)[1].nfe == 2


def test_what_decides_the_level_is_hashed(tmp_path: Path) -> None:
    folder = str(tiny_prior(tmp_path))
    fixed, chosen = DDIM(weights=folder), DDIM(weights=folder, selector=ANLS())
    assert chosen.weight_hashes().keys() - fixed.weight_hashes().keys() == {"selector/clean"}


def test_the_clean_side_of_a_selector_is_a_path_of_the_spec() -> None:
    entries = [{"name": "ddim", "selector": {"name": "anls", "clean": "here"}}, {"name": "ddpm", "selector": "anls"}]
    moved = with_places(parse_spec({"attacks": ["pgd"], "defenses": entries}), lambda path: f"/there/{path}")
    assert moved.defenses[0].params["selector"] == {"name": "anls", "clean": "/there/here"}
    assert moved.defenses[1].params["selector"] == "anls"
