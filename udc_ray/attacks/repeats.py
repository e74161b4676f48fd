"""Asking every candidate several times, because a random victim answers differently each time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from udc_ray.attacks.base import StopReason
from udc_ray.attacks.query import Answer, Ask, Machine, QueryAttack, QueryProblem, State, Wanted


class Repeated:
    """The machine of an attack whose every candidate is asked `repeats` times, all of them charged.

    Scores and tile sums are averaged, an event is what more than half of the draws say. The inner
    machine has the whole number of candidates that the budget can repeat; what is left over is not
    asked. Its curve is given in charged queries.

    Args:
        attack: the attack; its budget counts every repeat.
        problem: the image.
        repeats: charged draws a candidate, at least 1.
    """

    def __init__(self, attack: QueryAttack, problem: QueryProblem, repeats: int) -> None:
        self.attack, self.problem, self.repeats = attack, problem, repeats
        self._affordable = attack.budget // repeats
        self.inner: Machine = attack.model_copy(update={"budget": self._affordable}).start(problem)
        self.asked = 0
        self.done = False
        self.stop_reason: StopReason = "budget"
        self.curve: list[tuple[int, float]] = []
        self._follow()

    @property
    def left(self) -> int:
        """Queries that the budget leaves."""
        return self.attack.budget - self.asked

    def ask(self) -> Ask:
        """The inner machine's candidates, each `repeats` times in a row."""
        ask = self.inner.ask()
        return Ask(x_KCHW=ask.x_KCHW.repeat_interleave(self.repeats, dim=0), wanted=ask.wanted)

    def tell(self, answers: Sequence[Answer]) -> None:
        """See `Machine`; NaN among averaged answers stays NaN."""
        wanted, r = self.inner.ask().wanted, self.repeats
        self.inner.tell([combined(answers[k : k + r], wanted) for k in range(0, len(answers), r)])
        self._follow()

    def best(self) -> tuple[Tensor, float]:
        """See `Machine`; the value is the mean of the draws."""
        return self.inner.best()

    def state(self) -> State:
        """See `Machine`."""
        return {"inner": self.inner.state()}

    def load(self, state: State) -> None:
        """See `Machine`."""
        self.inner.load(state["inner"])
        self._follow()

    def _follow(self) -> None:
        self.asked = self.inner.asked * self.repeats
        self.done = self.inner.done or self.inner.asked >= self._affordable
        self.stop_reason = self.inner.stop_reason if self.inner.done else "budget"
        self.curve = [(count * self.repeats, value) for count, value in self.inner.curve]


def combined(draws: Sequence[Answer], wanted: Wanted) -> Answer:
    """One answer from several draws: the majority of events (a tie is no success), else the mean."""
    if wanted.kind == "event":
        return float(2 * sum(float(draw) > 0.5 for draw in draws) > len(draws))
    mean = np.mean(np.asarray(draws, dtype=np.float64), axis=0)
    return np.asarray(mean) if wanted.kind == "tile-sums" else float(mean)
