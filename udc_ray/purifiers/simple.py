"""Purifiers without a network: the cheap controls that any learned one has to beat."""

from __future__ import annotations

import io
import time
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from udc_ray.errors import DataError
from udc_ray.purifiers.base import Purifier, Trace
from udc_ray.tape import Tape, normal_like

_EXACT = frozenset({"bpda", "full"})


class _Filter(Purifier):
    """A purifier that calls no network: subclasses say what it does to the image."""

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Any) -> tuple[Tensor, Trace]:
        started = time.perf_counter()
        purified = self.apply(x_BCHW, tape)
        return purified, Trace(seconds=time.perf_counter() - started)

    def differentiable(self, x_BCHW: Tensor, tape: Tape, prepared: Any, mode: str) -> Tensor:
        if mode == "full" and self.offers(mode):
            return self.apply(x_BCHW, tape)
        return super().differentiable(x_BCHW, tape, prepared, mode)

    def apply(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        """Images B x C x H x W in [0, 1] to the same."""
        raise NotImplementedError("a filter implements apply")


class Identity(_Filter):
    """Does nothing; the control of the whole defence path."""

    name: ClassVar[str] = "identity"
    grad_modes: ClassVar[frozenset[str]] = _EXACT

    def apply(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        return x_BCHW


class Jpeg(_Filter):
    """JPEG there and back (Das et al. 2017), of the image rounded to 8 bits; RGB only."""

    name: ClassVar[str] = "jpeg"

    quality: int = Field(default=75, ge=1, le=100)
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"
    """Resolution of the colour planes."""

    def apply(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        if x_BCHW.shape[1] != 3:
            raise DataError(
                f"jpeg cannot store images of {x_BCHW.shape[1]} channels",
                "raw planes, or grey images",
                "leave the defence jpeg out, or use RGB data",
            )
        levels = (x_BCHW.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        decoded = np.stack([self._recode(image) for image in levels.permute(0, 2, 3, 1).numpy()])
        return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous().to(x_BCHW) / 255

    def _recode(self, image_HWC: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        file = io.BytesIO()
        Image.fromarray(image_HWC).save(file, "JPEG", quality=self.quality, subsampling=self.subsampling)
        with Image.open(file) as decoded:
            return np.array(decoded, dtype=np.uint8)


class Median(_Filter):
    """Median of a square window in each channel (Xu et al. 2018, feature squeezing); edges are mirrored."""

    name: ClassVar[str] = "median"
    grad_modes: ClassVar[frozenset[str]] = _EXACT

    size: int = Field(default=3, ge=1)
    """Edge of the window in pixels, odd."""

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("the window must have an odd edge, as 3 or 5")
        return size

    def apply(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        rows, columns = (self._mirrored(n).to(x_BCHW.device) for n in x_BCHW.shape[-2:])
        padded = x_BCHW[:, :, rows][:, :, :, columns]
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(-2).median(dim=-1).values

    def _mirrored(self, length: int) -> Tensor:
        """Indices of `length` pixels and half a window beyond them: ... 1 0 | 0 1 2 ... (edge repeated)."""
        reach = self.size // 2
        wave = torch.arange(-reach, length + reach) % (2 * length)
        return torch.minimum(wave, 2 * length - 1 - wave)


class GaussianNoise(_Filter):
    """Adds noise and takes none away: what a diffusion purifier's noise does by itself."""

    name: ClassVar[str] = "gaussian-noise"
    grad_modes: ClassVar[frozenset[str]] = _EXACT
    random: ClassVar[bool] = True

    sigma: float = Field(default=10.0, gt=0, le=255)
    """Standard deviation in /255 units of the image."""

    def apply(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        noise = normal_like(tape.generators(self.noise_key), x_BCHW)
        return (x_BCHW + self.sigma / 255 * noise).clamp(0, 1)
