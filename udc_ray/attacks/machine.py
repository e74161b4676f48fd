"""What the machines of all query attacks share: the count, the best candidate, the curve, the stop, the state."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.base import StopReason
from udc_ray.attacks.query import Answer, Ask, QueryAttack, QueryProblem, State


class QueryMachine:
    """A machine; a subclass says what is asked (`propose`), and what follows from the answers (`learn`).

    Candidates and all that is learned are functions of the saved state and of keyed noise only.

    Args:
        attack: budget, threat and stopping rule.
        problem: the image.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("asked", "best_CHW", "best_score", "curve")
    """Attributes that are the state; a subclass adds its own."""

    def __init__(self, attack: QueryAttack, problem: QueryProblem) -> None:
        self._attack, self.problem = attack, problem
        self.x_CHW, self.tape, self.goal = problem.x_CHW, problem.tape, problem.goal
        self.threat = attack.threat
        self._identity = attack.identity()
        self.asked = 0
        self.done = False
        self.stop_reason: StopReason = "budget"
        self.curve: list[tuple[int, float]] = []
        self.best_CHW, self.best_score = self.x_CHW, -math.inf
        self._ask: Ask | None = None

    @property
    def left(self) -> int:
        """Queries that the budget leaves."""
        return self._attack.budget - self.asked

    def propose(self) -> Ask:
        """The next candidates, at most `left` of them."""
        raise NotImplementedError("a machine proposes candidates")

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        """What follows from the answers; `asked` counts them already, `best` knows their scores."""

    def exhausted(self) -> bool:
        """Whether nothing that could be asked can help any more."""
        return False

    def ask(self) -> Ask:
        """See `Machine`."""
        if self._ask is None:
            self._ask = self.propose()
        return self._ask

    def tell(self, answers: Sequence[Answer]) -> None:
        """See `Machine`."""
        ask = self.ask()
        for candidate_CHW, answer in zip(ask.x_KCHW, answers, strict=True):
            self.asked += 1
            if ask.wanted.kind == "scalar":
                self.offer(candidate_CHW, float(answer))
        self._ask = None
        self.learn(ask, answers)
        self.judge()

    def offer(self, candidate_CHW: Tensor, score: float) -> bool:
        """Keep the candidate that was asked last if it is the best so far; ties and NaN are no improvement."""
        better = score > self.best_score
        if better or not self.curve:
            self.best_CHW = candidate_CHW
        if better:
            self.best_score = score
            self.curve.append((self.asked, score))
        return better

    def judge(self) -> None:
        """Decide whether the machine is done: success first, then convergence, then the budget."""
        succeeded = self._attack.stop == "success" and self.succeeded()
        converged = self.exhausted()
        self.done = succeeded or converged or self.left <= 0
        self.stop_reason = "success" if succeeded else "converged" if converged else "budget"

    def succeeded(self) -> bool:
        """Whether the best candidate reaches the goal."""
        return self.best_score >= self.goal

    def best(self) -> tuple[Tensor, float]:
        """See `Machine`."""
        return self.best_CHW, self.best_score

    def state(self) -> State:
        """See `Machine`; randomness is keyed by step, so no generator is in it."""
        return {name: _copied(getattr(self, name)) for name in self.SAVED}

    def load(self, state: State) -> None:
        """See `Machine`."""
        for name in self.SAVED:
            setattr(self, name, _copied(state[name]))
        self.curve = [(int(asked), float(value)) for asked, value in self.curve]
        self._ask = None
        self.judge()

    def generator(self, step: int) -> np.random.Generator:
        """The keyed generator of one step."""
        return self.tape.at(step=step).generators(self._identity)[0]

    def project(self, candidate_CHW: Tensor) -> Tensor:
        """Inside ball and box, at the storage depth."""
        return self.threat.project(candidate_CHW[None], self.x_CHW[None])[0]


class HillClimb(QueryMachine):
    """One candidate an ask, kept if the damage grows."""

    def candidate(self) -> Tensor:
        """The next candidate, C x H x W, at the storage depth."""
        raise NotImplementedError("a hill climber proposes a candidate")

    def climb(self, better: bool) -> None:
        """What follows from the answer to the last candidate."""

    def propose(self) -> Ask:
        return Ask(x_KCHW=self.candidate()[None])

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        self.climb(bool(self.curve) and self.curve[-1][0] == self.asked)


def as_float32(values: np.ndarray) -> Tensor:
    """An array as a float32 tensor of its own."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
