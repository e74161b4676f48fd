from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from udc_ray.errors import DataError, SpecError
from udc_ray.metrics.protocols import PROTOCOLS, PSNR_CAP, get_protocol

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
    with pytest.raises(SpecError, match="did you mean discnet"):
        get_protocol("disknet")


def test_protocols_carry_the_name_they_are_found_by() -> None:
    assert set(PROTOCOLS) == {"strict", "discnet", "udcunet", "udc2020", "sit"}
    assert all(get_protocol(name).name == name and get_protocol(name).about for name in PROTOCOLS)


def _eight_bit(image: torch.Tensor) -> np.ndarray:
    return (np.clip(image.numpy().astype(np.float64), 0, 1) * 255).round().astype(np.uint8)


GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.mark.parametrize(("name", "border"), [("discnet", 0), ("udcunet", 4)])
def test_the_eight_bit_protocols_equal_scikit_image_on_stored_images(name: str, border: int) -> None:
    """Rounded to uint8, PSNR with peak 255, SSIM per channel on 0..255, both inside the border."""
    output, truth = _images(6, 2, 3, 30, 26)
    psnr, ssim = [], []
    for o, t in zip(output, truth, strict=True):
        inner = (slice(None), slice(border, 30 - border), slice(border, 26 - border))
        stored, real = _eight_bit(o)[inner], _eight_bit(t)[inner]
        psnr.append(peak_signal_noise_ratio(real, stored, data_range=255))
        planes = [
            structural_similarity(b.astype(np.float64), a.astype(np.float64), data_range=255, **GAUSSIAN)
            for a, b in zip(stored, real, strict=True)
        ]
        ssim.append(float(np.mean(planes)))
    protocol = get_protocol(name)
    np.testing.assert_allclose(protocol.psnr(output, truth), psnr, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.array(protocol.ssim(output, truth), dtype=float), ssim, rtol=0, atol=1e-9)


def test_discnets_ssim_equals_its_formula_written_out() -> None:
    """Equation 13 of Wang et al. with C1 = (0.01 * 255)^2, windows inside the image, mean over channels."""
    output, truth = _images(7, 1, 3, 20, 17)
    x, y = _eight_bit(output[0]).astype(np.float64), _eight_bit(truth[0]).astype(np.float64)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(values, (11, 11), axis=(1, 2))
        return np.einsum("chwij,ij->chw", windows, window)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    ssim = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    assert get_protocol("discnet").ssim(output, truth) == [pytest.approx(ssim.mean(), abs=1e-10)]


def test_udcunets_linear_clamp_at_500_is_the_clamp_at_1_in_eight_bit() -> None:
    truth = torch.full((1, 3, 20, 20), 500 / 500.25)
    assert get_protocol("udcunet").psnr(torch.ones(1, 3, 20, 20), truth) == [PSNR_CAP]


def test_the_official_ssim_of_2020_takes_range_2_on_float_images() -> None:
    output, truth = _images(8, 2, 3, 18, 22)
    expected = [
        structural_similarity(t, o, data_range=2, channel_axis=0, **GAUSSIAN)
        for o, t in zip(output.double().clamp(0, 1).numpy(), truth.double().numpy(), strict=True)
    ]
    protocol = get_protocol("udc2020")
    np.testing.assert_allclose(np.array(protocol.ssim(output, truth), dtype=float), expected, rtol=0, atol=1e-12)
    assert protocol.psnr(output, truth) == STRICT.psnr(output, truth)
    strict = STRICT.ssim(output, truth)
    assert all(wide is not None and s is not None and wide > s for wide, s in zip(expected, strict, strict=True))


def test_sit_measures_four_planes_and_nothing_else() -> None:
    output, truth = _images(9, 2, 4, 16, 16)
    sit = get_protocol("sit")
    psnr = [peak_signal_noise_ratio(t, o.clip(0, 1), data_range=1) for o, t in _doubles(output, truth)]
    ssim = [
        structural_similarity(t, o.clip(0, 1), data_range=1, channel_axis=0, **GAUSSIAN)
        for o, t in _doubles(output, truth)
    ]
    np.testing.assert_allclose(sit.psnr(output, truth), psnr, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.array(sit.ssim(output, truth), dtype=float), ssim, rtol=0, atol=1e-12)
    with pytest.raises(DataError, match="4 channels, not of 3"):
        sit.psnr(output[:, :3], truth[:, :3])


def _doubles(output: torch.Tensor, truth: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(output.double().numpy(), truth.double().numpy(), strict=True))


def test_the_border_leaves_no_ssim_below_the_window_and_refuses_what_it_swallows() -> None:
    output, truth = _images(10, 1, 3, 18, 40)
    assert get_protocol("udcunet").ssim(output, truth) == [None]
    assert np.isfinite(get_protocol("udcunet").psnr(output, truth)).all()
    with pytest.raises(DataError, match="nothing is left of 8 x 40"):
        get_protocol("udcunet").psnr(*_images(11, 1, 3, 40, 8))


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_nan_and_infinity_are_the_largest_errors_in_every_protocol(name: str) -> None:
    protocol = get_protocol(name)
    truth = torch.full((protocol.channels or 3, 20, 20), 0.2)  # 51 of 255
    for value in (float("nan"), float("inf")):
        assert protocol.psnr(torch.full_like(truth, value), truth) == [pytest.approx(-20 * np.log10(0.8), abs=1e-6)]
