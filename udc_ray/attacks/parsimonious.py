"""Parsimonious attack: local search over blocks of +-eps, from coarse to fine (Moon, An and Song 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from udc_ray.attacks.machine import as_float32
from udc_ray.attacks.projections import radius
from udc_ray.attacks.query import QueryAttack, QueryProblem
from udc_ray.attacks.steps import StepMachine

SHARE = 8
"""The first block is an eighth of the image: 4 of 32 pixels, 32 of 256, and a power of two below it elsewhere."""


class Parsimonious(QueryAttack):
    """Combinatorial attack on the vertices of the linf ball.

    The set of blocks (one channel each) at +eps is grown and shrunk, the others are at -eps, where all begin. The
    blocks, in keyed random order, are searched `batch` at a time: every gain of an insertion is asked, the blocks are
    inserted greedily with lazy evaluation while they gain, and then removed in the same way. After all
    batches every block is split into four; a whole pass over single pixels that changed nothing ends the attack as
    ``converged``.
    """

    name: ClassVar[str] = "parsimonious"

    block: int | None = Field(default=None, ge=1)
    """Side of the first blocks in pixels, a power of two; unless given, the largest one that is at most an
    eighth of the shorter side."""
    batch: int = Field(default=64, ge=1)
    """Blocks that are searched together."""

    @model_validator(mode="after")
    def _check_norm(self) -> Parsimonious:
        if self.norm != "linf":
            raise ValueError("it searches the corners of the linf ball: use norm linf, or square or simba for l2")
        if self.block is not None and self.block & (self.block - 1):
            raise ValueError("blocks are halved down to one pixel: give block as a power of two, such as 4, 8 or 16")
        return self

    def first_block(self, height: int, width: int) -> int:
        """Side of the first blocks."""
        if self.block is not None:
            return self.block
        return 1 << (max(min(height, width) // SHARE, 1).bit_length() - 1)

    def start(self, problem: QueryProblem) -> ParsimoniousMachine:
        """Begin on one image."""
        return ParsimoniousMachine(self, problem)


class ParsimoniousMachine(StepMachine):
    """The local search on one image.

    A step is the start, the scan of a batch (one candidate for each block that could be flipped), or the second look
    at the block whose bound is highest.
    """

    SAVED = (
        *StepMachine.SAVED,
        *("signs_CHW", "score", "block", "sweep", "part", "phase", "scanning", "bounds", "fresh", "changed", "stuck"),
    )

    def __init__(self, attack: Parsimonious, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack, self.eps = attack, radius(attack.threat)
        self.shape: tuple[int, ...] = tuple(problem.x_CHW.shape)
        self.signs_CHW = np.full(self.shape, -1, dtype=np.int8)
        self.score = -math.inf
        """Score of the signs."""
        self.block = attack.first_block(*self.shape[1:])
        self.sweep, self.part = 0, 0
        """Passes over all blocks so far, and batch within this one."""
        self.phase: Literal["start", "insert", "remove"] = "start"
        self.scanning = True
        self.bounds = np.empty(0)
        """What a flip of each block of the batch gains at most; -inf where it is not to be flipped."""
        self.fresh = np.empty(0, dtype=bool)
        """Whether the bound is the gain that the present signs would have."""
        self.changed, self.stuck = False, False
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def grid(self) -> tuple[int, int, int]:
        """Channels, rows and columns of blocks."""
        channels, height, width = self.shape
        return channels, -(-height // self.block), -(-width // self.block)

    def members(self) -> np.ndarray:
        """Blocks of the batch."""
        if self._order[0] != self.sweep:
            self._order = (self.sweep, self.generator(self.sweep).permutation(math.prod(self.grid())))
        batch: np.ndarray = self._order[1][self.part * self.attack.batch : (self.part + 1) * self.attack.batch]
        return batch

    def window(self, member: int) -> tuple[int, slice, slice]:
        """The values of a block."""
        channel, row, column = (int(i) for i in np.unravel_index(member, self.grid()))
        side = self.block
        return channel, slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)

    def in_play(self) -> np.ndarray:
        """Places in the batch of the blocks that this phase may flip."""
        channel, row, column = np.unravel_index(self.members(), self.grid())
        signs = self.signs_CHW[channel, row * self.block, column * self.block]
        return np.flatnonzero(signs == (-1 if self.phase == "insert" else 1))

    def size(self) -> int:
        return len(self.in_play()) if self.phase != "start" and self.scanning else 1

    def candidate(self, place: int) -> Tensor:
        signs = self.signs_CHW.copy()
        if self.phase != "start":
            chosen = self.in_play()[place] if self.scanning else np.argmax(self.bounds)
            signs[self.window(int(self.members()[chosen]))] *= -1
        return self.project(self.x_CHW + as_float32(self.eps * signs).to(self.x_CHW.device))

    def finish(self, scores: Sequence[float]) -> None:
        if self.phase == "start":
            self.score, self.phase = scores[0], "insert"
            return
        gains = [_gain(score, self.score) for score in scores]
        if self.scanning:
            self.bounds = np.full(len(self.members()), -math.inf)
            self.fresh = np.ones(len(self.bounds), dtype=bool)
            self.bounds[self.in_play()] = gains
            self.scanning = False
        else:
            top = int(np.argmax(self.bounds))
            self.bounds[top], self.fresh[top] = gains[0], True
        self._greedy()

    def _greedy(self) -> None:
        """Flip blocks whose gain is known and the highest; on to the next phase when no bound is positive."""
        top = int(np.argmax(self.bounds))
        while self.bounds[top] > 0 and self.fresh[top]:
            self.signs_CHW[self.window(int(self.members()[top]))] *= -1
            self.score += float(self.bounds[top])
            self.bounds[top], self.changed = -math.inf, True
            self.fresh[:] = False
            top = int(np.argmax(self.bounds))
        if not self.bounds[top] > 0:
            self._leave()

    def _leave(self) -> None:
        """On to the next phase that has blocks in play: removal, the next batch, the next pass."""
        self.scanning, playing = True, False
        while not (playing or self.stuck):
            if self.phase == "insert":
                self.phase = "remove"
            else:
                self.phase, self.part = "insert", self.part + 1
                if self.part * self.attack.batch >= math.prod(self.grid()):
                    self._next_sweep()
            playing = len(self.in_play()) > 0

    def _next_sweep(self) -> None:
        """Smaller blocks; over single pixels again, in another order, as long as that changes something."""
        self.stuck = self.block == 1 and not self.changed
        self.block = max(self.block // 2, 1)
        self.sweep, self.part, self.changed = self.sweep + 1, 0, False

    def exhausted(self) -> bool:
        """Whether a whole pass over single pixels changed nothing."""
        return self.stuck


def _gain(score: float, before: float) -> float:
    """What a flip gains; an answer that is no number gains nothing."""
    gain = score - before
    return -math.inf if math.isnan(gain) else gain
