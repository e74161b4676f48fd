"""The low-frequency attack: its bands against SciPy, its bound against scikit-image, its strength in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from doubles import Blur, Constant, Conv, Scale, images, make_target, restorer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.fft import dctn
from skimage.metrics import structural_similarity
from torch import Tensor

from udc_ray.attacks.low_frequency import FACTOR, SLACK, Bands, LowFrequency, _Search, dct_rows
from udc_ray.attacks.threat import l2_norm
from udc_ray.errors import DataError, SpecError


def ssim_distance(x_adv_CHW: Tensor, x_CHW: Tensor) -> float:
    options = {"data_range": 1, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5}
    pair = (image.double().numpy() for image in (x_adv_CHW, x_CHW))
    return 1 - float(structural_similarity(*pair, use_sample_covariance=False, **options))


def spectrum(image_CHW: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = dctn(image_CHW.double().numpy(), axes=(1, 2), norm="ortho")
    return found


def soft(count: int, side: int = 16, seed: int = 0) -> Tensor:
    """Images far from both ends of the box."""
    return 0.35 + 0.3 * Blur()(images(count, 3, side, side, seed=seed))


@settings(max_examples=25)
@given(height=st.integers(1, 20), width=st.integers(1, 20), share=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_the_bands_are_the_lowest_of_scipys_dct(height: int, width: int, share: float, seed: int) -> None:
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, height, width)))
    bands = Bands.of(image[None], share)
    rows, columns = bands.shape
    assert (rows, columns) == (math.ceil(share * height), math.ceil(share * width)) and min(rows, columns) >= 1
    z = bands.coefficients(image)
    assert np.allclose(z.numpy(), spectrum(image)[:, :rows, :columns], atol=1e-12)
    low = spectrum(bands.image(z))
    assert np.allclose(low[:, :rows, :columns], z.numpy(), atol=1e-12)
    low[:, :rows, :columns] = 0
    assert np.abs(low).max() < 1e-12
    assert np.allclose(dct_rows(height, height) @ dct_rows(height, height).T, np.eye(height), atol=1e-12)


@settings(max_examples=10)
@given(
    tau=st.floats(1e-3, 0.6),
    distance=st.sampled_from(["ssim", "l2"]),
    depth=st.sampled_from(["float", 8]),
    seed=st.integers(0, 99),
    bright=st.booleans(),
)
def test_every_stored_image_is_within_tau(tau: float, distance: Any, depth: Any, seed: int, bright: bool) -> None:
    x = images(2, 3, 12, 13, seed=seed) if bright else (soft(2, 12, seed) * 255).round() / 255
    attack = LowFrequency(tau=tau, distance=distance, depth=depth, rounds=2, iterations=4, rate=0.05)
    target, problem = make_target(attack, x)
    result = attack.perturb(target, problem)
    x_adv = result.x_adv_BCHW
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert depth == "float" or bool(((x_adv * 255).round() - x_adv * 255).abs().max() < 1e-3)
    for adv, clean in zip(x_adv, x, strict=True):
        reached = ssim_distance(adv, clean) if distance == "ssim" else float((adv.double() - clean).norm())
        assert reached <= tau
    assert target.score(x_adv).tolist() == pytest.approx(result.score_B.tolist(), rel=1e-6)
    assert bool((result.score_B >= target.score(x)).all())


@pytest.mark.parametrize("distance", ["ssim", "l2"])
def test_only_low_bands_differ_where_the_box_does_not_bind(distance: Any) -> None:
    x = soft(2)
    attack = LowFrequency(distance=distance, tau=0.02 if distance == "ssim" else 0.5, bands=0.25, iterations=10)
    target, problem = make_target(attack, x)
    x_adv = attack.perturb(target, problem).x_adv_BCHW
    assert x_adv.min() > 0 and x_adv.max() < 1
    for adv, clean in zip(x_adv, x, strict=True):
        waves = np.abs(spectrum(adv.double() - clean.double()))
        low = waves[:, :4, :4].copy()
        waves[:, :4, :4] = 0
        assert low.max() > 0.05 and waves.max() < 1e-5  # what is left is the rounding of float32


def test_before_clamping_only_low_bands_differ_where_it_does() -> None:
    x = images(3, 3, 16, 16)
    attack = LowFrequency(iterations=8, rounds=1, bands=0.25, rate=0.02)
    target, problem = make_target(attack, x)
    search = _Search(attack, target, problem)
    last_B = search.run(0)
    assert bool((last_B < search.best.score_B).any())  # the best is not always the last
    for z_Chw in search.z:
        waves = np.abs(spectrum(search.bands.image(z_Chw)))
        assert waves[:, :4, :4].max() > 0
        waves[:, :4, :4] = 0
        assert waves.max() < 1e-12
    stored, free = search._images(search.z)
    assert not bool(free.all()) and stored.equal(search.best.x_BCHW)


def test_what_goes_too_far_is_pulled_back_to_just_inside() -> None:
    x, tau = soft(3), 0.5
    attack = LowFrequency(distance="l2", tau=tau)
    target, problem = make_target(attack, x, objective="mse-clean")  # where every move is harm, and kept
    search = _Search(attack, target, problem)
    direction = [z_Chw / z_Chw.norm() for z_Chw in search.z]
    lengths = [3 * tau, tau * (1 - SLACK / 2), tau / 2]  # the second is inside by less than roundings may differ
    score_B = search._pull_back([length * z for length, z in zip(lengths, direction, strict=True)])
    shrunk = [low * z for low, z in zip((tau, tau, tau / 2), direction, strict=True)]
    assert torch.allclose(score_B, target.score(search._images(shrunk)[0]), rtol=3e-3)
    kept = l2_norm(search._images(search.z)[0] - x)
    assert bool((kept <= tau * (1 - 0.99 * SLACK)).all())


@pytest.mark.parametrize("objective", ["mse", "mse-clean"])
def test_on_a_linear_model_it_finds_the_worst_low_wave(objective: str) -> None:
    """|e + a delta|^2 over low delta of length tau is largest along Pe: |e|^2 + 2 a tau |Pe| + a^2 tau^2."""
    x, a, tau = soft(3), 0.8, 0.4
    generator = torch.Generator().manual_seed(0)
    truth = a * x + 0.05 * torch.randn(x.shape, generator=generator)
    attack = LowFrequency(distance="l2", tau=tau, bands=0.25, iterations=30)
    target, problem = make_target(attack, x, model=restorer(Scale(a)), truth_BCHW=truth, objective=objective)
    found = attack.perturb(target, problem).score_B * x[0].numel()
    error = (a * x - truth).double() if objective == "mse" else torch.zeros_like(x).double()
    low_B = torch.tensor([float(np.linalg.norm(spectrum(e)[:, :4, :4])) for e in error], dtype=torch.float64)
    worst = l2_norm(error).square() + 2 * a * tau * low_B + (a * tau) ** 2
    assert bool((found <= worst * (1 + 1e-6)).all()) and bool((found >= worst * 0.99).all())


def test_it_harms_more_than_random_low_waves_at_the_same_distance() -> None:
    x = soft(3)
    attack = LowFrequency(bands=0.25, tau=0.03)
    target, problem = make_target(attack, x, model=restorer(Conv()), objective="mse")
    result = attack.perturb(target, problem)
    reached = attack.reached(result.x_adv_BCHW, x)
    assert bool((reached > 0.8 * 0.03).all())
    bands, rng = Bands.of(x, 0.25), np.random.default_rng(0)
    for _ in range(10):
        noise = torch.stack([bands.image(torch.from_numpy(rng.normal(size=(3, 4, 4)))) for _ in x]).float()
        low, high = torch.zeros(3, 1, 1, 1), torch.full((3, 1, 1, 1), 0.3)
        for _ in range(12):
            size = (low + high) / 2
            inside = (attack.reached((x + size * noise).clamp(0, 1), x) <= reached)[:, None, None, None]
            low, high = torch.where(inside, size, low), torch.where(inside, high, size)
        assert bool((target.score((x + low * noise).clamp(0, 1)) < result.score_B).all())


def test_st_lpips_bounds_it_too_and_companions_change_nothing() -> None:
    side = 40
    x = Blur()(images(4, 3, side, side))
    attack = LowFrequency(distance="stlpips", tau=0.02, rounds=2, iterations=3)

    def attacked(rows: list[int]) -> Tensor:
        target, problem = make_target(attack, x[rows], image_ids=[f"i{row}" for row in rows])
        return attack.perturb(target, problem).x_adv_BCHW

    found = attacked([0, 1])
    assert found[1].equal(attacked([1, 3])[0]) and not found.equal(x[:2])
    alone = torch.cat([attack.reached(found[b : b + 1], x[b : b + 1]) for b in range(2)])
    assert bool((alone <= 0.02).all()) and bool((alone > 0.01).all())
    assert list(attack.weight_hashes()) == ["stlpips"] and LowFrequency().weight_hashes() == {}


def test_without_a_gradient_it_returns_an_image_that_counts() -> None:
    x = soft(2)
    attack = LowFrequency(rounds=2, iterations=3)
    target, problem = make_target(attack, x, model=restorer(Constant()))
    result = attack.perturb(target, problem)
    assert result.x_adv_BCHW.equal(x) and result.stop_reasons == ["iterations"] * 2
    assert [d.dead_steps for d in result.diagnostics] == [6, 6]
    assert result.grad_evals == [6, 6] and result.queries == [3, 3]  # the untouched image, and each round's end


def test_lambda_grows_until_it_holds_and_is_then_halved_in_by_ratio() -> None:
    attack = LowFrequency()
    target, problem = make_target(attack, soft(3))
    search = _Search(attack, target, problem)
    search.weight_B = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    tried = []
    for held in ([False, True, True], [True, True, True], [True, False, True], [False, False, True]):
        tried.append(search.weight_B.tolist())
        search._narrow(torch.tensor(held))
    tried.append(search.weight_B.tolist())
    first, second, third = zip(*tried, strict=True)
    assert first == pytest.approx([1, FACTOR, 2, math.sqrt(2), math.sqrt(math.sqrt(2) * 2)])
    assert second == pytest.approx([1, 1 / 4, 1 / 16, 1 / 8, math.sqrt(1 / 32)])
    assert third == (0,) * 5  # it has not passed tau yet, so that nothing is known


def test_its_name_says_its_bound_and_it_has_no_radius() -> None:
    assert LowFrequency().bound == "ssim<=0.05" and LowFrequency().eps is None
    assert LowFrequency(distance="l2").bound == "l2<=5"
    assert LowFrequency.build("attack", {"tau": "1/20", "distance": "stlpips"}).bound == "stlpips<=0.05"
    assert LowFrequency().threat.eps is None and LowFrequency(rounds=2, iterations=10).passes == 63
    with pytest.raises(SpecError, match="give tau"):
        LowFrequency.build("attack", {"eps": "8/255"})
    for wrong in ({"norm": "linf"}, {"distance": "lpips"}, {"tau": 0}, {"bands": 1.5}):
        with pytest.raises(SpecError):
            LowFrequency.build("attack", wrong)
    with pytest.raises(DataError, match="11 x 11"):
        LowFrequency().check_shape(3, 8, 64)
    with pytest.raises(DataError, match="RGB"):
        LowFrequency(distance="stlpips").check_shape(4, 64, 64)
    LowFrequency(distance="l2").check_shape(4, 1, 1)
