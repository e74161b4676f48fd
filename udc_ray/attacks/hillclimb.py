"""What query attacks share that try one change at a time and keep it if the damage grows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.base import StopReason
from udc_ray.attacks.query import QueryAttack, State
from udc_ray.tape import Tape


class HillClimb:
    """A machine with one candidate an ask; a subclass says which, and what follows from the answer.

    Args:
        attack: budget, threat and stopping rule.
        x_CHW: untouched image in [0, 1].
        tape: keyed noise of exactly this image.
        goal: score from which on the image counts as a success.
    """

    def __init__(self, attack: QueryAttack, x_CHW: Tensor, tape: Tape, goal: float) -> None:
        self._attack, self.x_CHW, self.tape, self.goal = attack, x_CHW, tape, goal
        self.threat = attack.threat
        self.asked = 0
        self.done = False
        self.stop_reason: StopReason = "budget"
        self.curve: list[tuple[int, float]] = []
        self.best_CHW, self.best_score = x_CHW, -math.inf
        self._candidate: Tensor | None = None

    def propose(self) -> Tensor:
        """The next candidate, C x H x W, at the storage depth; a function of state and keyed noise only."""
        raise NotImplementedError("a hill climber proposes candidates")

    def learn(self, better: bool) -> None:
        """What follows from the answer to the last candidate; `asked` counts it already."""

    def exhausted(self) -> bool:
        """Whether nothing that could be asked can help any more."""
        return False

    def ask(self) -> Tensor:
        """One candidate, 1 x C x H x W."""
        if self._candidate is None:
            self._candidate = self.propose()
        return self._candidate[None]

    def tell(self, scores: list[float]) -> None:
        """The score of that candidate; ties and NaN are no improvement."""
        (score,), candidate = scores, self.ask()[0]
        better = score > self.best_score
        if better or self.asked == 0:
            self.best_CHW, self.best_score = candidate, score if better else -math.inf
        self.asked += 1
        if better:
            self.curve.append((self.asked, score))
        self._candidate = None
        self.learn(better)
        self.judge()

    def judge(self) -> None:
        """Decide whether the machine is done: success first, then the budget, then convergence."""
        succeeded = self._attack.stop == "success" and self.best_score >= self.goal
        spent = self.asked >= self._attack.budget
        converged = self.exhausted()
        self.done = succeeded or spent or converged
        self.stop_reason = "success" if succeeded else "converged" if converged else "budget"

    def best(self) -> tuple[Tensor, float]:
        """Best candidate that was scored, C x H x W, and its score."""
        return self.best_CHW, self.best_score

    def state(self) -> State:
        """Plain data; the randomness is keyed by step, so no generator is in it."""
        return {
            "asked": self.asked,
            "best": self.best_CHW.clone(),
            "best_score": self.best_score,
            "curve": [list(point) for point in self.curve],
        }

    def load(self, state: State) -> None:
        """Take over a saved state; a machine that had spent a smaller budget goes on."""
        self.asked, self.best_CHW, self.best_score = state["asked"], state["best"].clone(), state["best_score"]
        self.curve = [(asked, score) for asked, score in state["curve"]]
        self.judge()

    def generator(self, step: int) -> np.random.Generator:
        """The keyed generator of one step."""
        return self.tape.at(step=step).generators(self._attack.identity())[0]

    def project(self, candidate_CHW: Tensor) -> Tensor:
        """Inside ball and box, at the storage depth."""
        return self.threat.project(candidate_CHW[None], self.x_CHW[None])[0]


def as_float32(values: np.ndarray) -> Tensor:
    """An array as a float32 tensor of its own."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
