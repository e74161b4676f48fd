"""GeoDA: the boundary taken for a plane, its normal estimated in a subspace of cosines (Rahmati et al. 2020)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.fft import idctn
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

PAPER_SHARE = 75 / 224
"""The paper uses 75 of 224 frequencies a side."""
FEWEST = 50
"""Probes of the first estimate at least; the number of turns follows from it."""
SEARCH = 25
"""Queries a turn that the split leaves for the way to the boundary."""
LAST_GROWTH = 40
"""Turns after which the estimates grow no more; no budget gets there, and numbers stay finite."""
TINY = 1e-300
"""In place of the length of a direction that is zero."""
WIDENING, WIDENINGS = 1.5, 12
"""Factor by which the way along the normal is lengthened until it succeeds, and how often at most."""


class GeoDA(DecisionAttack):
    """Geometric decision-based attack (algorithm 1 of the paper), linf and l2.

    Turn t: probes sigma * eta, eta Gaussian in the low frequencies of the cosine transform, estimate
    the normal w of the boundary (the mean of eta, each with the sign of its event); the new boundary
    point lies from the untouched image in direction w (l2) or sign w (linf). The turns share the
    horizon as lambda^(-2t/3), the paper's optimal split, and go on with the same growth after it.
    """

    name: ClassVar[str] = "geoda"

    norm: Norm = "l2"
    sub_dim: int | None = Field(default=None, ge=1)
    """Frequencies a side that probes are made of; 75/224 of each side unless given."""
    sigma: Amount = Field(default=2e-4, gt=0)
    """Standard deviation of every coefficient of a probe."""
    rate: Amount = Field(default=0.6, ge=0.01, le=0.99)
    """The paper's lambda: how the distance is taken to shrink from turn to turn."""
    tolerance: Amount = Field(default=1e-4, gt=0, lt=1)
    """Share of the distance at which a bisection ends."""
    horizon: int = Field(default=1000, ge=1)
    """Queries that the split is optimal for; not the budget."""
    tries: int = Field(default=50, ge=1)
    """Noisy images that are tried as a start at most."""

    def probes(self, turn: int) -> int:
        """Queries of the estimate in a turn counted from 1.

        The most turns are taken with which the first one keeps at least `FEWEST` probes.
        """
        growth, turns = float(self.rate ** (-2 / 3)), 1
        while self._first(turns + 1, growth) >= FEWEST:
            turns += 1
        return round(max(1.0, self._first(turns, growth)) * growth ** min(turn - 1, LAST_GROWTH))

    def _first(self, turns: int, growth: float) -> float:
        """Probes of the first turn where so many turns share the horizon."""
        return (self.horizon - SEARCH * turns) * (growth - 1) / (growth**turns - 1)

    def band(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of coefficients that probes use."""
        if self.sub_dim is not None:
            return min(self.sub_dim, height), min(self.sub_dim, width)
        return max(1, round(PAPER_SHARE * height)), max(1, round(PAPER_SHARE * width))

    def start(self, problem: QueryProblem) -> GeoDAMachine:
        """Begin on one image."""
        return GeoDAMachine(self, problem)


class GeoDAMachine(BoundaryMachine):
    """GeoDA on one image."""

    SAVED: ClassVar[tuple[str, ...]] = (
        *BoundaryMachine.SAVED,
        *("turn", "point_CHW", "seen", "sum", "normal_CHW", "missed", "reach", "widened"),
    )

    def __init__(self, attack: GeoDA, problem: QueryProblem) -> None:
        super().__init__(attack, problem, attack.tries)
        self.attack = attack
        self.phases |= {"probe": Phase(self._probe, self._probed), "reach": Phase(self._go, self._went)}
        self.turn, self.seen, self.missed, self.reach, self.widened = 0, 0, 0.0, 0.0, 0
        self.point_CHW, self.sum, self.normal_CHW = self.x_CHW, NOTHING, NOTHING
        self.band = (self.x.shape[0], *attack.band(*self.x.shape[1:]))

    def depart(self, far_CHW: Tensor) -> None:
        """Back from the first success to the boundary."""
        self.bisect(as_array(far_CHW) - self.x, high=1.0, tolerance=self.attack.tolerance)

    def arrive(self) -> None:
        self.point_CHW, self.way_CHW = self.at(self.high), NOTHING
        self._next_turn()

    def _next_turn(self) -> None:
        self.turn, self.seen, self.sum, self.normal_CHW = self.turn + 1, 0, np.zeros(self.band), NOTHING
        self.phase = "probe"

    def _probe(self) -> list[Tensor]:
        """The next probes of this turn; each has a key of its own, so that any split asks the same ones."""
        count = min(self.attack.probes(self.turn) - self.seen, self.left, AT_ONCE)
        noises = [self._image(self._coefficients(self.asked + n)) for n in range(count)]
        return [self.stored(as_array(self.point_CHW) + self._spread * noise) for noise in noises]

    @property
    def _spread(self) -> float:
        root_mean_square = math.sqrt(math.prod(self.band) / self.x.size)
        return max(self.attack.sigma, LEAST_MOVE[self.attack.depth] / root_mean_square)

    def _coefficients(self, step: int) -> np.ndarray:
        """Gaussian noise of the low frequencies, every channel on its own."""
        return self.generator(step).standard_normal(self.band)

    def _image(self, coefficients: np.ndarray) -> np.ndarray:
        """Low frequencies as an image; the transform is orthonormal."""
        image: np.ndarray = idctn(coefficients, s=self.x.shape[1:], axes=(1, 2), norm="ortho")
        return image

    def _probed(self, candidates: list[Tensor], hits: list[bool]) -> None:
        for step, hit in enumerate(hits, start=self.asked - len(hits)):
            self.sum = self.sum + (1 if hit else -1) * self._coefficients(step)
        self.seen += len(hits)
        if self.seen >= self.attack.probes(self.turn):
            self._leave()

    def _leave(self) -> None:
        """Go from the untouched image along the normal, at first as far as the boundary point was."""
        normal, self.sum = self._image(self.sum), NOTHING
        linf, length = self.attack.norm == "linf", max(euclidean(normal), TINY)
        self.normal_CHW = np.sign(normal) if linf else normal / length
        self.missed, self.reach, self.widened = 0.0, self.size(as_array(self.point_CHW) - self.x), 0
        self.phase = "reach"

    def _go(self) -> list[Tensor]:
        return [self.stored(self.x + self.reach * self.normal_CHW)]

    def _went(self, candidates: list[Tensor], hits: list[bool]) -> None:
        if hits[0]:
            tolerance = self.attack.tolerance * self.reach
            way, self.normal_CHW = self.normal_CHW, NOTHING
            self.bisect(way, low=self.missed, high=self.reach, tolerance=tolerance)
            return
        self.missed, self.reach, self.widened = self.reach, self.reach * WIDENING, self.widened + 1
        if self.widened > WIDENINGS or self._go()[0].equal(candidates[0]):
            self._next_turn()
