"""Attacks that estimate the gradient from random directions: NES and ZO-signSGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from udc_ray import rng
from udc_ray.attacks.projections import radius, steepest
from udc_ray.attacks.query import QueryAttack, QueryProblem
from udc_ray.attacks.steps import ProbingMachine, finite, on_sphere
from udc_ray.attacks.threat import Threat
from udc_ray.params import Amount

LINF_SHARE, L2_SHARE = 5, 50 / 3
"""Step of the iterate as a share of eps: 0.01 at linf 0.05 (Ilyas et al. 2018), 0.3 at l2 5 (Ilyas et al. 2019)."""
SMALLEST = 200
"""The rate of NES is never less than the first one divided by this (0.01 and 5e-5 in the paper's experiments)."""
CLIPPED = 3.0
"""Standard deviations of a direction that an interior point leaves room for."""


def default_rate(threat: Threat) -> float:
    """Step of the iterate: largest absolute value for linf, Euclidean norm for l2."""
    return radius(threat) / (LINF_SHARE if threat.norm == "linf" else L2_SHARE)


def default_deviation(threat: Threat) -> float:
    """Standard deviation of a direction per value; a grey level where less would be rounded away."""
    return 1 / 255 if threat.depth == 8 else 1e-3


class NES(QueryAttack):
    """Natural evolution strategies (Ilyas et al. 2018): projected steps along estimates.

    A step asks the iterate, which is the check for success, and `samples` points around it in pairs of
    opposite directions: 51 queries at the defaults. The untouched image is the first iterate.
    """

    name: ClassVar[str] = "nes"

    samples: int = Field(default=50, ge=2, multiple_of=2)
    """Points of one estimate, half of them the mirror images of the others."""
    sigma: Amount | None = Field(default=None, gt=0)
    """Standard deviation of the directions per value; 0.001 unless given, 1/255 at storage depth 8."""
    rate: Amount | None = Field(default=None, gt=0)
    """First step of the iterate: largest absolute value for linf (eps / 5 unless given), Euclidean norm for l2
    (0.06 eps)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the former direction in the next."""
    plateau: int = Field(default=5, ge=2)
    """Steps after which the rate is halved if the mean score of the samples is lower than before them."""

    def start(self, problem: QueryProblem) -> NESMachine:
        """Begin on one image."""
        return NESMachine(self, problem)


class NESMachine(ProbingMachine):
    """NES on one image."""

    SAVED = (*ProbingMachine.SAVED, "direction_CHW", "rate", "recent")

    def __init__(self, attack: NES, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack = attack
        self.sigma = attack.sigma or default_deviation(attack.threat)
        self.direction_CHW = torch.zeros_like(problem.x_CHW, dtype=torch.float64)
        """Moving mean of the estimates."""
        self.rate = self.first_rate = attack.rate or default_rate(attack.threat)
        self.recent: list[float] = []
        """Mean scores of the steps since the last halving, at most `plateau` of them."""
        self._drawn: tuple[int, Tensor] = (-1, problem.x_CHW)

    def size(self) -> int:
        return 1 + self.attack.samples

    def candidate(self, place: int) -> Tensor:
        if place == 0:
            return self.stored()
        pair, mirrored = divmod(place - 1, 2)
        return self.displaced(self.stored(), (-self.sigma if mirrored else self.sigma) * self.noise(pair))

    def noise(self, pair: int) -> Tensor:
        """Standard normal direction of a pair of this step."""
        number = self.step * (self.attack.samples // 2) + pair
        if self._drawn[0] != number:
            noise = rng.normal(self.generator(number), *self.x_CHW.shape)
            self._drawn = (number, noise.to(self.x_CHW.device))
        return self._drawn[1]

    def finish(self, scores: Sequence[float]) -> None:
        momentum, samples = self.attack.momentum, scores[1:]
        self.direction_CHW = momentum * self.direction_CHW + (1 - momentum) * self.estimate(samples)
        self._note(sum(samples) / len(samples))
        self.move(steepest(self.direction_CHW[None], self.attack.norm)[0], self.rate)

    def estimate(self, samples: Sequence[float]) -> Tensor:
        """Gradient of the smoothed score, float64: the mean of difference times direction over 2 sigma."""
        total = torch.zeros_like(self.direction_CHW)
        for pair, (plus, minus) in enumerate(zip(samples[::2], samples[1::2], strict=True)):
            total += finite(plus - minus) * self.noise(pair).double()
        return torch.nan_to_num(total / (len(samples) * self.sigma), nan=0.0, posinf=0.0, neginf=0.0)

    def _note(self, mean: float) -> None:
        """Halve the rate on a plateau."""
        self.recent = [*self.recent, mean][-self.attack.plateau :]
        if len(self.recent) == self.attack.plateau and self.recent[-1] < self.recent[0]:
            self.rate = max(self.rate / 2, self.first_rate / SMALLEST)
            self.recent = []


class ZOSignSGD(QueryAttack):
    """ZO-signSGD (Liu et al. 2019, algorithm 1): steps along the signs of a forward-difference estimate.

    A step asks the iterate, which is the check for success, and `samples` points around it; on the border of
    ball or box it asks a point close by, inside, from which the differences are taken. The paper leaves the number of
    directions to the task; the default is ours. For l2 the sign vector is scaled to Euclidean norm `rate`.
    """

    name: ClassVar[str] = "zo-signsgd"

    samples: int = Field(default=30, ge=1)
    """Random directions of one estimate (q of the paper)."""
    mu: Amount | None = Field(default=None, gt=0)
    """Length of a direction as a root mean square per value (the paper's mu over the root of the dimension);
    0.001 unless given, 1/255 at storage depth 8."""
    rate: Amount | None = Field(default=None, gt=0)
    """Step of the iterate: largest absolute value for linf (eps / 5 unless given), Euclidean norm for l2
    (0.06 eps)."""

    def start(self, problem: QueryProblem) -> ZOSignSGDMachine:
        """Begin on one image."""
        return ZOSignSGDMachine(self, problem)


class ZOSignSGDMachine(ProbingMachine):
    """ZO-signSGD on one image."""

    def __init__(self, attack: ZOSignSGD, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack = attack
        self.mu = attack.mu or default_deviation(attack.threat)
        values = problem.x_CHW.numel()
        self.rate = (attack.rate or default_rate(attack.threat)) / (1 if attack.norm == "linf" else values**0.5)
        self._bases: tuple[Tensor | None, list[Tensor]] = (None, [])

    def centre(self) -> Tensor:
        """Where the differences are taken from."""
        return self.interior(CLIPPED * self.mu, self.mu * self.x_CHW.numel() ** 0.5)

    def bases(self) -> list[Tensor]:
        """The iterate, and the centre where that is another image."""
        if self._bases[0] is not self.iterate_CHW:
            stored, centre = self.stored(), self.centre()
            self._bases = (self.iterate_CHW, [stored] if stored.equal(centre) else [stored, centre])
        return self._bases[1]

    def size(self) -> int:
        return len(self.bases()) + self.attack.samples

    def candidate(self, place: int) -> Tensor:
        bases = self.bases()
        if place < len(bases):
            return bases[place]
        return self.displaced(bases[-1], self.mu * self.direction(place - len(bases)))

    def direction(self, number: int) -> Tensor:
        """Direction of this step, uniform on the sphere, root mean square 1."""
        generator = self.generator(self.step * self.attack.samples + number)
        return on_sphere(rng.normal(generator, *self.x_CHW.shape).to(self.x_CHW.device))

    def finish(self, scores: Sequence[float]) -> None:
        self.move(self.estimate(scores[-self.attack.samples - 1 :]).sign(), self.rate)

    def estimate(self, scores: Sequence[float]) -> Tensor:
        """The gradient, float64: the mean of forward difference times direction over mu.

        Args:
            scores: of the centre, then of every direction.
        """
        total = torch.zeros_like(self.x_CHW, dtype=torch.float64)
        for number, score in enumerate(scores[1:]):
            total += finite(score - scores[0]) * self.direction(number)
        return torch.nan_to_num(total / (self.attack.samples * self.mu), nan=0.0, posinf=0.0, neginf=0.0)
