"""Named metric protocols: exactly how a restored image is compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from udc_ray.errors import SpecError, did_you_mean

Doubles = NDArray[np.float64]

PSNR_CAP = 100.0
"""dB. The PSNR of identical images is infinite, and one of them would make every mean infinite;
100 dB is a mean squared error of 1e-10, below what float32 images can resolve."""

SSIM_WINDOW = 11
"""Pixels. scikit-image's Gaussian window for sigma 1.5; smaller images have no SSIM."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Clamp to [0, 1], float64, range 1; SSIM after Wang et al. 2004 with a Gaussian window.

    A NaN in the output counts as the largest error that its pixel can have, so that an output
    that fell apart is neither lost from the mean nor turns it into NaN.

    Attributes:
        name: name in the spec and in the records.
        sigma: standard deviation of the SSIM window, in pixels.
    """

    name: str
    sigma: float = 1.5

    def psnr(self, output: Tensor, truth: Tensor) -> list[float]:
        """PSNR in dB per image of C x H x W or B x C x H x W tensors, at most `PSNR_CAP`."""
        values = []
        for shown_CHW, truth_CHW in _pairs(output, truth):
            mse = float(np.mean((shown_CHW - truth_CHW) ** 2))
            values.append(min(PSNR_CAP, -10 * float(np.log10(mse))) if mse > 0 else PSNR_CAP)
        return values

    def ssim(self, output: Tensor, truth: Tensor) -> list[float | None]:
        """SSIM per image, mean over channels; None below 11 pixels in height or width."""
        return [self._ssim(shown_CHW, truth_CHW) for shown_CHW, truth_CHW in _pairs(output, truth)]

    def _ssim(self, shown_CHW: Doubles, truth_CHW: Doubles) -> float | None:
        if min(shown_CHW.shape[1:]) < SSIM_WINDOW:
            return None
        return float(
            structural_similarity(
                shown_CHW,
                truth_CHW,
                data_range=1.0,
                channel_axis=0,
                gaussian_weights=True,
                sigma=self.sigma,
                use_sample_covariance=False,
            )
        )


def _pairs(output: Tensor, truth: Tensor) -> list[tuple[Doubles, Doubles]]:
    """Image pairs in float64, the output clamped as it would be stored."""
    if output.shape != truth.shape or output.ndim not in (3, 4):
        raise ValueError(f"need two C x H x W or B x C x H x W tensors, got {output.shape} and {truth.shape}")
    shown: Doubles = output.detach().cpu().double().numpy()
    real: Doubles = truth.detach().cpu().double().numpy()
    farthest = np.where(real < 0.5, 1.0, 0.0)
    shown = np.where(np.isnan(shown), farthest, shown).clip(0.0, 1.0)
    if shown.ndim == 3:
        shown, real = shown[None], real[None]
    return list(zip(shown, real, strict=True))


PROTOCOLS: dict[str, Protocol] = {"strict": Protocol(name="strict")}


def get_protocol(name: str) -> Protocol:
    """Look a protocol up by name."""
    if name not in PROTOCOLS:
        raise SpecError(f"unknown protocol {name!r}", change=did_you_mean(name, PROTOCOLS))
    return PROTOCOLS[name]
