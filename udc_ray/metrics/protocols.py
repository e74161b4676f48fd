"""Named metric protocols: exactly how a restored image is compared with the truth.

The same output gets different numbers in different papers; the protocol is part of every record.
All of them work in the canonical domain, which is tone-mapped for the HDR data sets, as theirs is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from udc_ray.errors import DataError, SpecError, did_you_mean

Doubles = NDArray[np.float64]

PSNR_CAP = 100.0
"""dB. The PSNR of identical images is infinite, and one of them would make every mean infinite;
100 dB is a mean squared error of 1e-10, below what float32 images can resolve."""

SSIM_WINDOW = 11
"""Pixels. scikit-image's Gaussian window for sigma 1.5; smaller images have no SSIM."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Clamp to [0, 1], float64, PSNR with peak 1; SSIM after Wang et al. 2004 with a Gaussian window.

    A NaN in the output counts as the largest error that its pixel can have, so that an output
    that fell apart is neither lost from the mean nor turns it into NaN.

    Attributes:
        name: name in the spec and in the records.
        about: whose numbers it gives.
        bits: both images are rounded to this depth first (half to even, as NumPy does); None does not round.
        border: pixels that are cut off on every side before anything is measured.
        ssim_range: dynamic range that SSIM's constants are taken for.
        channels: number of channels that it is defined for; None for any.
        sigma: standard deviation of the SSIM window, in pixels.
    """

    name: str
    about: str
    bits: int | None = None
    border: int = 0
    ssim_range: float = 1.0
    channels: int | None = None
    sigma: float = 1.5

    def psnr(self, output: Tensor, truth: Tensor) -> list[float]:
        """PSNR in dB per image of C x H x W or B x C x H x W tensors, at most `PSNR_CAP`."""
        values = []
        for shown_CHW, truth_CHW in self.shown(output, truth):
            mse = float(np.mean((shown_CHW - truth_CHW) ** 2))
            values.append(min(PSNR_CAP, -10 * float(np.log10(mse))) if mse > 0 else PSNR_CAP)
        return values

    def ssim(self, output: Tensor, truth: Tensor) -> list[float | None]:
        """SSIM per image, mean over channels; None below 11 pixels in height or width."""
        return [self._ssim(shown_CHW, truth_CHW) for shown_CHW, truth_CHW in self.shown(output, truth)]

    def shown(self, output: Tensor, truth: Tensor) -> list[tuple[Doubles, Doubles]]:
        """Output and truth of every image as they are compared: in [0, 1], float64, C x H x W.

        Args:
            output: unclamped output, C x H x W or B x C x H x W.
            truth: of the same shape, in [0, 1].

        Raises:
            DataError: the protocol is not defined for such images.
        """
        if output.shape != truth.shape or output.ndim not in (3, 4):
            raise ValueError(f"need two C x H x W or B x C x H x W tensors, got {output.shape} and {truth.shape}")
        self.check(*output.shape[-3:])
        shown: Doubles = output.detach().cpu().double().numpy()
        real: Doubles = truth.detach().cpu().double().numpy()
        farthest = np.where(real < 0.5, 1.0, 0.0)
        shown = self._stored(np.where(np.isnan(shown), farthest, shown).clip(0.0, 1.0))
        real = self._stored(real)
        if shown.ndim == 3:
            shown, real = shown[None], real[None]
        return list(zip(shown, real, strict=True))

    def check(self, channels: int, height: int, width: int) -> None:
        """Refuse images that the protocol is not defined for.

        Raises:
            DataError: with what it wants.
        """
        if self.channels not in (None, channels):
            raise DataError(
                f"the protocol {self.name} measures images of {self.channels} channels, not of {channels}",
                "raw planes and RGB are mixed up",
                "use --set protocol=strict, which measures any",
            )
        if min(height, width) <= 2 * self.border:
            raise DataError(
                f"the protocol {self.name} cuts {self.border} pixels off every side; nothing is left of "
                f"{width} x {height}",
                change="use larger images, or --set protocol=strict",
            )

    def _stored(self, values: Doubles) -> Doubles:
        """The part that is measured, at the depth at which it is measured."""
        inner = values[..., self.border : values.shape[-2] - self.border, self.border : values.shape[-1] - self.border]
        if self.bits is None:
            return inner
        levels = 2**self.bits - 1
        rounded: Doubles = np.round(inner * levels) / levels
        return rounded

    def _ssim(self, shown_CHW: Doubles, truth_CHW: Doubles) -> float | None:
        if min(shown_CHW.shape[1:]) < SSIM_WINDOW:
            return None
        return float(
            structural_similarity(
                shown_CHW,
                truth_CHW,
                data_range=self.ssim_range,
                channel_axis=0,
                gaussian_weights=True,
                sigma=self.sigma,
                use_sample_covariance=False,
            )
        )


_ALL = (
    Protocol(name="strict", about="float, SSIM range 1, every pixel and channel; the default"),
    # Feng et al., CVPR 2021. Its SSIM is on 0..255 with the constants of that range: the same number.
    Protocol(name="discnet", about="DISCNet's on SYNTH: tone-mapped, 8 bit, no border", bits=8),
    # Its clamp of the linear output to 0..500 ends at 0.9995 tone-mapped, which 8 bit rounds to 1 as well.
    Protocol(name="udcunet", about="UDC-UNet's on SYNTH and MIPI-2022: tone-mapped, 8 bit, border 4", bits=8, border=4),
    # Float images without a data range had the range -1..1 in the scikit-image of its scorer.
    Protocol(
        name="udc2020", about="the UDC-2020 challenge's, BNUDC's and SRUDC's: float, SSIM range 2", ssim_range=2.0
    ),
    Protocol(name="sit", about="UDC-SIT's: four raw planes / 1023, float, SSIM range 1", channels=4),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def get_protocol(name: str) -> Protocol:
    """Look a protocol up by name."""
    if name not in PROTOCOLS:
        raise SpecError(f"unknown protocol {name!r}", change=did_you_mean(name, PROTOCOLS))
    return PROTOCOLS[name]
