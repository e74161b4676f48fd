"""Ball, box and grid; noise of equal size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from udc_ray.attacks.noise import control_noise, draw_noise, scaled_noise
from udc_ray.attacks.projections import random_point, steepest, unit_l2
from udc_ray.attacks.threat import Depth, Norm, Threat, l2_norm, linf_norm, to_grid
from udc_ray.errors import SpecError
from udc_ray.tape import Tape

VALUES = st.floats(0, 1, width=32)
PIXELS = arrays(np.float32, (2, 3, 4, 5), elements=VALUES)
WILD = arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-3, 3, width=32))


def tape(*ids: str, sample: int = 0) -> Tape:
    return Tape(seed=0, image_ids=ids, stream="control", sample=sample)


@settings(max_examples=80, deadline=None)
@given(
    clean=PIXELS,
    wild=WILD,
    norm=st.sampled_from(["linf", "l2"]),
    depth=st.sampled_from(["float", 8]),
    eps=st.floats(1e-3, 1.0),
)
def test_a_projection_is_inside_and_stays(
    clean: np.ndarray, wild: np.ndarray, norm: Norm, depth: Depth, eps: float
) -> None:
    threat, x = Threat(norm=norm, eps=eps, depth=depth), torch.from_numpy(clean)
    found = threat.project(torch.from_numpy(wild), x)
    size = linf_norm(found - x) if norm == "linf" else l2_norm(found - x)
    assert bool((size <= eps + 1e-6).all()) and found.min() >= 0 and found.max() <= 1
    assert torch.allclose(threat.project(found, x), found, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(clean=arrays(np.uint8, (1, 3, 4, 5)), wild=WILD.map(lambda a: a[:1]))
def test_eight_bits_round_towards_a_clean_image_on_the_grid(clean: np.ndarray, wild: np.ndarray) -> None:
    x = torch.from_numpy(clean.astype(np.float32) / np.float32(255))
    candidate = torch.from_numpy(wild).clamp(0, 1)
    stored = to_grid(candidate, x)
    levels = stored.double() * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert bool(((stored - x).abs() <= (candidate - x).abs() + 1e-6).all())
    assert (stored - candidate).abs().max() < 1 / 255 + 1e-6


def test_a_pixel_off_the_grid_is_not_pushed_past_its_clean_value() -> None:
    clean = torch.tensor([10.3, 10.3, 10.3]).div(255).reshape(1, 1, 1, 3)
    candidate = torch.tensor([10.5, 12.6, 10.1]).div(255).reshape(1, 1, 1, 3)
    assert (to_grid(candidate, clean) * 255).flatten().tolist() == pytest.approx([10.3, 12.0, 10.3], abs=1e-4)


def test_the_l2_projection_without_box_is_the_nearest_point() -> None:
    x, candidate = torch.full((1, 1, 1, 3), 0.5), torch.tensor([0.9, 0.6, 0.2]).reshape(1, 1, 1, 3)
    found = Threat(norm="l2", eps=0.2).project(candidate, x)
    nearest = minimize(
        lambda p: np.square(p - candidate.numpy().ravel()).sum(),
        np.full(3, 0.5),
        constraints={"type": "ineq", "fun": lambda p: 0.2**2 - np.square(p - 0.5).sum()},
    )
    assert found.flatten().tolist() == pytest.approx(nearest.x.tolist(), abs=1e-4)


def test_steps_are_of_size_one_and_survive_bad_gradients() -> None:
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient[1], gradient[2], gradient[3] = 0, 1e-30, torch.nan
    for norm in ("linf", "l2"):
        step = steepest(gradient, norm)
        assert bool(step.isfinite().all()) and not step[1].any() and not step[3].any()
        assert (linf_norm(step) if norm == "linf" else l2_norm(step))[[0, 2]].tolist() == pytest.approx([1, 1])
    assert unit_l2(gradient[:1]).double().norm() == pytest.approx(1.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_points_fill_the_ball_and_are_keyed(norm: Norm) -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    threat = Threat(norm=norm, eps=0.1)
    points = []
    for sample in range(200):
        points.append(random_point(x, threat, tape("a", "b", sample=sample).generators("n")) - x)
    delta = torch.cat(points)
    size = linf_norm(delta) if norm == "linf" else l2_norm(delta)
    assert size.max() <= 0.1 + 1e-7
    assert float((size <= 0.05).double().mean()) == pytest.approx(0.5**4, abs=0.04)  # volume goes as r^d
    alone = random_point(x[:1], threat, tape("b").generators("n"))
    assert alone[0].equal(random_point(x, threat, tape("a", "b").generators("n"))[1])


def test_equal_size_noise_has_that_size() -> None:
    x, sizes = torch.full((2, 3, 16, 16), 0.5), torch.tensor([0.02, 0.3])
    assert linf_norm(scaled_noise(x, sizes, "linf", tape("a", "b").generators("n")) - x).tolist() == pytest.approx(
        sizes.tolist(), abs=1e-6
    )
    noisy = scaled_noise(x, sizes, "l2", tape("a", "b").generators("n"))
    assert l2_norm(noisy - x).tolist() == pytest.approx(sizes.tolist(), abs=1e-5)
    signs = scaled_noise(x, sizes, "linf", tape("a", "b").generators("n")) - x
    assert signs.abs().amin(dim=(1, 2, 3)).tolist() == pytest.approx(sizes.tolist(), abs=1e-6)
    assert abs(float(signs[1].sign().mean())) < 0.15


def test_the_control_is_the_same_draw_at_every_size() -> None:
    x, size = torch.full((1, 3, 8, 8), 0.5), torch.tensor([0.1])
    for norm in ("linf", "l2"):
        one, two = (control_noise(x, norm, s, tape("a")) - x for s in (size, 2 * size))
        assert torch.allclose(2 * one, two, atol=1e-6)
        assert not torch.allclose(control_noise(x, norm, size, tape("a", sample=1)) - x, one, atol=1e-3)
    with pytest.raises(SpecError, match="l3"):
        control_noise(x, "l3", size, tape("a"))


def test_noise_needs_an_eps_and_obeys_the_box() -> None:
    x = images(2, 3, 8, 8)
    with pytest.raises(SpecError, match="eps"):
        draw_noise(x, Threat(norm="l2", eps=None), tape("a", "b").generators("n"))
    noisy = draw_noise(x, Threat(norm="linf", eps=0.5), tape("a", "b").generators("n"))
    assert noisy.min() == 0 and noisy.max() == 1
