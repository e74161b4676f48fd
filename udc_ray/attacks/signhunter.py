"""SignHunter: divide and conquer over the signs of the perturbation (Al-Dujaili and O'Reilly 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from udc_ray.attacks.machine import QueryMachine, as_float32
from udc_ray.attacks.projections import radius
from udc_ray.attacks.query import Answer, Ask, QueryAttack, QueryProblem
from udc_ray.attacks.square import signs

START = -2
"""Level of the first query of a sweep; the next, -1, has independent signs."""


class SignHunter(QueryAttack):
    """SignHunter (algorithms 1 and 2 of the paper); nothing to tune.

    A sweep starts from the better of all signs +1 and independent signs (two queries), as a constant shift
    alone is much weaker than noise on a restorer that deconvolves. Then the signs of all values, of each half, each
    quarter, ... each single value (in C x H x W order) are flipped in turn, one query each, and a flip stays unless
    it lowers the score. After a sweep the best image becomes the centre that the signs are added to, and a new
    sweep begins; a later sweep that found nothing better ends the attack as ``converged``.
    """

    name: ClassVar[str] = "signhunter"

    def start(self, problem: QueryProblem) -> SignHunterMachine:
        """Begin on one image."""
        return SignHunterMachine(self, problem)


class SignHunterMachine(QueryMachine):
    """SignHunter on one image."""

    SAVED = (*QueryMachine.SAVED, "signs", "centre_CHW", "highest", "level", "block", "sweep", "before", "stuck")

    def __init__(self, attack: SignHunter, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.count = problem.x_CHW.numel()
        # lp step of the paper: linf eps s, l2 eps s / |s|
        self.size = radius(attack.threat) / (1 if attack.norm == "linf" else math.sqrt(self.count))
        self.sweep, self.before, self.stuck = 0, -math.inf, False
        """Sweeps finished; best score when the present one began; whether the last one found nothing better."""
        self._begin()

    def _begin(self) -> None:
        """A sweep around the best image."""
        self.centre_CHW = self.best_CHW
        self.signs = np.ones(self.count, dtype=np.int8)
        self.highest = -math.inf
        """Score of the signs."""
        self.level, self.block = START, 0
        """Blocks are 1 / 2^level of the values, or a starting point where it is negative; next block to flip."""

    def chunk(self) -> slice:
        """The values of the present block."""
        side = -(-self.count // 2**self.level)
        return slice(self.block * side, (self.block + 1) * side)

    def tried(self) -> np.ndarray:
        """The signs of the next candidate."""
        if self.level == START:
            return self.signs
        if self.level < 0:
            drawn: np.ndarray = signs(self.generator(self.sweep), self.count).astype(np.int8)
            return drawn
        flipped = self.signs.copy()
        flipped[self.chunk()] *= -1
        return flipped

    def propose(self) -> Ask:
        return Ask(x_KCHW=self._moved(self.tried())[None])

    def _moved(self, chosen: np.ndarray) -> Tensor:
        step_CHW = as_float32(self.size * chosen.reshape(tuple(self.x_CHW.shape)))
        return self.project(self.centre_CHW + step_CHW.to(self.x_CHW.device))

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        score = float(answers[0])
        if score >= self.highest:  # a tie stays
            self.signs, self.highest = self.tried(), score
        self._next()

    def _next(self) -> None:
        """On to the next block that holds values."""
        self.block += 1
        if self.level >= 0 and self.chunk().start < self.count:
            return
        self.level, self.block = self.level + 1, 0
        if self.level > math.ceil(math.log2(self.count)):
            self.stuck, self.before = self.best_score <= self.before, self.best_score
            self.sweep += 1
            self._begin()

    def exhausted(self) -> bool:
        """Whether the last sweep found nothing better than the one before it."""
        return self.stuck
