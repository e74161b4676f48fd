"""Random noise of equal size: the control that every attack has to beat."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.base import Attack
from udc_ray.attacks.projections import radius, unit_l2
from udc_ray.attacks.threat import Threat
from udc_ray.errors import SpecError
from udc_ray.tape import Tape, normal_like, signs_like


def scaled_noise(x_BCHW: Tensor, size_B: Tensor, norm: str, generators: list[np.random.Generator]) -> Tensor:
    """Images under noise of a given size each, clipped to the box.

    Args:
        x_BCHW: untouched images in [0, 1].
        size_B: radius per image, in units of the [0, 1] image.
        norm: ``linf``: every value moves by +-size; ``l2``: a Gaussian direction over all C*H*W values
            scaled to Euclidean norm size.
        generators: one per image.

    Returns:
        B x C x H x W in [0, 1].
    """
    if norm == "linf":
        direction = signs_like(generators, x_BCHW)
    elif norm == "l2":
        direction = unit_l2(normal_like(generators, x_BCHW))
    else:
        raise SpecError(f"there is no noise of norm {norm!r}", change="use linf or l2")
    size = size_B.to(x_BCHW.device, x_BCHW.dtype)[:, None, None, None]
    return (x_BCHW + size * direction).clamp(0, 1)


def draw_noise(x_BCHW: Tensor, threat: Threat, generators: list[np.random.Generator]) -> Tensor:
    """Images under noise as large as the threat allows, at its storage depth."""
    size_B = torch.full((len(x_BCHW),), radius(threat))
    return threat.project(scaled_noise(x_BCHW, size_B, threat.norm, generators), x_BCHW)


def control_noise(x_BCHW: Tensor, norm: str, size_B: Tensor, tape: Tape) -> Tensor:
    """The control of a cell: noise whose draws are the same in every cell, scaled to `size_B`.

    Args:
        x_BCHW: untouched images in [0, 1].
        norm: ``linf`` or ``l2``.
        size_B: radius per image.
        tape: stream ``control``; its sample is the number of the draw.
    """
    return scaled_noise(x_BCHW, size_B, norm, tape.generators(f"noise/{norm}"))


class Noise(Attack):
    """Random noise of size eps: linf +-eps signs, l2 a Gaussian direction; asks nothing of the victim."""

    name: ClassVar[str] = "noise"
    kind: ClassVar[Literal["control", "gradient", "query"]] = "control"

    def perturb(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        """Noisy images inside the threat."""
        return draw_noise(x_BCHW, self.threat, tape.generators(self.identity()))
