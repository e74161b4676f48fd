"""The smallest harmful eps of an image, by bisection over a ladder of sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from udc_ray.attacks.base import DEFAULT_EPS
from udc_ray.attacks.machine import QueryMachine
from udc_ray.attacks.query import Answer, Ask, Machine, QueryAttack, QueryProblem, State
from udc_ray.attacks.registry import ATTACKS
from udc_ray.errors import SpecError
from udc_ray.params import Amount

LADDER = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
"""Default sizes: for linf n/255, for l2 the same multiples of an eighth of the default eps."""
LEVEL_BUDGET = 200
"""Queries of one level, unless the inner attack gives its own."""
SET_HERE = ("eps", "norm", "depth", "objective", "restarts", "stop", "repeats")
"""Parameters of the inner attack that are find-eps's own, or follow from its level."""


class FindEps(QueryAttack):
    """The smallest level of a ladder at which another query attack succeeds.

    Bisection over the ladder: at each level the inner attack starts anew with a budget of its own and
    stops at its success; a success sends the search to smaller levels, a spent inner budget to larger
    ones. The curve and the value are the smallest successful level, the image is the one found there.

    The finding is an upper bound and no certificate: a success shows that this eps harms, a failure shows
    only that this attack did not succeed with this many queries. Where no level succeeded the
    image is censored: no success, stop reason ``converged`` when the ladder is through, ``budget`` when
    the queries were. A finding whose bisection the budget cut short has stop reason ``budget`` too.
    On a random victim one lucky draw passes for a success: give `repeats` there.
    """

    name: ClassVar[str] = "find-eps"
    minimum_norm: ClassVar[bool] = True

    attack: dict[str, Any] = Field(default_factory=lambda: {"name": "square", "budget": LEVEL_BUDGET})
    """The inner attack: a mapping with its ``name``, the ``budget`` of one level (200 unless given) and its other
    parameters."""
    levels: tuple[Amount, ...] = ()
    """Sizes to try, rising, in units of the [0, 1] image; 0.5 to 32/255 for linf unless given, for l2 the same
    multiples of its default eps."""

    @model_validator(mode="after")
    def _check(self) -> FindEps:
        rising = all(a < b for a, b in zip(self.ladder, self.ladder[1:], strict=False))
        if not rising or self.ladder[0] <= 0:
            raise ValueError("levels are positive and rise")
        if self.norm == "linf" and self.ladder[-1] > 1:
            raise ValueError("levels are in units of the [0, 1] image: write 8/255, not 8")
        self.inner(self.ladder[0], self.level_budget)
        return self

    @property
    def ladder(self) -> tuple[float, ...]:
        """The sizes that are tried, rising."""
        return self.levels or tuple(DEFAULT_EPS[self.norm] * n / 8 for n in LADDER)

    @property
    def level_budget(self) -> int:
        """Queries that one level may take."""
        return int(self.inner(self.ladder[0]).budget)

    def inner(self, eps: float, budget: int | None = None) -> QueryAttack:
        """The inner attack at one level; its own budget unless given."""
        params = {"budget": LEVEL_BUDGET} | self.attack
        name = params.pop("name", None)
        if not isinstance(name, str):
            raise SpecError(
                "find-eps needs the name of its inner attack",
                f"given: {self.attack!r}",
                "write attack: {name: square, budget: 200}",
            )
        own = [key for key in SET_HERE if key in params]
        if own:
            raise SpecError(
                f"the inner attack of find-eps takes no {own[0]!r}",
                "it follows from find-eps itself",
                f"give {own[0]} to find-eps, or leave it out",
            )
        chosen = ATTACKS.get(name)
        if not (isinstance(chosen, type) and issubclass(chosen, QueryAttack)) or chosen.minimum_norm:
            raise SpecError(
                f"find-eps cannot run {name!r} inside",
                "it is no query attack, or looks for the smallest perturbation itself",
                "name a query attack with an eps, such as square",
            )
        given = {"norm": self.norm, "depth": self.depth, "eps": eps, "stop": "success"}
        if budget is not None:
            given["budget"] = budget
        made: QueryAttack = chosen.build("attack", params | given)
        return made

    def start(self, problem: QueryProblem) -> FindEpsMachine:
        """Begin on one image."""
        return FindEpsMachine(self, problem)


class FindEpsMachine(QueryMachine):
    """One inner machine after another; levels up to `low` have failed, those from `high` on are harmful."""

    SAVED: ClassVar[tuple[str, ...]] = (*QueryMachine.SAVED, "low", "high", "level_asked")

    def __init__(self, attack: FindEps, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack = attack
        self.best_score = math.inf
        self.low, self.high, self.level_asked = -1, len(attack.ladder), 0
        self._inner: Machine | None = None

    @property
    def level(self) -> int:
        """Index of the level that is tried now."""
        return (self.low + self.high) // 2

    def propose(self) -> Ask:
        if self._inner is None:
            self._inner = self._begin_level()
        return self._inner.ask()

    def offer(self, candidate_CHW: Tensor, score: float) -> bool:
        """Scores are the inner machine's to judge."""
        return False

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        inner = self._inner
        if inner is None:
            raise RuntimeError("an answer came before its question")
        inner.tell(answers)
        self.level_asked = inner.asked
        if not inner.done:
            return
        if inner.stop_reason == "success":
            self.best_CHW, self.best_score = inner.best()[0], self.attack.ladder[self.level]
            self.curve.append((self.asked, self.best_score))
            self.high = self.level
        elif inner.stop_reason == "budget" and inner.asked < self.attack.level_budget:
            return  # the budget of the whole search ended it; a larger one goes on
        else:
            self.low = self.level
        self._inner, self.level_asked = None, 0

    def judge(self) -> None:
        """Done when the bisection is, or the budget; see `FindEps` for the reasons."""
        over, found = self.high - self.low <= 1, self.high < len(self.attack.ladder)
        self.done = over or self.left <= 0
        self.stop_reason = "budget" if not over else "success" if found else "converged"

    def state(self) -> State:
        begun = self._inner if self.level_asked > 0 else None  # asking alone changes nothing
        return super().state() | {"inner": None if begun is None else begun.state()}

    def load(self, state: State) -> None:
        super().load(state)
        self._inner = None
        if state["inner"] is not None:
            self._inner = self._begin_level()
            self._inner.load(state["inner"])

    def _begin_level(self) -> Machine:
        """The machine of the present level, with no more than the whole search has left."""
        budget = min(self.attack.level_budget, self.left + self.level_asked)
        return self.attack.inner(self.attack.ladder[self.level], max(budget, 1)).start(self.problem)
