"""From a display layout to a point-spread function, by Fourier optics.

The display lies on the lens, so the pupil function is the display's aperture pattern inside
the lens stop. In the focal plane the intensity at offset u is ``|FT{pupil}(u / (lambda f))|^2``
(Goodman, Introduction to Fourier Optics, eq. 5-19), which is why every wavelength sees the same
figure at its own scale. The transform is evaluated exactly at the sensor's sample positions by
two matrix products, so nothing is resampled.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[np.float64]


class Layout(BaseModel):
    """The apertures of a transparent display; lengths in micrometres."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stripes", "pentile"]
    pitch_um: float = Field(gt=0)
    """Period of the pattern."""
    open_ratio: float = Field(gt=0, le=1)
    """Share of the area that lets light through, wiring included."""
    wire_um: float = Field(default=0.0, ge=0)
    """Width of the opaque wiring, one line per period and direction."""


class Camera(BaseModel):
    """The camera under the display."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    focal_mm: float = Field(gt=0)
    f_number: float = Field(gt=0)
    pixel_um: float = Field(gt=0)
    """Edge of one output pixel on the sensor, binning included."""
    wavelengths_nm: tuple[float, float, float] = (610.0, 530.0, 470.0)
    bandwidth_nm: float = Field(default=30.0, ge=0)
    """Full width over which each colour filter is averaged."""


def stripes(layout: Layout, x: Array, y: Array) -> NDArray[np.bool_]:
    """Vertical slits (T-OLED) of width ``open_ratio * pitch``, crossed by horizontal wires."""
    wire_share = layout.wire_um / layout.pitch_um
    slit = layout.open_ratio / (1 - wire_share)
    across = np.abs(np.mod(x / layout.pitch_um + 0.5, 1) - 0.5) < slit / 2
    along = np.mod(y / layout.pitch_um + 0.5, 1) >= wire_share
    return np.logical_and(across, along)


def _pentile_score(layout: Layout, x: Array, y: Array) -> Array:
    """How far a point lies from the sub-pixels: red and blue at the corners, green between."""
    u, v = np.mod(x / layout.pitch_um, 1), np.mod(y / layout.pitch_um, 1)
    score = np.full(np.broadcast_shapes(u.shape, v.shape), np.inf)
    sites = ((0, 0, 1.0), (0.5, 0.5, 1.12), (0.5, 0.0, 0.75), (0.0, 0.5, 0.75))
    for cu, cv, size in sites:
        du = np.abs(np.mod(u - cu + 0.5, 1) - 0.5)
        dv = np.abs(np.mod(v - cv + 0.5, 1) - 0.5)
        score = np.minimum(score, (du + dv) / size)  # diamonds, the usual pentile shape
    wire = layout.wire_um / layout.pitch_um / 2
    wired = (np.abs(np.mod(u + 0.25, 0.5) - 0.25) < wire) | (np.abs(np.mod(v + 0.25, 0.5) - 0.25) < wire)
    return np.where(wired, -1.0, score)


def pentile(layout: Layout, x: Array, y: Array) -> NDArray[np.bool_]:
    """Diamond pentile sub-pixels (P-OLED) and a wire grid; light passes through the rest.

    The size of the sub-pixels is solved for, so that the open ratio is met.
    """
    grid = (np.arange(512) + 0.5) / 512 * layout.pitch_um
    cell = _pentile_score(layout, grid[None, :], grid[:, None])
    threshold = np.quantile(cell, 1 - layout.open_ratio)
    if threshold < 0:
        raise ValueError(f"wires of {layout.wire_um} um leave less than open_ratio {layout.open_ratio}")
    return np.asarray(_pentile_score(layout, x, y) > threshold)


def pupil(layout: Layout, camera: Camera, samples: int = 1000) -> tuple[Array, Array]:
    """Sample the display inside the round lens stop.

    Returns:
        The amplitude transmission, samples x samples, and the coordinates in micrometres.
    """
    diameter = 1000 * camera.focal_mm / camera.f_number
    x = (np.arange(samples) + 0.5) / samples * diameter - diameter / 2
    pattern = {"stripes": stripes, "pentile": pentile}[layout.kind](layout, x[None, :], x[:, None])
    stop = x[None, :] ** 2 + x[:, None] ** 2 <= (diameter / 2) ** 2
    return (pattern & stop).astype(np.float64), x


def diffraction(aperture: Array, x_um: Array, u_um: Array, wavelength_um: float, focal_um: float) -> Array:
    """Focal-plane intensity ``|FT{aperture}|^2`` at the offsets `u_um`, K x K."""
    kernel = np.exp(-2j * np.pi * np.outer(u_um, x_um) / (wavelength_um * focal_um))
    field = kernel @ aperture @ kernel.T
    return np.asarray(field.real**2 + field.imag**2)


def psf(layout: Layout, camera: Camera, radius: int = 48, oversample: int = 3) -> NDArray[np.float32]:
    """Point-spread function of a display and a camera, per colour.

    Args:
        layout: the display.
        camera: the camera under it.
        radius: half-width of the result in output pixels.
        oversample: samples per pixel edge over which the sensor pixel is integrated.

    Returns:
        (2 radius + 1) x (2 radius + 1) x 3, RGB, non-negative, each channel sums to 1.
    """
    aperture, x = pupil(layout, camera)
    size = 2 * radius + 1
    u = (np.arange(size * oversample) + 0.5) / oversample - size / 2
    channels = []
    for centre in camera.wavelengths_nm:
        band = centre + camera.bandwidth_nm * np.array([-0.5, -0.25, 0.0, 0.25, 0.5])
        fine = sum(diffraction(aperture, x, u * camera.pixel_um, nm / 1000, camera.focal_mm * 1000) for nm in band)
        pixel = np.asarray(fine).reshape(size, oversample, size, oversample).mean(axis=(1, 3))
        channels.append(pixel / pixel.sum())
    return np.stack(channels, axis=-1).astype(np.float32)
