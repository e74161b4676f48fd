"""What an attack sees: a restorer, or a purifier and then the restorer; again a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udc_ray.models.base import Restorer
from udc_ray.purifiers.base import Purifier, Trace
from udc_ray.tape import Tape


@dataclass(frozen=True, kw_only=True)
class Victim:
    """f, or f after P.

    Attributes:
        restorer: f.
        purifier: P, or None when undefended.
        prepared: what `purifier.prepare` returned.
        grad_mode: how gradients pass P: ``full`` is exact, ``bpda`` takes the identity (Athalye et al. 2018);
            `Purifier.differentiable` knows the others.
    """

    restorer: Restorer
    purifier: Purifier | None = None
    prepared: Any = None
    grad_mode: str = "full"

    @property
    def random(self) -> bool:
        """Whether two evaluations can differ."""
        return self.purifier is not None and self.purifier.random

    @property
    def samples(self) -> int:
        """Evaluation draws per image."""
        return self.purifier.samples if self.purifier is not None and self.random else 1

    @property
    def copies(self) -> int:
        """Purifications that are combined into one output."""
        return self.purifier.copies if self.purifier is not None and self.random else 1

    @torch.no_grad()
    def evaluate(self, x_BCHW: Tensor, tape: Tape) -> tuple[Tensor, Trace]:
        """Restored images, unclamped, and what the purification cost."""
        outputs, traces = [], []
        for copy in range(self.copies):
            purified, trace = self.purified(x_BCHW, tape, copy)
            outputs.append(self.restorer(purified))
            traces.append(trace)
        return self._combined(outputs), sum(traces, Trace())

    @torch.no_grad()
    def purified(self, x_BCHW: Tensor, tape: Tape, copy: int = 0) -> tuple[Tensor, Trace]:
        """The image that the restorer receives, in one of the copies."""
        if self.purifier is None:
            return x_BCHW, Trace()
        return self.purifier.purify(x_BCHW, tape.copied(copy, self.copies), self.prepared)

    def differentiable(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        """Restored images, unclamped, with the gradient that the mode defines; a loss comes after the combination."""
        if self.purifier is None:
            return self.restorer(x_BCHW)
        outputs = []
        for copy in range(self.copies):
            own = tape.copied(copy, self.copies)
            outputs.append(self.restorer(self.purifier.differentiable(x_BCHW, own, self.prepared, self.grad_mode)))
        return self._combined(outputs)

    def _combined(self, outputs: list[Tensor]) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        stacked = torch.stack(outputs)
        if self.purifier is not None and self.purifier.combine == "median":
            # of an even count the two middle ones are averaged, so that no copy is preferred
            return stacked.quantile(0.5, dim=0)
        return stacked.mean(dim=0)
