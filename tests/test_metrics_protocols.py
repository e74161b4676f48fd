from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from udc_ray.errors import SpecError
from udc_ray.metrics.protocols import PSNR_CAP, get_protocol

STRICT = get_protocol("strict")


def _images(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    truth = rng.random(shape, dtype=np.float32)
    output = truth + rng.normal(0, 0.3, shape).astype(np.float32)
    return torch.from_numpy(output), torch.from_numpy(truth)


@given(seed=st.integers(0, 10_000), channels=st.sampled_from([1, 3, 4]))
@settings(max_examples=20, deadline=None)
def test_psnr_equals_scikit_image_on_the_clamped_image(seed: int, channels: int) -> None:
    output, truth = _images(seed, 2, channels, 9, 12)
    expected = [
        peak_signal_noise_ratio(t.astype(np.float64), o.clip(0, 1).astype(np.float64), data_range=1)
        for o, t in zip(output.numpy(), truth.numpy(), strict=True)
    ]
    np.testing.assert_allclose(STRICT.psnr(output, truth), expected, rtol=0, atol=1e-9)


def test_ssim_equals_scikit_image_per_image_with_the_gaussian_window() -> None:
    output, truth = _images(1, 2, 3, 16, 20)
    expected = []
    for o, t in zip(output.double().clamp(0, 1).numpy(), truth.double().numpy(), strict=True):
        planes = [
            structural_similarity(a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
            for a, b in zip(o, t, strict=True)
        ]
        expected.append(float(np.mean(planes)))
    np.testing.assert_allclose(np.array(STRICT.ssim(output, truth), dtype=float), expected, rtol=0, atol=1e-12)


def test_one_image_without_a_batch_axis_is_one_value() -> None:
    output, truth = _images(2, 3, 12, 12)
    assert STRICT.psnr(output, truth) == STRICT.psnr(output[None], truth[None])
    assert len(STRICT.ssim(output, truth)) == 1


def test_each_image_is_measured_alone() -> None:
    output, truth = _images(3, 3, 3, 12, 12)
    assert STRICT.psnr(output, truth)[1] == STRICT.psnr(output[1], truth[1])[0]
    assert STRICT.ssim(output, truth)[1] == STRICT.ssim(output[1], truth[1])[0]


def test_identical_images_are_capped_and_stay_finite() -> None:
    _, truth = _images(4, 1, 3, 12, 12)
    assert STRICT.psnr(truth, truth) == [PSNR_CAP]
    assert STRICT.ssim(truth, truth) == [pytest.approx(1.0)]


def test_below_the_window_there_is_no_ssim_but_a_psnr() -> None:
    output, truth = _images(5, 1, 3, 10, 40)
    assert STRICT.ssim(output, truth) == [None]
    assert np.isfinite(STRICT.psnr(output, truth)).all()


def test_nan_counts_as_the_largest_error_of_its_pixel() -> None:
    truth = torch.full((3, 11, 11), 0.25)
    broken = torch.full((3, 11, 11), float("nan"))
    assert STRICT.psnr(broken, truth) == [pytest.approx(-10 * np.log10(0.75**2))]
    assert STRICT.psnr(torch.full_like(truth, float("inf")), truth) == STRICT.psnr(broken, truth)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="C x H x W"):
        STRICT.psnr(torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_an_unknown_protocol_suggests_one() -> None:
    with pytest.raises(SpecError, match="did you mean strict"):
        get_protocol("strikt")
