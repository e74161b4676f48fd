"""A defence that is known to be broken, so that anyone can see whether the checks notice one."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from udc_ray.purifiers.simple import _Filter
from udc_ray.tape import Tape, normal_like


class BrokenControl(_Filter):
    """Adds noise and rounds to a few grey levels: it stops attacks by hiding the gradient, and nothing else.

    Rounding has the gradient zero everywhere (shattered gradients, Athalye et al. 2018), so an attack in mode
    ``full`` stands still and the defence looks strong; in mode ``bpda``, or by queries, it falls. Not to be used.
    """

    name: ClassVar[str] = "broken-control"
    grad_modes: ClassVar[frozenset[str]] = frozenset({"bpda", "full"})
    random: ClassVar[bool] = True

    levels: int = Field(default=16, ge=2, le=256)
    """Grey levels that are left."""
    sigma: float = Field(default=4.0, gt=0, le=255)
    """Standard deviation of the noise, in /255 units of the image."""

    def apply(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        noise = normal_like(tape.generators(self.noise_key), x_BCHW)
        noisy = (x_BCHW + self.sigma / 255 * noise).clamp(0, 1)
        return (noisy * (self.levels - 1)).round() / (self.levels - 1)
