"""The one place where queries are counted, and where a budget ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from udc_ray.errors import UdcRayError


class BudgetExceeded(UdcRayError):
    """A machine asked for more than its budget; a defect of the machine, never of the user."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Candidates for a host to score.

    Attributes:
        victim: index of the defence in the plan.
        objective: name of the objective.
        image_ids: whose candidates they are; the host knows the references.
        x_NCHW: at most a micro-batch of candidates of one shape.
    """

    victim: int
    objective: str
    image_ids: tuple[str, ...]
    x_NCHW: Tensor


Scorer = Callable[[ScoreRequest], list[float]]
"""Scores a request; on a host, in this process or elsewhere."""


class Oracle:
    """Answers candidates and counts every one of them, success checks included.

    Args:
        scorer: what evaluates the target.
        victim: index of the attacked victim.
        objective: name of the objective.
        budget: queries allowed per image and restart.
    """

    def __init__(self, scorer: Scorer, victim: int, objective: str, budget: int) -> None:
        self.scorer, self.victim, self.objective, self.budget = scorer, victim, objective, budget
        self.spent: dict[tuple[str, int], int] = {}

    def answer(self, keys: list[tuple[str, int]], x_NCHW: Tensor) -> list[float]:
        """Score one candidate for each (image id, restart); empty batch slots are no queries."""
        for key in keys:
            self.spent[key] = self.spent.get(key, 0) + 1
            if self.spent[key] > self.budget:
                raise BudgetExceeded(f"{key} asked {self.spent[key]} queries of a budget of {self.budget}")
        request = ScoreRequest(
            victim=self.victim, objective=self.objective, image_ids=tuple(i for i, _ in keys), x_NCHW=x_NCHW
        )
        return self.scorer(request)
