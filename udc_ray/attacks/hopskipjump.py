"""HopSkipJump: the normal of the boundary estimated from events, then a step along it (Chen et al. 2020)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.decision import (
    AT_ONCE,
    LEAST_MOVE,
    NOTHING,
    BoundaryMachine,
    DecisionAttack,
    Phase,
    as_array,
    euclidean,
)
from udc_ray.attacks.query import QueryProblem
from udc_ray.attacks.threat import Norm
from udc_ray.params import Amount

FIRST_SPREAD = 0.1
"""Euclidean size of the probes of the first turn, a tenth of the range of the values."""


class HopSkipJump(DecisionAttack):
    """HopSkipJumpAttack (algorithm 2 of the paper).

    Turn t, counted from 1: int(probes * sqrt(t)) probes around the boundary point estimate the
    normal (the mean of the events subtracted as a baseline); a step of distance / sqrt(t) along it
    (its sign for linf) is halved until it succeeds; bisection leads back to the boundary.
    """

    name: ClassVar[str] = "hopskipjump"

    norm: Norm = "l2"
    gamma: Amount = Field(default=1.0, gt=0)
    """The bisection ends at theta = gamma / d^1.5 of the distance for l2, gamma / d^2 for linf; d values."""
    probes: int = Field(default=100, ge=1)
    """Queries of the first estimate of the normal."""
    most_probes: int = Field(default=10_000, ge=1)
    """Queries of one estimate at most."""
    halvings: int = Field(default=20, ge=0)
    """Halvings of a step at most; without a success by then the next turn estimates the normal anew."""
    tries: int = Field(default=50, ge=1)
    """Noisy images that are tried as a start at most."""

    def start(self, problem: QueryProblem) -> HopSkipJumpMachine:
        """Begin on one image."""
        return HopSkipJumpMachine(self, problem)


class HopSkipJumpMachine(BoundaryMachine):
    """HopSkipJump on one image."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *BoundaryMachine.SAVED,
        *("turn", "point_CHW", "reach", "step", "halved", "normal_CHW"),
        *("seen", "hits", "moves_CHW", "hit_moves_CHW"),
    )

    def __init__(self, attack: HopSkipJump, problem: QueryProblem) -> None:
        super().__init__(attack, problem, attack.tries)
        self.attack = attack
        self.phases |= {"probe": Phase(self._probe, self._probed), "step": Phase(self._stride, self._strode)}
        self.turn, self.reach, self.step, self.halved, self.seen, self.hits = 0, 0.0, 0.0, 0, 0, 0
        self.point_CHW = self.x_CHW
        self.normal_CHW = self.moves_CHW = self.hit_moves_CHW = NOTHING

    @property
    def theta(self) -> float:
        """Share of the distance at which a bisection ends."""
        return float(self.attack.gamma / self.x.size ** (2 if self.attack.norm == "linf" else 1.5))

    @property
    def spread(self) -> float:
        """Euclidean size of a probe: theta * distance before the bisection * sqrt(d) (l2) or d (linf).

        Never so small that the values of the stored probe would not move.
        """
        values = self.x.size
        if self.turn == 1:
            wanted = FIRST_SPREAD
        else:
            wanted = self.theta * self.reach * (values if self.attack.norm == "linf" else math.sqrt(values))
        return max(wanted, LEAST_MOVE[self.attack.depth] * math.sqrt(values))

    def at(self, distance: float) -> Tensor:
        """For l2 a blend with the untouched image; for linf the way is clipped to the distance."""
        linf = self.attack.norm == "linf"
        moved = np.clip(self.way_CHW, -distance, distance) if linf else distance * self.way_CHW
        return self.stored(self.x + moved)

    def depart(self, far_CHW: Tensor) -> None:
        """Back from a success to the boundary."""
        way = as_array(far_CHW) - self.x
        self.normal_CHW, self.reach = NOTHING, self.size(way)
        if self.attack.norm == "linf":
            self.bisect(way, high=self.reach, tolerance=min(self.reach, 1.0) * self.theta)
        else:
            self.bisect(way, high=1.0, tolerance=self.theta)

    def arrive(self) -> None:
        self.point_CHW, self.way_CHW = self.at(self.high), NOTHING
        self._next_turn()

    def _next_turn(self) -> None:
        self.turn += 1
        self.seen = self.hits = 0
        self.moves_CHW = self.hit_moves_CHW = np.zeros(self.x.shape, dtype=np.float32)
        self.phase = "probe"

    @property
    def _wanted(self) -> int:
        return min(int(self.attack.probes * math.sqrt(self.turn)), self.attack.most_probes)

    def _probe(self) -> list[Tensor]:
        """The next probes of this turn; each has a key of its own, so that any split asks the same ones."""
        probes, linf = [], self.attack.norm == "linf"
        point, spread, shape = self.point_CHW.cpu().numpy(), self.spread, self.x.shape
        for n in range(min(self._wanted - self.seen, self.left, AT_ONCE)):
            rng = self.generator(self.asked + n)
            way = rng.random(shape, np.float32) * 2 - 1 if linf else rng.standard_normal(shape, np.float32)
            probes.append(self.stored(point + way * np.float32(spread / euclidean(way))))
        return probes

    def _probed(self, candidates: list[Tensor], hits: list[bool]) -> None:
        """Sum what the stored probes really moved, as box and depth allow."""
        for candidate, hit in zip(candidates, hits, strict=True):
            move = (candidate - self.point_CHW).cpu().numpy()
            self.moves_CHW = self.moves_CHW + move
            if hit:
                self.hit_moves_CHW = self.hit_moves_CHW + move
        self.seen, self.hits = self.seen + len(hits), self.hits + sum(hits)
        if self.seen >= self._wanted:
            self._begin_step()

    def _begin_step(self) -> None:
        moves, hit_moves = self.moves_CHW.astype(np.float64), self.hit_moves_CHW.astype(np.float64)
        self.moves_CHW = self.hit_moves_CHW = NOTHING
        signed = 2 * hit_moves - moves
        if 0 < self.hits < self.seen:
            signed = signed - (2 * self.hits / self.seen - 1) * moves
        length = euclidean(signed)
        if length == 0:
            self._next_turn()
            return
        self.normal_CHW = np.sign(signed) if self.attack.norm == "linf" else signed / length
        self.step = self.size(as_array(self.point_CHW) - self.x) / math.sqrt(self.turn)
        self.halved, self.phase = 0, "step"

    def _stride(self) -> list[Tensor]:
        return [self.stored(as_array(self.point_CHW) + self.step * self.normal_CHW)]

    def _strode(self, candidates: list[Tensor], hits: list[bool]) -> None:
        if hits[0]:
            self.depart(candidates[0])
        elif self.halved < self.attack.halvings:
            self.step, self.halved = self.step / 2, self.halved + 1
        else:
            self.normal_CHW = NOTHING
            self._next_turn()
