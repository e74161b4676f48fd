"""RayS: the closest corner direction, found by flipping signs block by block (Chen & Gu 2020)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.decision import NOTHING, DecisionAttack, EventMachine, Phase
from udc_ray.attacks.query import QueryProblem
from udc_ray.params import Amount

TOLERANCE = 1e-3
"""Euclidean length to which the published code narrows a radius, along a direction of d signs."""


class RayS(DecisionAttack):
    """Ray searching attack, linf only.

    The direction is a vector of d signs, all +1 at first. On level s it is cut into 2^s blocks; the
    signs of one block after another are flipped. A flip that does not succeed at the radius of the
    best direction is given up after this one query; the radius of any other is bisected. A pass over
    blocks of one value that changed nothing ends the attack as ``converged``.

    At 8 bits a radius between two levels moves a keyed share of the values by the larger one, as all
    values together would leave nothing between the levels to search in.
    """

    name: ClassVar[str] = "rays"

    norm: Literal["linf"] = "linf"
    tolerance: Amount | None = Field(default=None, gt=0)
    """Width of the interval at which a bisection of the radius ends; 0.001 / sqrt(d) unless given."""

    def start(self, problem: QueryProblem) -> RaySMachine:
        """Begin on one image."""
        return RaySMachine(self, problem)


class RaySMachine(EventMachine):
    """RayS on one image."""

    SAVED: ClassVar[tuple[str, ...]] = (*EventMachine.SAVED, "signs", "radius", "level", "block", "changed")

    def __init__(self, attack: RayS, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack = attack
        self.phases["check"] = Phase(lambda: [self.at(self._farthest)], self._checked)
        self.signs = np.ones(self.x.size, dtype=np.int8)
        self.radius, self.level, self.block, self.changed = math.inf, 0, 0, False
        self.share_CHW = self.generator(0).random(self.x.shape) if attack.depth == 8 else NOTHING

    @property
    def _farthest(self) -> float:
        """Radius of the fast check; 1 takes every value to an end of the box."""
        return min(self.radius, 1.0)

    @property
    def _span(self) -> slice:
        width = -(-self.signs.size // 2**self.level)
        return slice(self.block * width, min((self.block + 1) * width, self.signs.size))

    def at(self, distance: float) -> Tensor:
        if self.attack.depth == "float":
            return super().at(distance)
        return self.stored(self.x + np.floor(255 * distance + self.share_CHW) / 255 * self.way_CHW)

    def begin(self) -> None:
        self._flip()

    def arrive(self) -> None:
        if self.high < self.radius:
            self.radius, self.changed = self.high, True
            self.signs = self.way_CHW.reshape(-1).astype(np.int8)
        self._next_block()

    def _flip(self) -> None:
        flipped = self.signs.copy()
        flipped[self._span] *= -1
        self.way_CHW = flipped.reshape(self.x.shape).astype(np.float64)
        self.phase = "check"

    def _checked(self, _: list[Tensor], hits: list[bool]) -> None:
        if hits[0]:
            tolerance = self.attack.tolerance or TOLERANCE / math.sqrt(self.x.size)
            self.bisect(self.way_CHW, high=self._farthest, tolerance=tolerance)
        else:
            self._next_block()

    def _next_block(self) -> None:
        if self._span.stop < self.signs.size:
            self.block += 1
        else:
            self.over = 2**self.level >= self.signs.size and not self.changed
            self.level, self.block, self.changed = self.level + 1, 0, False
        self._flip()
