"""Objectives against scikit-image and finite differences."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import mean_squared_error, structural_similarity
from torch import Tensor

import udc_ray
from udc_ray.attacks.objectives import OBJECTIVES, Objective, get_objective
from udc_ray.errors import DataError, SpecError
from udc_ray.metrics.perceptual import ShiftTolerant
from udc_ray.probe import position_invariant


def pair(dtype: torch.dtype, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    reference = torch.nn.functional.avg_pool2d(torch.rand(2, channels, 26, 29, generator=generator), 3, stride=1)
    output = reference + 0.15 * torch.randn(reference.shape, generator=generator)
    return output.to(dtype), reference.to(dtype)


def similarity(output: Tensor, reference: Tensor) -> float:
    value: float = structural_similarity(
        output.numpy(),
        reference.numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )
    return value


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_ssim_score_is_scikit_images_in_float64(channels: int) -> None:
    output, reference = pair(torch.float32, channels)
    wanted = [1 - similarity(o, r) for o, r in zip(output.clamp(0, 1).double(), reference.double(), strict=True)]
    assert get_objective("ssim").score(output, reference).tolist() == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
def test_the_ssim_loss_is_scikit_images_on_the_unclamped_output(dtype: torch.dtype, tolerance: float) -> None:
    output, reference = pair(dtype)
    assert output.max() > 1 or output.min() < 0
    wanted = [1 - similarity(o.double(), r.double()) for o, r in zip(output, reference, strict=True)]
    assert get_objective("ssim").loss(output, reference).tolist() == pytest.approx(wanted, abs=tolerance)


def test_the_mse_score_clamps_and_the_loss_does_not() -> None:
    output, reference = pair(torch.float64)
    output = output * 1.5
    clamped = [mean_squared_error(r.numpy(), o.clamp(0, 1).numpy()) for o, r in zip(output, reference, strict=True)]
    plain = [mean_squared_error(r.numpy(), o.numpy()) for o, r in zip(output, reference, strict=True)]
    objective = get_objective("mse")
    assert objective.score(output, reference).tolist() == pytest.approx(clamped, rel=1e-12)
    assert objective.loss(output, reference).tolist() == pytest.approx(plain, rel=1e-12)
    assert plain[0] > clamped[0]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda o: o.name)
def test_gradients_equal_finite_differences(objective: Objective) -> None:
    output, reference = pair(torch.float64)
    output.requires_grad_(True)
    gradient = torch.autograd.grad(objective.loss(output, reference).sum(), output)[0]
    direction = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-6 * direction
    with torch.no_grad():
        change = (objective.loss(output + step, reference) - objective.loss(output - step, reference)).sum() / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(change), rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda o: o.name)
def test_images_do_not_mix_and_no_damage_is_zero(objective: Objective) -> None:
    output, reference = pair(torch.float32)
    both = objective.score(output, reference)
    assert both.dtype == torch.float64 and both.shape == (2,)
    # A network's last bits may differ between batch sizes; what it does within one is tested below.
    tolerance = 1e-5 if objective.name.startswith("lpips") else 0.0
    assert both[1:].tolist() == pytest.approx(objective.score(output[1:], reference[1:]).tolist(), rel=tolerance, abs=0)
    assert objective.score(reference, reference).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert objective.reference == ("clean" if objective.name.endswith("clean") else "truth")


def test_an_unknown_objective_gets_a_suggestion() -> None:
    with pytest.raises(SpecError, match="mse"):
        get_objective("msee")


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda o: o.name)
def test_the_place_in_a_batch_does_not_change_a_bit(objective: Objective) -> None:
    reference = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    assert position_invariant(lambda x: objective.loss(x, reference)[:, None], (3, 32, 40), 4)


def test_lpips_is_the_shipped_distance_clamped_in_the_score_only() -> None:
    output, reference = pair(torch.float32)
    assert output.max() > 1 or output.min() < 0
    distance, objective = ShiftTolerant().load().requires_grad_(False), get_objective("lpips")
    assert objective.loss(output, reference).tolist() == pytest.approx(distance(output, reference).tolist(), rel=1e-5)
    clamped = distance(output.clamp(0, 1), reference)
    assert objective.score(output, reference).tolist() == pytest.approx(clamped.tolist(), rel=1e-5)
    assert not torch.allclose(objective.score(output, reference), objective.loss(output, reference).double())


@pytest.mark.parametrize("channels", [1, 4])
def test_lpips_refuses_what_is_no_rgb_image(channels: int) -> None:
    with pytest.raises(DataError, match=f"{channels} x 32 x 32") as caught:
        get_objective("lpips").loss(*torch.zeros(2, 1, channels, 32, 32))
    assert "RGB" in caught.value.cause


def test_objectives_say_beforehand_what_they_refuse() -> None:
    for name in OBJECTIVES:
        get_objective(name).check(3, 21, 21)
    get_objective("mse").check(4, 1, 1)
    get_objective("ssim").check(4, 11, 11)
    for name, shape in (("ssim", (3, 10, 20)), ("lpips", (3, 20, 64)), ("lpips-clean", (4, 64, 64))):
        with pytest.raises(DataError):
            get_objective(name).check(*shape)


def test_pgd_guided_by_lpips_does_more_perceptual_harm_than_pgd_on_mse() -> None:
    sample = udc_ray.samples(limit=1, display="toled", size=32)
    restorer = udc_ray.load("default")

    def harm(objective: str) -> float:
        (attacked,) = udc_ray.perturb(restorer, sample, "pgd", steps=3, objective=objective)
        truth = sample[0].truth
        assert truth is not None
        with torch.no_grad():
            return get_objective("lpips").score(restorer(attacked.degraded[None]), truth[None]).item()

    assert harm("lpips") > 1.2 * harm("mse")
    assert harm("lpips-clean") > harm("mse-clean")


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(DataError, match="11 x 11"):
        get_objective("ssim").loss(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))
