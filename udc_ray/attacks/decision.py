"""What decision-based attacks share: they learn from the success event alone and look for the closest success.

Every inner loop is bounded by a cap of its own and by the budget, and costs a query a turn: where
nothing ever succeeds a machine ends as ``converged`` or ``budget`` with the untouched image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.machine import QueryMachine, as_float32
from udc_ray.attacks.query import EVENT, Answer, Ask, QueryAttack, QueryProblem
from udc_ray.params import Amount

AT_ONCE = 16
"""Probes that are asked together at most; their images are held in memory until they are answered."""
LEAST_MOVE = {"float": 2e-6, 8: 1 / 255}
"""Root mean square by which a probe has to move values, or rounding (float32, 8 bits) swallows it."""
FIRST_BLEND = 1 / 32
"""Share of noise in the first starting image; it doubles with every try until the image is all noise."""
NOTHING = np.zeros(())
"""Stands for an array that a phase does not need, so that saved states stay small."""


class DecisionAttack(QueryAttack):
    """An attack that sees nothing but the declared event, 1.0 or 0.0, and has no eps.

    The first query is the untouched image: where it is a success already, nothing is left to find.
    The value of the curve is the distance of the closest success in the attack's norm, of the image
    as it is stored; infinite while there is none.
    """

    minimum_norm: ClassVar[bool] = True
    uses_event: ClassVar[bool] = True

    enough: Amount | None = Field(default=None, gt=0)
    """Distance that is small enough: with ``stop: success`` an image ends there. Unless given, the budget is
    spent, as a first success is far from the closest one."""


class Phase(NamedTuple):
    """What is asked in a phase of a search, and what follows from the candidates and their events."""

    ask: Callable[[], list[Tensor]]
    tell: Callable[[list[Tensor], list[bool]], None]


class EventMachine(QueryMachine):
    """Keeps the closest success, and narrows the way to the boundary by bisection.

    A subclass adds its phases, says what comes after the untouched image (`begin`) and after a
    bisection (`arrive`). Points are images as they were asked; what lies between is float64.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *QueryMachine.SAVED,
        *("phase", "over", "way_CHW", "low", "high", "tolerance"),
    )

    def __init__(self, attack: DecisionAttack, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.enough = attack.enough
        self.best_score = math.inf
        self.x = as_array(problem.x_CHW)
        self.phases = {
            "untouched": Phase(lambda: [self.stored(self.x)], lambda _, __: self.begin()),
            "bisect": Phase(lambda: [self.at((self.low + self.high) / 2)], self._halve),
        }
        self.phase, self.over = "untouched", False
        self.way_CHW, self.low, self.high, self.tolerance = NOTHING, 0.0, 0.0, 0.0

    def begin(self) -> None:
        """What comes after an untouched image that is no success."""
        raise NotImplementedError("a decision-based machine begins somewhere")

    def arrive(self) -> None:
        """What comes after a bisection: `at(high)` is a success, `at(low)` is none."""
        raise NotImplementedError("a decision-based machine goes on from the boundary")

    def propose(self) -> Ask:
        return Ask(x_KCHW=torch.stack(self.phases[self.phase].ask()), wanted=EVENT)

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        candidates, hits = list(ask.x_KCHW), [float(answer) > 0.5 for answer in answers]
        first = self.asked - len(hits) + 1
        for count, (candidate, hit) in enumerate(zip(candidates, hits, strict=True), start=first):
            if hit:
                self._keep(candidate, count)
        self.over = self.best_score == 0
        if not self.over:
            self.phases[self.phase].tell(candidates, hits)

    def exhausted(self) -> bool:
        return self.over

    def succeeded(self) -> bool:
        return self.enough is not None and self.best_score <= self.enough

    def at(self, distance: float) -> Tensor:
        """The stored image at a point of the way that is bisected."""
        return self.stored(self.x + distance * self.way_CHW)

    def bisect(self, way_CHW: np.ndarray, *, low: float = 0.0, high: float, tolerance: float) -> None:
        """Narrow the interval on a way, at whose upper end a success was seen, down to a tolerance."""
        self.way_CHW, self.low, self.high, self.tolerance = way_CHW, low, high, tolerance
        self.phase = "bisect"
        if self._narrow():
            self.arrive()

    def stored(self, array_CHW: np.ndarray) -> Tensor:
        """An array as the image that is asked: inside the box, at the storage depth."""
        return self.project(as_float32(array_CHW).to(self.x_CHW.device))

    def size(self, delta_CHW: np.ndarray) -> float:
        """Size of a perturbation in the attack's norm."""
        return float(np.abs(delta_CHW).max()) if self.threat.norm == "linf" else euclidean(delta_CHW)

    def _keep(self, candidate_CHW: Tensor, count: int) -> None:
        distance = self.size(as_array(candidate_CHW) - self.x)
        if distance < self.best_score:
            self.best_CHW, self.best_score = candidate_CHW, distance
            self.curve.append((count, distance))

    def _halve(self, _: list[Tensor], hits: list[bool]) -> None:
        middle = (self.low + self.high) / 2
        self.low, self.high = (self.low, middle) if hits[0] else (middle, self.high)
        if self._narrow():
            self.arrive()

    def _narrow(self) -> bool:
        """Halve as long as storage makes the middle one of the ends; whether the interval is narrow enough."""
        below, above = self.at(self.low), self.at(self.high)
        while self.high - self.low > self.tolerance:
            middle = (self.low + self.high) / 2
            if not self.low < middle < self.high:
                return True
            candidate = self.at(middle)
            if candidate.equal(below):
                self.low = middle
            elif candidate.equal(above):
                self.high = middle
            else:
                return False
        return True


class BoundaryMachine(EventMachine):
    """A search that starts from noise and walks along the boundary.

    The starting image is a blend of the untouched image and uniform noise, the share of noise
    doubling from try to try; after `tries` blends without a success the machine has converged.
    """

    SAVED: ClassVar[tuple[str, ...]] = (*EventMachine.SAVED, "tried")

    def __init__(self, attack: DecisionAttack, problem: QueryProblem, tries: int) -> None:
        super().__init__(attack, problem)
        self.tries, self.tried = tries, 0
        self.phases["start"] = Phase(self._noise, self._started)

    def begin(self) -> None:
        self.phase = "start"

    def depart(self, far_CHW: Tensor) -> None:
        """What comes after the first success."""
        raise NotImplementedError("a walk along the boundary departs from a success")

    def _noise(self) -> list[Tensor]:
        noise = self.generator(self.asked).random(self.x.shape)
        share = min(FIRST_BLEND * 2.0 ** min(self.tried, 10), 1.0)
        return [self.stored(self.x + share * (noise - self.x))]

    def _started(self, candidates: list[Tensor], hits: list[bool]) -> None:
        self.tried += 1
        if hits[0]:
            self.depart(candidates[0])
        else:
            self.over = self.tried >= self.tries


def euclidean(array: np.ndarray) -> float:
    """Euclidean norm, summed in an order that does not depend on threads as that of a BLAS may."""
    return math.sqrt(float(np.square(array).sum(dtype=np.float64)))


def as_array(image_CHW: Tensor) -> np.ndarray:
    """An image as a float64 array."""
    array: np.ndarray = image_CHW.double().cpu().numpy()
    return array
