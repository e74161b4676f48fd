"""Square attack: random square windows, kept if the damage grows (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.machine import HillClimb, as_float32
from udc_ray.attacks.projections import radius
from udc_ray.attacks.query import QueryAttack, QueryProblem
from udc_ray.params import Amount

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Iterations of 10,000 after which the share of the image that a window covers is halved."""
SCHEDULE = 10_000
"""Iterations that `HALVINGS` refers to."""
REDRAWS = 10
"""Draws of a window's signs before one that changes nothing is asked all the same."""


class Square(QueryAttack):
    """Square attack.

    linf starts from the better of vertical stripes and independent signs of every value (two
    charged queries), as stripes alone can be weaker than noise on a restorer that deconvolves; l2
    starts from a grid of bumps (one query).
    """

    name: ClassVar[str] = "square"

    p: Amount | None = Field(default=None, gt=0, le=1)
    """Share of the image that a window covers at first; 0.05 for linf and 0.1 for l2 unless given."""
    horizon: int = Field(default=10_000, ge=1)
    """Iterations over which the schedule of the window size stretches; not the budget."""

    def window(self, iteration: int, height: int, width: int) -> int:
        """Side of the window at an iteration counted from 0."""
        first = self.p if self.p is not None else (0.05 if self.norm == "linf" else 0.1)
        halvings = bisect_left(HALVINGS, iteration * SCHEDULE // self.horizon)
        side = round(math.sqrt(first * 0.5**halvings * height * width))
        smallest = 1 if self.norm == "linf" else 3
        return min(max(side, smallest), height, width)

    def start(self, problem: QueryProblem) -> HillClimb:
        """Begin on one image."""
        return (LinfSquare if self.norm == "linf" else L2Square)(self, problem)


class SquareMachine(HillClimb):
    """What both norms share."""

    def __init__(self, attack: Square, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack = attack
        self.eps = radius(attack.threat)
        self.shape: tuple[int, ...] = tuple(problem.x_CHW.shape)

    def moved(self, delta_CHW: np.ndarray) -> Tensor:
        """The image that a perturbation makes, inside the threat."""
        return self.project(self.x_CHW + as_float32(delta_CHW).to(self.x_CHW.device))

    def corner(self, rng: np.random.Generator, side: int) -> tuple[slice, slice]:
        """A window of the given side at a uniform place."""
        top = int(rng.integers(0, self.shape[1] - side + 1))
        left = int(rng.integers(0, self.shape[2] - side + 1))
        return slice(top, top + side), slice(left, left + side)

    def delta(self) -> np.ndarray:
        """Perturbation of the best image, float64."""
        array: np.ndarray = (self.best_CHW.double() - self.x_CHW.double()).cpu().numpy()
        return array


class LinfSquare(SquareMachine):
    """Windows of +-eps, one sign a channel (section 3.3 of the paper)."""

    STARTS: ClassVar[int] = 2
    """Queries that `beginning` takes."""

    def beginning(self, rng: np.random.Generator) -> Tensor:
        """The image of one of the first `STARTS` queries."""
        channels, _, width = self.shape
        shape = (channels, 1, width) if self.asked == 0 else self.shape
        return self.moved(self.eps * np.broadcast_to(signs(rng, *shape), self.shape))

    def candidate(self) -> Tensor:
        rng = self.generator(self.asked)
        if self.asked < self.STARTS:
            return self.beginning(rng)
        channels, height, width = self.shape
        rows, columns = self.corner(rng, self.attack.window(self.asked - self.STARTS, height, width))
        for _ in range(REDRAWS):
            delta = self.delta()
            delta[:, rows, columns] = self.eps * signs(rng, channels, 1, 1)
            candidate = self.moved(delta)
            if not candidate.equal(self.best_CHW):
                break
        return candidate


class L2Square(SquareMachine):
    """Windows of bumps that take over the mass of another window (section 3.4, algorithm 3)."""

    def candidate(self) -> Tensor:
        rng = self.generator(self.asked)
        return self._grid(rng) if self.asked == 0 else self._shifted(rng)

    def _grid(self, rng: np.random.Generator) -> Tensor:
        """A grid of bumps, five along the shorter side, scaled to eps."""
        channels, height, width = self.shape
        side = max(min(height, width) // 5, 1)
        delta = np.zeros(self.shape)
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                bump = bumps(rng, side) * signs(rng, channels, 1, 1)
                delta[:, top : top + side, left : left + side] = bump
        return self.moved(delta * (self.eps / np.linalg.norm(delta)))

    def _shifted(self, rng: np.random.Generator) -> Tensor:
        """Clear one window and give its mass, with what the ball leaves unused, to another."""
        channels, height, width = self.shape
        side = self.attack.window(self.asked - 1, height, width)
        into, source = self.corner(rng, side), self.corner(rng, side)
        delta = self.delta()
        unused = max(self.eps**2 - float(np.square(delta).sum()), 0.0)
        union = np.zeros((height, width), dtype=bool)
        union[into] = union[source] = True
        bump = bumps(rng, side)
        bump = bump / np.linalg.norm(bump)
        for channel, sign in enumerate(signs(rng, channels)):
            plane = delta[channel]
            available = (float(np.square(plane[union]).sum()) + unused / channels) ** 0.5
            old = plane[into].copy()
            size = np.linalg.norm(old)
            shape = sign * bump + (old / size if size > 0 else 0.0)
            total = np.linalg.norm(shape)
            plane[source] = 0.0
            plane[into] = (shape / total if total > 1e-9 else sign * bump) * available
        return self.moved(delta)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Independent signs, -1 or +1, float64."""
    array: np.ndarray = rng.integers(0, 2, shape) * 2.0 - 1.0
    return array


def bump(height: int, width: int) -> np.ndarray:
    """A pyramid of falling squares: eta of the paper's equation for l2, width <= height.

    Value at row r, column s (from 1): the sum over k = 0 .. M of 1 / (n + 1 - k)^2, with n = height // 2
    and M = n - max(|r - height // 2 - 1|, |s - width // 2 - 1|).
    """
    n = height // 2
    rows = np.abs(np.arange(height) - height // 2)
    columns = np.abs(np.arange(width) - width // 2)
    last = n - np.maximum(rows[:, None], columns[None, :])
    steps = np.cumsum(1.0 / (n + 1 - np.arange(n + 1)) ** 2)
    array: np.ndarray = steps[last]
    return array


def bumps(rng: np.random.Generator, side: int) -> np.ndarray:
    """Two bumps of opposite sign beside one another in a square window, in a random orientation."""
    if side == 1:
        return np.ones((1, 1))
    half = side // 2
    pair = np.concatenate([bump(side, half), -bump(side, side - half)], axis=1)
    return pair.T if rng.integers(0, 2) else pair
