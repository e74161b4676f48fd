"""The simulator against SciPy, closed forms and its own promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color

from udc_ray import rng
from udc_ray.data import domains, simulate
from udc_ray.errors import DataError

NAMES = ("toled", "poled", "zte")


def scene(seed: int, height: int, width: int, peak: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, height, width)).astype(np.float32)) * peak


def scipy_blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    pairs = zip(image.astype(np.float64), kernel.astype(np.float64), strict=True)
    return np.stack([scipy.ndimage.convolve(plane, k, mode="nearest") for plane, k in pairs])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    radius_y=st.integers(0, 7),
    radius_x=st.integers(0, 7),
)
def test_convolution_equals_scipy(seed: int, height: int, width: int, radius_y: int, radius_x: int) -> None:
    """Edge padding, a kernel that is not symmetric, and one larger than the image."""
    image = scene(seed, height, width).double()
    kernel = torch.from_numpy(np.random.default_rng(seed + 1).random((3, 2 * radius_y + 1, 2 * radius_x + 1)))
    expected = scipy_blur(image.numpy(), kernel.numpy())
    np.testing.assert_allclose(simulate.convolve(image, kernel).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["toled", "poled"])
def test_blur_acts_on_linear_light(name: str) -> None:
    display = simulate.get_display(name)
    linear = scene(0, 12, 10, peak=300)
    expected = scipy_blur(linear.numpy(), display.kernel().numpy())
    np.testing.assert_allclose(simulate.blur(linear, display).numpy(), expected, rtol=1e-5)


def test_the_zte_estimate_acts_on_tone_mapped_values() -> None:
    display = simulate.get_display("zte")
    linear = scene(0, 12, 10, peak=20)
    mapped = linear.numpy().astype(np.float64) / (linear.numpy() + 0.25)
    blurred = scipy_blur(mapped, display.kernel().numpy())
    np.testing.assert_allclose(simulate.blur(linear, display).numpy(), 0.25 * blurred / (1 - blurred), rtol=1e-4)
    assert simulate.canonical_domain(display, hdr=False) == "tonemapped"
    picture = scene(1, 4, 4)
    torch.testing.assert_close(
        domains.tonemap(simulate.to_linear(picture, display, hdr=False)), picture.clamp(max=500 / 500.25)
    )


@pytest.mark.parametrize("name", ["toled", "poled"])
def test_light_is_neither_made_nor_lost(name: str) -> None:
    display = simulate.get_display(name)
    lamp = torch.zeros(3, 120, 120)
    lamp[:, 60, 60] = 400
    seen = simulate.blur(lamp, display)
    np.testing.assert_allclose(seen.sum(dim=(1, 2)), 400, rtol=1e-5)
    np.testing.assert_allclose(seen[:, 12:109, 12:109] / 400, display.kernel(), atol=1e-7)  # the PSF itself
    flat = torch.full((3, 20, 30), 0.4)
    np.testing.assert_allclose(simulate.blur(flat, display), 0.4, rtol=1e-5)


@pytest.mark.parametrize(("name", "electrons"), [("toled", 3200.0), ("poled", 464.0), ("zte", 800.0)])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.8])
def test_noise_has_the_variance_of_shot_and_read_noise(name: str, electrons: float, level: float) -> None:
    """Variance y / e + (2.5 / e)^2 (Foi et al. 2008), e = electrons at white x transmission x longest exposure."""
    display = simulate.get_display(name)
    assert display.electrons == pytest.approx(electrons)
    clean = torch.full((3, 200, 200), level)
    noise = (simulate.add_noise(clean, display, rng.generator(0, "flat", "test")) - clean).double()
    variance = level / electrons + (2.5 / electrons) ** 2
    count = noise.numel()
    assert noise.var().item() == pytest.approx(variance, rel=5 * (2 / count) ** 0.5)  # five standard errors
    assert abs(noise.mean().item()) < 5 * (variance / count) ** 0.5


def test_exposure_is_compensated_no_further_than_full() -> None:
    base = simulate.get_display("toled").model_dump()
    clear = simulate.Display(**base | {"transmission": 1.0})
    assert clear.electrons == base["electrons_at_white"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hdr", [False, True])
def test_a_degraded_image_is_canonical(name: str, hdr: bool) -> None:
    display = simulate.get_display(name)
    degraded = simulate.degrade(scene(0, 16, 20, peak=50 if hdr else 1), display, rng.generator(0, "a", "t"), hdr=hdr)
    assert degraded.dtype == torch.float32
    assert degraded.shape == (3, 16, 20)
    assert degraded.min() >= 0 and degraded.max() <= 1
    on_grid = bool(((degraded * 255).round() / 255 == degraded).all())
    assert on_grid is not hdr


def test_the_generator_decides_the_noise() -> None:
    display = simulate.get_display("toled")
    shots = [simulate.degrade(scene(0, 8, 8), display, rng.generator(seed, "a", "t"), hdr=True) for seed in (0, 0, 1)]
    assert torch.equal(shots[0], shots[1])
    assert not torch.equal(shots[0], shots[2])


def test_a_lamp_has_a_halo_in_hdr_and_none_in_8_bit() -> None:
    """The reason for refusing 8-bit input: the same lamp, clipped to white, lights up nothing around it."""
    display = simulate.get_display("toled")
    night = torch.full((3, 97, 97), 0.01)
    halos = []
    for lamp in (300.0, 1.0):
        lit = night.clone()
        lit[:, 48, 48] = lamp
        halos.append(simulate.blur(lit, display)[:, 48, 68:88].mean() - 0.01)
    assert halos[0] > 0.01 > 10 * halos[1]


class TestSaturatedLight:
    def test_hdr_with_a_lamp_passes(self) -> None:
        simulate.require_light_source(torch.full((3, 2, 2), 4.0), hdr=True)

    @pytest.mark.parametrize(("peak", "hdr"), [(1.0, False), (0.7, True), (1.0, True)])
    def test_anything_else_is_refused_with_the_reason(self, peak: float, hdr: bool) -> None:
        with pytest.raises(DataError, match=f"peaks at {peak:.2f} times white") as caught:
            simulate.require_light_source(torch.full((3, 2, 2), peak), hdr=hdr)
        assert "8-bit" in caught.value.cause and "HDR" in caught.value.change


class TestDomains:
    def test_srgb_decoding_equals_skimage(self) -> None:
        image = np.random.default_rng(0).random((16, 16, 3))
        linear = color.rgb2xyz(image) @ np.linalg.inv(color.rgb2xyz(np.eye(3)))  # rows: X, Y, Z of the primaries
        np.testing.assert_allclose(domains.srgb_to_linear(torch.from_numpy(image)).numpy(), linear, atol=2e-6)

    @given(st.floats(0, 1))
    def test_srgb_is_inverted(self, value: float) -> None:
        x = torch.tensor([value], dtype=torch.float64)
        torch.testing.assert_close(domains.linear_to_srgb(domains.srgb_to_linear(x)), x, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("domain", ["srgb", "tonemapped", "linear"])
    def test_decode_inverts_encode(self, domain: domains.Domain) -> None:
        x = scene(0, 4, 4).double()
        torch.testing.assert_close(domains.decode(domains.encode(x, domain), domain), x, rtol=0, atol=1e-6)

    def test_the_tone_map_tops_out_at_500(self) -> None:
        assert domains.tonemap(torch.tensor([1e6, 500.0])).tolist() == pytest.approx([500 / 500.25] * 2)


class TestUserPsf:
    @pytest.mark.parametrize("shape", [(5, 7), (5, 5, 3)])
    def test_a_users_psf_is_normalised(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        values = np.random.default_rng(0).random(shape) * 9
        np.save(tmp_path / "mine.npy", values)
        display = simulate.get_display(str(tmp_path / "mine.npy"))
        expected = np.repeat(values[..., None], 3, 2) if len(shape) == 2 else values
        np.testing.assert_allclose(
            display.kernel().permute(1, 2, 0).numpy(), expected / expected.sum((0, 1)), rtol=1e-5
        )
        assert (display.name, display.domain) == ("mine", "srgb")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.ones((4, 5)), "shape"),
            (np.ones((5, 5, 2)), "shape"),
            (np.ones(5), "shape"),
            (np.full((3, 3), np.nan), "non-finite"),
            (-np.ones((3, 3)), "negative"),
            (np.zeros((3, 3)), "empty"),
            (np.full((3, 3), "x"), "no single array of numbers"),
            (np.full((3, 3), 1j), "no single array of numbers"),
            (np.full((3, 3), None), "not a .npy file"),
        ],
    )
    def test_wrong_psfs_are_refused(self, tmp_path: Path, values: np.ndarray, message: str) -> None:
        np.save(tmp_path / "mine.npy", values, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            simulate.get_display(str(tmp_path / "mine.npy"))

    @pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY"])
    def test_damaged_psf_files_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "mine.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read the PSF .*mine\.npy"):
            simulate.get_display(str(tmp_path / "mine.npy"))

    def test_an_archive_and_a_missing_file_are_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "mine.npy").open("wb") as stream:
            np.savez(stream, psf=np.ones((3, 3)))
        with pytest.raises(DataError, match="no single array"):
            simulate.get_display(str(tmp_path / "mine.npy"))
        with pytest.raises(DataError, match="cannot read the PSF"):
            simulate.get_display(str(tmp_path / "nowhere.npy"))

    def test_an_unknown_name_is_answered_with_a_suggestion(self) -> None:
        with pytest.raises(DataError, match="unknown display 'tolde'") as caught:
            simulate.get_display("tolde")
        assert "toled" in caught.value.change


def test_the_displays_hold_their_sources_numbers() -> None:
    """Zhou et al., CVPR 2021, Table 1."""
    toled, poled = simulate.get_display("toled"), simulate.get_display("poled")
    assert toled.layout is not None and poled.layout is not None
    assert (toled.layout.open_ratio, toled.transmission) == (0.21, 0.20)
    assert (poled.layout.open_ratio, poled.transmission) == (0.23, 0.029)
