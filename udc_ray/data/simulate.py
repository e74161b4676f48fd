"""The under-display camera simulator: what a sensor behind a display records of a scene.

    y = clip(PSF * x), in linear light with edge padding; the display takes light away and the
    camera compensates by exposure, then by gain; signal-dependent and read noise follow (Foi et
    al. 2008); the result is tone-mapped or encoded to 8 bit.

The ZTE estimate is a PSF of tone-mapped values, so there the blur acts on ``x / (x + 0.25)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from udc_ray import rng
from udc_ray.data import domains, optics
from udc_ray.data.psf_files import read_values
from udc_ray.errors import DataError, did_you_mean
from udc_ray.location import is_uri, local, place

HERE = Path(__file__).parent


class Display(BaseModel):
    """A display over a camera, as in ``displays.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str = ""
    layout: optics.Layout | None = None
    psf: str | None = None
    """Path or URI of a .npy PSF, H x W x 3, in place of a layout."""
    camera: optics.Camera
    transmission: float = Field(gt=0, le=1)
    max_exposure_gain: float = Field(ge=1)
    electrons_at_white: float = Field(gt=0)
    read_noise_electrons: float = Field(ge=0)
    domain: Literal["srgb", "tonemapped"]
    """Where the PSF acts: ``srgb`` means linear light, then sRGB; ``tonemapped`` on the tone-mapped values."""

    @property
    def electrons(self) -> float:
        """Electrons at linear 1.0 once the exposure has been lengthened as far as it goes."""
        return self.electrons_at_white * min(1.0, self.transmission * self.max_exposure_gain)

    def kernel(self) -> Tensor:
        """The PSF, 3 x K x K, each channel sums to 1."""
        return _kernel(self)


@cache
def _kernel(display: Display) -> Tensor:
    if display.psf is not None:
        return load_psf(psf_file(display.psf))
    if display.layout is None:
        raise DataError(f"display {display.name} has neither layout nor psf", change="give one of them")
    return torch.from_numpy(optics.psf(display.layout, display.camera)).permute(2, 0, 1).contiguous()


def psf_file(psf: str) -> Path:
    """The file of a display's PSF on this machine; one behind a URI is fetched."""
    return local(psf) if is_uri(psf) else HERE / psf


def load_psf(path: Path) -> Tensor:
    """Read a user's PSF (.npy, K x K or K x K x 3, K odd) and normalise each channel to sum 1."""
    values = read_values(path)
    values = values.astype(np.float32)
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    if values.ndim != 3 or values.shape[2] != 3 or values.shape[0] % 2 == 0 or values.shape[1] % 2 == 0:
        raise DataError(f"PSF {path} has shape {values.shape}", "a PSF is K x K or K x K x 3 with odd K")
    if not np.isfinite(values).all() or (values < 0).any() or (values.sum((0, 1)) <= 0).any():
        raise DataError(f"PSF {path} has negative, empty or non-finite channels", change="give light intensities")
    return torch.from_numpy(values / values.sum((0, 1))).permute(2, 0, 1).contiguous()


def load_displays() -> dict[str, Display]:
    """Read the shipped displays."""
    table = yaml.safe_load((HERE / "displays.yaml").read_text())
    camera = table["camera"]
    return {name: Display(name=name, camera=camera, **entry) for name, entry in table["displays"].items()}


def get_display(name: str) -> Display:
    """Look a display up by name, or make one from a user's PSF file (``*.npy``, acting on linear light)."""
    displays = load_displays()
    if name in displays:
        return displays[name]
    if name.partition("?")[0].endswith(".npy"):
        psf = name if is_uri(name) else _resolved(name)
        load_psf(psf_file(psf))  # a file that cannot be used is refused now, not by the first image
        # Known by its stem, as the name keys the noise, which must not depend on where the file lies.
        return Display(**displays["toled"].model_dump() | {"layout": None, "psf": psf, "name": place(psf).stem})
    raise DataError(f"unknown display {name!r}", change=did_you_mean(name, [*displays, "PATH.npy"]))


def _resolved(name: str) -> str:
    try:
        return str(Path(name).expanduser().resolve())
    except (OSError, RuntimeError) as error:  # a link that leads to itself, ~user without a home
        raise DataError(f"cannot read the PSF {name}: {error}", "a wrong path", "check the path") from error


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve 3 x H x W with 3 x K x K, edge padding, by FFT; same size as `image`."""
    ry, rx = kernel.shape[1] // 2, kernel.shape[2] // 2
    padded = torch.nn.functional.pad(image[None].double(), (rx, rx, ry, ry), mode="replicate")[0]
    size = [padded.shape[1] + kernel.shape[1] - 1, padded.shape[2] + kernel.shape[2] - 1]
    spectrum = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernel.double(), s=size)
    full: Tensor = torch.fft.irfft2(spectrum, s=size)
    height, width = image.shape[1:]
    return full[:, 2 * ry : 2 * ry + height, 2 * rx : 2 * rx + width].to(image.dtype)


def blur(linear: Tensor, display: Display) -> Tensor:
    """Light on the sensor without noise: 3 x H x W linear in, linear out (clipped to [0, 500])."""
    if display.domain == "tonemapped":
        mapped = convolve(domains.tonemap(linear), display.kernel())
        return domains.inverse_tonemap(mapped)
    return convolve(linear, display.kernel()).clamp(0, domains.LINEAR_MAX)


def add_noise(linear: Tensor, display: Display, generator: np.random.Generator) -> Tensor:
    """Shot and read noise in linear light, then the gain that restores the exposure."""
    read = display.read_noise_electrons / display.electrons
    sigma = (linear / display.electrons + read**2).sqrt()
    return linear + sigma * rng.normal(generator, *linear.shape)


def quantise(image: Tensor) -> Tensor:
    """Round [0, 1] to the 8-bit grid."""
    return (image.clamp(0, 1) * 255).round() / 255


def degrade(linear: Tensor, display: Display, generator: np.random.Generator, *, hdr: bool) -> Tensor:
    """Photograph a linear scene through a display.

    Args:
        linear: 3 x H x W, linear light; [0, 1] for 8-bit photographs, up to 500 for HDR.
        display: the display.
        generator: keyed source of the sensor noise.
        hdr: tone-map the result; otherwise encode to the 8-bit grid.

    Returns:
        3 x H x W in [0, 1], in `canonical_domain(display, hdr)`.
    """
    noisy = add_noise(blur(linear, display), display, generator)
    image = domains.encode(noisy, canonical_domain(display, hdr))
    return image if hdr else quantise(image)


def canonical_domain(display: Display, hdr: bool) -> domains.Domain:
    """Domain in which images behind this display are stored and attacked."""
    return "tonemapped" if hdr or display.domain == "tonemapped" else "srgb"


def to_linear(image: Tensor, display: Display, *, hdr: bool) -> Tensor:
    """Read a clean image as linear light.

    An 8-bit photograph behind a tone-mapped PSF is taken as an already tone-mapped picture, as the
    figures were that the ZTE estimate comes from.
    """
    decoder: Callable[[Tensor], Tensor] = (
        torch.clone if hdr else lambda x: domains.decode(x, canonical_domain(display, hdr=False))
    )
    return decoder(image)


def require_light_source(linear: Tensor, hdr: bool) -> None:
    """Refuse to promise halos from an image that cannot hold a light source."""
    if not hdr or float(linear.max()) <= 1.0:
        raise DataError(
            f"the image peaks at {float(linear.max()):.2f} times white, so no saturated light source is in it",
            "an 8-bit image clips every lamp to white: diffraction then spreads too little energy for a halo",
            "give linear HDR data (.npz or .npy, values above 1)",
        )
