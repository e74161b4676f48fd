"""Diffraction against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udc_ray.data import optics, simulate

FOCAL_UM, GREEN_UM = 4000.0, 0.53


def test_a_slit_grating_equals_the_closed_form() -> None:
    """|F(s)|^2 = (w sinc(ws))^2 (sin(N pi p s) / sin(pi p s))^2 at s = u / (lambda f); Goodman, section 4.4."""
    pitch, width, slits = 100.0, 25.0, 9
    layout = optics.Layout(kind="stripes", pitch_um=pitch, open_ratio=width / pitch)
    dx = 0.25
    x = (np.arange(slits * pitch / dx) + 0.5) * dx - slits * pitch / 2
    aperture = np.broadcast_to(optics.stripes(layout, x[None, :], x[:1, None]), (1, x.size)).astype(float)
    u = np.linspace(-120, 120, 401)  # five orders at 21.2 um each
    kernel_row = optics.diffraction(np.repeat(aperture, x.size, axis=0), x, u, GREEN_UM, FOCAL_UM)
    measured = kernel_row[200] / kernel_row[200].max()  # v = 0
    s = u / (GREEN_UM * FOCAL_UM)
    comb = np.abs(np.exp(-2j * np.pi * np.outer(s, (np.arange(slits) - 4) * pitch)).sum(1)) / slits
    np.testing.assert_allclose(measured, (np.sinc(width * s) * comb) ** 2, atol=1e-4)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_orders_of_the_t_oled_lie_at_lambda_f_over_pitch(channel: int) -> None:
    toled = simulate.get_display("toled")
    assert toled.layout is not None
    wavelength = toled.camera.wavelengths_nm[channel] / 1000
    lens = toled.camera.model_copy(update={"f_number": 4.0})
    aperture, x = optics.pupil(toled.layout, lens, samples=2000)  # 0.5 um, so that the slit's width is met
    order_um = wavelength * FOCAL_UM / toled.layout.pitch_um
    u = np.arange(-10, 72) * 0.05 * order_um
    across = optics.diffraction(aperture, x, u, wavelength, FOCAL_UM)[10]
    peaks = [i for i in range(1, u.size - 1) if across[i] > across[i - 1] and across[i] > across[i + 1]]
    strong = [u[i] / order_um for i in peaks if across[i] > 0.1 * across.max()]
    np.testing.assert_allclose(strong, [0, 1, 2, 3], atol=0.05)
    slit = toled.layout.open_ratio / (1 - toled.layout.wire_um / toled.layout.pitch_um)
    heights = across[[10, 30, 50, 70]] / across[10]
    np.testing.assert_allclose(heights, np.sinc(slit * np.arange(4)) ** 2, rtol=0.05)


def test_an_open_stop_gives_the_airy_pattern() -> None:
    """(2 J1(v) / v)^2 with v = pi D r / (lambda f): Goodman, eq. 4-31; J1 from SciPy."""
    from scipy.special import j1

    camera = optics.Camera(focal_mm=4.0, f_number=4.0, pixel_um=1.0)
    clear = optics.Layout(kind="stripes", pitch_um=100, open_ratio=1.0)
    aperture, x = optics.pupil(clear, camera, samples=800)
    r = np.linspace(0, 8, 60)
    measured = optics.diffraction(aperture, x, r, GREEN_UM, FOCAL_UM)[0]
    v = np.pi * 1000 * np.maximum(r, 1e-9) / (GREEN_UM * FOCAL_UM)
    np.testing.assert_allclose(measured / measured[0], (2 * j1(v) / v) ** 2, atol=2e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), samples=st.sampled_from([8, 9, 16]), dx=st.floats(0.5, 4))
def test_diffraction_equals_the_fft_and_keeps_energy(seed: int, samples: int, dx: float) -> None:
    """On the grid u = k lambda f / (N dx) it is the DFT, so Parseval holds: the sum is N^2 times the open area."""
    aperture = np.random.default_rng(seed).integers(0, 2, (samples, samples)).astype(float)
    x = np.arange(samples) * dx
    u = np.fft.fftfreq(samples, dx) * GREEN_UM * FOCAL_UM
    measured = optics.diffraction(aperture, x, u, GREEN_UM, FOCAL_UM)
    np.testing.assert_allclose(measured, np.abs(np.fft.fft2(aperture)) ** 2, atol=1e-8)
    assert measured.sum() == pytest.approx(samples**2 * aperture.sum())


@given(red=st.floats(0.58, 0.7), blue=st.floats(0.4, 0.5))
@settings(max_examples=10, deadline=None)
def test_the_figure_scales_with_the_wavelength(red: float, blue: float) -> None:
    layout = optics.Layout(kind="pentile", pitch_um=54, open_ratio=0.23, wire_um=4)
    aperture, x = optics.pupil(layout, optics.Camera(focal_mm=4, f_number=8, pixel_um=5), samples=60)
    u = np.linspace(-50, 50, 21)
    one = optics.diffraction(aperture, x, u * red, red, FOCAL_UM)
    np.testing.assert_allclose(one, optics.diffraction(aperture, x, u * blue, blue, FOCAL_UM), rtol=1e-7, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(["stripes", "pentile"]), ratio=st.floats(0.05, 0.6), wire=st.floats(0, 0.08))
def test_the_open_ratio_is_met(kind: str, ratio: float, wire: float) -> None:
    layout = optics.Layout(kind=kind, pitch_um=100, open_ratio=ratio, wire_um=100 * wire)  # type: ignore[arg-type]  # drawn
    grid = (np.arange(1200) + 0.5) / 1200 * 100
    pattern = {"stripes": optics.stripes, "pentile": optics.pentile}[kind](layout, grid[None, :], grid[:, None])
    assert pattern.mean() == pytest.approx(ratio, abs=0.01)


def test_wires_that_leave_no_room_are_refused() -> None:
    layout = optics.Layout(kind="pentile", pitch_um=50, open_ratio=0.9, wire_um=10)
    with pytest.raises(ValueError, match="leave less than open_ratio"):
        optics.pentile(layout, np.zeros((1, 1)), np.zeros((1, 1)))


@pytest.mark.parametrize("name", ["toled", "poled", "zte"])
def test_shipped_kernels_are_psfs(name: str) -> None:
    kernel = simulate.get_display(name).kernel().double()
    assert kernel.shape[0] == 3 and kernel.shape[1] % 2 == 1
    assert kernel.min() >= 0
    np.testing.assert_allclose(kernel.sum(dim=(1, 2)), 1, atol=1e-5)
    middle = kernel.shape[1] // 2
    assert all(divmod(int(plane.argmax()), kernel.shape[2]) == (middle, middle) for plane in kernel)
    if name != "zte":  # a real aperture has a centrally symmetric figure, |F(-u)| = |F(u)|
        np.testing.assert_allclose(kernel, kernel.flip(1, 2), atol=1e-6)


def test_the_t_oled_spreads_sideways_only() -> None:
    """Vertical slits diffract horizontally; long red light goes further than blue."""
    kernel = simulate.get_display("toled").kernel().double().numpy()
    offset = np.arange(kernel.shape[1]) - kernel.shape[1] // 2
    across, along = kernel.sum(1) @ np.abs(offset), kernel.sum(2) @ np.abs(offset)
    assert (across > 2 * along).all()
    assert across[0] > across[1] > across[2]
