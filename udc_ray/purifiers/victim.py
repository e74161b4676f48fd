"""What an attack sees: a restorer, or a purifier and then the restorer; again a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from udc_ray.errors import SpecError
from udc_ray.models.base import Restorer
from udc_ray.purifiers.base import Purifier, Trace
from udc_ray.tape import Tape

GradMode = Literal["full", "blind", "bpda"]


@dataclass(frozen=True, kw_only=True)
class Victim:
    """f, or f after P.

    Attributes:
        restorer: f.
        purifier: P, or None when undefended.
        prepared: what `purifier.prepare` returned.
        grad_mode: how gradients pass P: ``bpda`` takes the identity (Athalye et al. 2018);
            ``full`` is exact and, so far, for the undefended restorer.
    """

    restorer: Restorer
    purifier: Purifier | None = None
    prepared: Any = None
    grad_mode: GradMode = "full"

    @property
    def random(self) -> bool:
        """Whether two evaluations can differ."""
        return self.purifier is not None and self.purifier.random

    @property
    def samples(self) -> int:
        """Evaluation draws per image."""
        return self.purifier.samples if self.purifier is not None and self.random else 1

    @torch.no_grad()
    def evaluate(self, x_BCHW: Tensor, tape: Tape) -> tuple[Tensor, Trace]:
        """Restored images, unclamped, and what the purification cost."""
        purified, trace = self.purified(x_BCHW, tape)
        return self.restorer(purified), trace

    @torch.no_grad()
    def purified(self, x_BCHW: Tensor, tape: Tape) -> tuple[Tensor, Trace]:
        """The image that the restorer receives."""
        if self.purifier is None:
            return x_BCHW, Trace()
        return self.purifier.purify(x_BCHW, tape, self.prepared)

    def differentiable(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        """Restored images, unclamped, with the gradient that the mode defines."""
        if self.purifier is None:
            return self.restorer(x_BCHW)
        if self.grad_mode != "bpda":
            raise SpecError(
                f"no gradient of mode {self.grad_mode!r} passes the purifier {self.purifier.name!r}",
                change="use grad_mode bpda",
            )
        purified, _ = self.purified(x_BCHW.detach(), tape)
        # x - x is exactly 0, so the restorer gets the purified image to the bit, as in `evaluate`
        return self.restorer(purified + (x_BCHW - x_BCHW.detach()))
