"""Conversions between linear light and the canonical [0, 1] domains.

Budgets and perturbations live in a canonical domain: tone-mapped ``x / (x + 0.25)`` for
linear HDR data, sRGB for ordinary 8-bit photographs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Domain = Literal["srgb", "tonemapped", "linear"]

TONEMAP_KNEE = 0.25
"""Knee of the tone map of DISCNet (Feng et al., CVPR 2021)."""

LINEAR_MAX = 500.0
"""Saturation level of the linear HDR data sets."""


def srgb_to_linear(image: Tensor) -> Tensor:
    """Decode sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1)."""
    x = image.clamp(min=0)
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Encode linear light in [0, 1] to sRGB values in [0, 1]; values above 1 saturate."""
    x = linear.clamp(0, 1)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


def tonemap(linear: Tensor) -> Tensor:
    """Map linear light in [0, 500] to [0, 0.9995] by ``x / (x + 0.25)``."""
    x = linear.clamp(0, LINEAR_MAX)
    return x / (x + TONEMAP_KNEE)


def inverse_tonemap(image: Tensor) -> Tensor:
    """Undo `tonemap`: ``0.25 y / (1 - y)``, saturating at 500."""
    y = image.clamp(0, LINEAR_MAX / (LINEAR_MAX + TONEMAP_KNEE))
    return TONEMAP_KNEE * y / (1 - y)


def _copy(image: Tensor) -> Tensor:
    return image.clone()


def encode(linear: Tensor, domain: Domain) -> Tensor:
    """Take linear light into a canonical domain."""
    return {"srgb": linear_to_srgb, "tonemapped": tonemap, "linear": _copy}[domain](linear)


def decode(image: Tensor, domain: Domain) -> Tensor:
    """Take an image of a canonical domain back to linear light."""
    return {"srgb": srgb_to_linear, "tonemapped": inverse_tonemap, "linear": _copy}[domain](image)
