"""What a gradient attack noticed on its way: facts by which a check can tell whether the attack itself worked.

All of it comes from what an attack has in hand at every step; nothing more is asked of the victim. Indicators of
Attack Failure (Pintor et al. 2022) are read from the same facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

LAST = 10
"""Steps at the end over which an attack that has converged hardly moves."""


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What was seen of one image in one restart.

    Attributes:
        steps: gradient steps that were observed.
        zero_share: largest share, over the steps, of the C*H*W gradient values that lead nowhere: exactly zero, or
            not finite; in [0, 1].
        dead_steps: steps whose gradient was zero everywhere, or had a value that is not finite.
        losses: best loss so far after the first step, a quarter, a half and three quarters of them, before the
            last ten, and at the end; -inf where no step had a loss that is a number.
        best_score: highest score of all iterates, the last one included.
        last_score: score of the last iterate.
        kept_score: score of the image that the attack returned.
    """

    steps: int
    zero_share: float
    dead_steps: int
    losses: tuple[float, float, float, float, float, float]
    best_score: float
    last_score: float
    kept_score: float

    @property
    def moved_last(self) -> float:
        """Share in [0, 1] of the rise of the best loss that came in the last ten steps; 0 where nothing rose.

        With ten steps or fewer every rise is a last one.
        """
        first, before, end = self.losses[0], self.losses[-2], self.losses[-1]
        rise = end - first
        if not math.isfinite(rise):
            return float(end > before)
        return (end - before) / rise if rise > 0 else 0.0

    @property
    def last_is_worse(self) -> bool:
        """Whether an attack that returns its last iterate would have lost what it had found."""
        return self.last_score < self.best_score

    @property
    def lost(self) -> bool:
        """Whether a better iterate was seen than the one that was returned."""
        return self.kept_score < self.best_score


@dataclass
class Observer:
    """Accumulates over the steps of an attack, on the device of the attack, for a whole micro-batch."""

    _best_B: list[Tensor] = field(default_factory=list)
    _score_B: Tensor | None = None
    _zero_B: Tensor | None = None
    _dead_B: Tensor | None = None
    _last_score_B: Tensor | None = None

    def observe(self, step: int, loss_B: Tensor, score_B: Tensor, gradient_BCHW: Tensor) -> None:
        """Note a gradient step.

        Args:
            step: its number, from 0; every step has to come, in order.
            loss_B: what the attack ascends; -inf for an image whose iterate does not count.
            score_B: as reported; -inf likewise.
            gradient_BCHW: as the victim gave it.
        """
        if step != len(self._best_B):
            raise ValueError(f"step {step} was observed after {len(self._best_B)} steps")
        loss_B = torch.nan_to_num(loss_B.detach().double(), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        flat = gradient_BCHW.detach().flatten(1)
        finite = flat.isfinite()
        zero_B = ((flat == 0) | ~finite).double().mean(dim=1)
        dead_B = ((zero_B == 1) | ~finite.all(dim=1)).long()
        self._best_B.append(loss_B if not self._best_B else torch.maximum(self._best_B[-1], loss_B))
        self._zero_B = zero_B if self._zero_B is None else torch.maximum(self._zero_B, zero_B)
        self._dead_B = dead_B if self._dead_B is None else self._dead_B + dead_B
        self._scored(score_B)

    def _scored(self, score_B: Tensor) -> None:
        score_B = torch.nan_to_num(score_B.detach().double(), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        self._last_score_B = score_B
        self._score_B = score_B if self._score_B is None else torch.maximum(self._score_B, score_B)

    def finish(self, kept_score_B: Tensor, last_score_B: Tensor | None = None) -> list[Diagnostics]:
        """Diagnostics of every image.

        Args:
            kept_score_B: scores of the images that the attack returns.
            last_score_B: score of an iterate after the last gradient step, where there is one.
        """
        if last_score_B is not None:
            self._scored(last_score_B)
        best, last, zero, dead = self._score_B, self._last_score_B, self._zero_B, self._dead_B
        if best is None or last is None or zero is None or dead is None:
            raise ValueError("no step was observed")
        steps = len(self._best_B)
        losses = torch.stack([self._best_B[mark] for mark in _marks(steps)], dim=1).tolist()
        rows = zip(losses, *(v.tolist() for v in (zero, dead, best, last, kept_score_B.double())), strict=True)
        return [
            Diagnostics(
                steps=steps,
                zero_share=share,
                dead_steps=count,
                losses=tuple(six),
                best_score=top,
                last_score=end,
                kept_score=kept,
            )
            for six, share, count, top, end, kept in rows
        ]


def _marks(steps: int) -> list[int]:
    """Steps, from 0, after which the best loss is read."""
    quarters = [max(1, math.ceil(steps * part / 4)) - 1 for part in (1, 2, 3)]
    return [0, *quarters, max(0, steps - 1 - LAST), steps - 1]
