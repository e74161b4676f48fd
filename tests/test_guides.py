"""Guides: closed forms, second derivatives, and what they do to a chain; the network behind AGDM's and its files."""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from purifier_doubles import LINEAR, tiny_denoiser
from safetensors.torch import save_file
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

import udc_ray
from udc_ray.errors import DataError, WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.purifiers import guide_network
from udc_ray.purifiers.chain import Noise, guide_gradient, make_segments, run_chain
from udc_ray.purifiers.gradients import exact
from udc_ray.purifiers.guide_network import DEFAULT_GUIDE, GuideNetwork, GuideShape, layer_distances, load_guide
from udc_ray.purifiers.guides import FeatureGuide, MSEGuide, SSIMGuide
from udc_ray.purifiers.plan import Guide, Plan, Round
from udc_ray.tape import Tape
from udc_ray.training.crops import read_photograph
from udc_ray.training.guide import EPS, Pixels, worst_change

TINY = GuideShape(widths=(4, 4, 6), blocks=(1, 0, 1))
ABAR = 0.7
PHOTOGRAPHS = Path(udc_ray.__file__).parent / "data" / "samples" / "ldr"


def uniform(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny_network(dtype: torch.dtype = torch.float64) -> GuideNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GuideNetwork(TINY).to(dtype).eval().requires_grad_(False)


def guides(scale: float = 1.0) -> dict[str, Guide]:
    network = tiny_network()
    return {
        "mse": MSEGuide(scale=scale),
        "mse, not noised": MSEGuide(scale=scale, noised=False),
        "ssim": SSIMGuide(scale=scale),
        "agdm": FeatureGuide(scale=scale, network=network),
        "agdm, noised": FeatureGuide(scale=scale, network=network, noised=True),
        "agdm, sum": FeatureGuide(scale=scale, network=network, reduction="sum"),
    }


def noise_of(guide: Guide, seed: int, *shape: int) -> Tensor | None:
    return normal(seed, *shape) if guide.noised else None


# Distances


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_in_closed_form(reduction: str) -> None:
    """In numpy, from the formula of the paper; a level for each image."""
    x_t, reference, noise = normal(0, 2, 3, 4, 5), uniform(1, 2, 3, 4, 5), normal(2, 2, 3, 4, 5)
    guide = MSEGuide(scale=1.0, reduction=reduction)  # type: ignore[arg-type]  # a parameter is a str
    for b, abar in enumerate((0.3, 0.9)):
        noised = math.sqrt(abar) * (2 * reference[b].numpy() - 1) + math.sqrt(1 - abar) * noise[b].numpy()
        wanted = np.mean((x_t[b].numpy() - noised) ** 2) * (20 if reduction == "sum" else 1)
        levels = torch.tensor([0.3, 0.9], dtype=torch.float64)[:, None, None, None]
        assert float(guide.distance(x_t, reference, levels, noise)[b]) == pytest.approx(wanted, rel=1e-12)
        assert float(guide.distance(x_t, reference, abar, noise)[b]) == pytest.approx(wanted, rel=1e-12)


def test_mse_without_noise_compares_with_the_mean_of_the_noised_reference() -> None:
    reference = uniform(0, 1, 3, 4, 4)
    x_t = math.sqrt(ABAR) * (2 * reference - 1)
    assert float(MSEGuide(scale=1.0, noised=False).distance(x_t, reference, ABAR, None)) < 1e-30


def test_ssim_is_that_of_scikit_image_on_zero_one() -> None:
    x_t, reference, noise = normal(0, 1, 3, 20, 17) / 2, uniform(1, 1, 3, 20, 17), normal(2, 1, 3, 20, 17)
    noised = math.sqrt(ABAR) * (2 * reference - 1) + math.sqrt(1 - ABAR) * noise
    wanted = structural_similarity(
        ((x_t[0] + 1) / 2).numpy(),
        ((noised[0] + 1) / 2).numpy(),
        data_range=1,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    found = SSIMGuide(scale=1.0).distance(x_t, reference, ABAR, noise)
    assert float(found) == pytest.approx(1 - wanted, abs=1e-9)


class Affine(nn.Module):
    """Features that a reader can compute: two fixed maps of the pixels, at two resolutions, lengths as they come."""

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        return [3 * x_BCHW, x_BCHW[..., ::2, ::2] - 1]


@pytest.mark.parametrize("noised", [False, True])
def test_agdm_sums_layers_and_averages_positions(noised: bool) -> None:
    x_t, reference, noise = normal(0, 2, 3, 4, 6), uniform(1, 2, 3, 4, 6), normal(2, 2, 3, 4, 6)
    u = (x_t.numpy() / math.sqrt(ABAR) + 1) / 2
    r = reference.numpy() + (math.sqrt((1 - ABAR) / ABAR) / 2 * noise.numpy() if noised else 0)
    squared = (u - r) ** 2
    wanted = 9 * squared.sum(1).mean((1, 2)) + squared[..., ::2, ::2].sum(1).mean((1, 2))
    guide = FeatureGuide(scale=1.0, network=Affine(), noised=noised)
    found = guide.distance(x_t, reference, ABAR, noise if noised else None)
    assert np.allclose(found.numpy(), wanted, rtol=1e-12)
    summed = FeatureGuide(scale=1.0, network=Affine(), noised=noised, reduction="sum")
    assert np.allclose(summed.distance(x_t, reference, ABAR, noise).numpy(), 24 * wanted, rtol=1e-12)


@pytest.mark.parametrize("name", guides())
def test_a_distance_is_of_one_image(name: str) -> None:
    guide, x_t, reference = guides()[name], normal(0, 3, 3, 12, 12), uniform(1, 3, 3, 12, 12)
    noise = noise_of(guide, 2, 3, 3, 12, 12)
    together = guide.distance(x_t, reference, ABAR, noise)
    assert together.shape == (3,) and bool((together > 0).all())
    for b in range(3):
        one = slice(b, b + 1)
        alone = guide.distance(x_t[one], reference[one], ABAR, None if noise is None else noise[one])
        assert float(alone) == pytest.approx(float(together[b]), rel=1e-12)


@pytest.mark.parametrize("name", ["mse", "ssim", "agdm, noised"])
def test_a_noised_reference_needs_noise(name: str) -> None:
    with pytest.raises(ValueError, match="needs noise"):
        guides()[name].distance(normal(0, 1, 3, 12, 12), uniform(1, 1, 3, 12, 12), ABAR, None)


def test_defaults_are_those_of_the_papers() -> None:
    gdmp, agdm = MSEGuide(scale=1.0), FeatureGuide(scale=1.0, network=Affine())
    assert (gdmp.form, gdmp.noised, gdmp.calls) == (SSIMGuide(scale=1.0).form, True, 0) == ("mean", True, 0)
    assert (agdm.form, agdm.noised, agdm.calls, agdm.reduction) == ("eps", False, 2, "mean")


# Derivatives


@pytest.mark.parametrize("name", guides())
def test_first_and_second_derivatives_in_both_images(name: str) -> None:
    guide, size = guides()[name], 11 if name == "ssim" else 5
    noise = noise_of(guide, 2, 1, 3, size, size)
    x_t = normal(0, 1, 3, size, size).div(2).requires_grad_()
    reference = uniform(1, 1, 3, size, size).requires_grad_()

    def distance(x: Tensor, r: Tensor) -> Tensor:
        return guide.distance(x, r, ABAR, noise)

    assert torch.autograd.gradcheck(distance, (x_t, reference), fast_mode=True)
    assert torch.autograd.gradgradcheck(distance, (x_t, reference), fast_mode=True)


@pytest.mark.parametrize("name", guides())
def test_the_pull_is_the_central_difference_of_the_distance(name: str) -> None:
    guide, shape = guides()[name], (2, 3, 12, 13)
    x_t, reference, noise = normal(0, *shape) / 2, uniform(1, *shape), noise_of(guide, 2, *shape)
    pull = guide_gradient(guide, x_t, reference, ABAR, noise)
    assert not pull.requires_grad
    for seed in range(3, 6):
        direction = normal(seed, *shape)
        ends = [guide.distance(x_t + h * direction, reference, ABAR, noise).sum() for h in (1e-5, -1e-5)]
        assert float((pull * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("name", "scale"), [("mse", 3000), ("ssim", 60), ("agdm", 5), ("agdm, noised", 5)])
def test_the_exact_gradient_of_a_guided_chain_is_autograd_s(name: str, scale: float) -> None:
    """Three steps, clip off, the guide with its second derivatives; leaving them out is seen.

    In the mean form the last step is not guided, and in the first one x_t moves with the reference.
    """
    guide, x = guides(scale)[name], uniform(0, 1, 3, 12, 12) * 0.4 + 0.3
    plan = Plan(rounds=(Round(timesteps=(90, 60, 30), eta=1.0, clip_x0=False),), guide=guide)
    weight = normal(1, 1, 3, 12, 12)

    def gradient(of: str) -> Tensor:
        leaf = x.clone().requires_grad_()
        segments = make_segments(plan, smooth_denoiser, LINEAR, noise(), guide_gradient=of != "no guide")
        if of == "autograd":
            state: tuple[Tensor, ...] = (leaf,)
            for segment in segments:
                state = segment(state, leaf)
            purified = state[0]
        else:
            purified = exact(segments, leaf)
        return torch.autograd.grad((purified * weight).sum(), leaf)[0]

    whole, reference, cut = gradient("exact"), gradient("autograd"), gradient("no guide")
    assert float((whole - reference).norm() / reference.norm()) < 1e-10
    assert float((cut - reference).norm() / reference.norm()) > 1e-3


def smooth_denoiser(x_t: Tensor, t: int) -> Tensor:
    kernel = torch.full((3, 1, 3, 3), 1 / 9, dtype=x_t.dtype)
    return torch.tanh(x_t - conv2d(x_t, kernel, padding=1, groups=3)) * (1 + t / 1000)


def noise(name: str = "guided") -> Noise:
    return Noise(tape=Tape(seed=0, image_ids=("a",), stream="eval"), name=name)


# What a guide does to a chain


@cache
def three_steps(scale: float) -> tuple[Tensor, float]:
    """A chain with AGDM's guide at eta 0: its result, and D between this and the input."""
    x = uniform(0, 1, 3, 24, 24, dtype=torch.float32)
    guide = FeatureGuide(scale=scale, network=load_guide())
    plan = Plan(rounds=(Round(timesteps=LINEAR.timesteps(80, 3), eta=0.0),), guide=guide)
    result = run_chain(make_segments(plan, tiny_denoiser(), LINEAR, noise()), x)
    with torch.no_grad():
        return result, float(guide.distance(2 * result - 1, x, 1.0, None))


def test_agdm_changes_the_result_and_lowers_its_distance_at_eta_0() -> None:
    (free, without), (guided, with_guide) = three_steps(0.0), three_steps(3000.0)
    assert float((guided - free).abs().max()) > 1e-2
    assert with_guide < 0.9 * without


def test_scale_0_is_the_chain_without_a_guide() -> None:
    x = uniform(0, 1, 3, 24, 24, dtype=torch.float32)
    plan = Plan(rounds=(Round(timesteps=LINEAR.timesteps(80, 3), eta=0.0),))
    assert torch.equal(three_steps(0.0)[0], run_chain(make_segments(plan, tiny_denoiser(), LINEAR, noise()), x))


# The network


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), scale=st.floats(-3, 3))
def test_features_have_at_most_unit_length_at_any_size(height: int, width: int, scale: float) -> None:
    network, x = tiny_network(torch.float32), scale * uniform(height, 1, 3, height, width, dtype=torch.float32)
    maps = network.features(x)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, math.ceil(height / step), math.ceil(width / step))
        for channels, step in zip(TINY.widths, (1, 2, 4), strict=True)
    ]
    for found in maps:
        assert float(found.square().sum(1).max()) <= 1 + 1e-5
    assert network(x).shape == x.shape


def test_features_of_zero_length_are_zero_and_smooth() -> None:
    zero = torch.zeros(1, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.equal(guide_network.unit_length(zero), zero)
    assert torch.autograd.gradgradcheck(guide_network.unit_length, zero)


def test_the_head_sees_nothing_but_the_features() -> None:
    network = tiny_network()
    x, other = uniform(0, 1, 3, 8, 8), uniform(1, 1, 3, 8, 8)
    assert torch.equal(network(x), network.restore(network.features(x)))
    same = [f * 0 + 0.5 for f in network.features(x)]
    assert torch.equal(network.restore(same), network.restore([f * 0 + 0.5 for f in network.features(other)]))
    assert not torch.equal(network(x), network(other))


def test_raw_planes_are_refused() -> None:
    with pytest.raises(DataError, match="takes RGB images, these have 4 channels"):
        tiny_network().features(uniform(0, 1, 4, 8, 8))


# Its files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(
        {k: v.contiguous() for k, v in tiny_network(torch.float32).state_dict().items()}, tmp_path / "guide.safetensors"
    )
    card = {"network": TINY.model_dump(), "sha256": file_sha256(tmp_path / "guide.safetensors"), "what": "guide"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    return tmp_path


def test_a_guide_is_what_its_files_say(folder: Path) -> None:
    state = torch.random.get_rng_state()
    network = load_guide(guide_network.guide_folder(str(folder)), "cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    x = uniform(0, 1, 3, 9, 9, dtype=torch.float32)
    assert torch.equal(network(x), tiny_network(torch.float32)(x))


def test_the_shipped_guide_loads_and_is_small() -> None:
    network = load_guide()
    assert guide_network.guide_folder(None) == DEFAULT_GUIDE
    assert (DEFAULT_GUIDE / "guide.safetensors").stat().st_size <= 5e6
    card = json.loads((DEFAULT_GUIDE / "card.json").read_text())
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    figures = card["separation"]
    for name in ("other_over_noise", "other_over_adversarial"):
        assert figures["trained"][name] > 2 * figures["twin"][name] > 0


def test_the_shipped_guide_separates_what_differs_from_noise_and_attacks() -> None:
    """On shipped photographs, which it never saw: how many times farther another one is, against pixels."""
    photographs = [read_photograph(path).image for path in sorted(PHOTOGRAPHS.glob("*.png"))[:4]]
    x = avg_pool2d(torch.stack(photographs)[..., :132, :132], 5, stride=2)
    start = EPS * (2 * uniform(0, *x.shape, dtype=torch.float32) - 1)
    times = {}
    for name, network in (("guide", load_guide()), ("pixels", Pixels())):
        anchor = network.features(x)
        delta = worst_change(network, x, anchor, torch.ones(len(anchor)), start, 8)
        other, noisy, attacked = (
            float(layer_distances(network.features(image), anchor).sum())
            for image in (x.roll(1, 0), x + 25 / 255 * normal(1, *x.shape).float(), x + delta)
        )
        times[name] = (other / noisy, other / attacked)
    assert times["guide"][0] > 3 * times["pixels"][0]
    assert times["guide"][1] > 0.4 * times["pixels"][1]  # trained without the adversarial term: 0.15


@pytest.mark.parametrize("name", ["guide.safetensors", "card.json"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        load_guide(folder)


def test_weights_of_another_guide(folder: Path) -> None:
    shutil.copy(DEFAULT_GUIDE / "guide.safetensors", folder)
    with pytest.raises(WeightsError, match="not the file that card.json describes"):
        load_guide(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "x"}, "sha256"),
        ({"network": {"widths": [1, 2]}}, "network.widths"),
        ({"network": {"depth": 3}}, "network.depth"),
        ({"network": {"widths": [4, 4, 8], "blocks": [1, 0, 1]}}, "guide.safetensors"),
        (None, "not JSON"),
    ],
    ids=["hash", "widths", "unknown key", "other shape", "no json"],
)
def test_a_card_that_cannot_be_used(folder: Path, change: dict[str, object] | None, message: str) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text("{" if change is None else json.dumps(card | change))
    with pytest.raises(WeightsError, match=message):
        load_guide(folder)
