"""Query attacks as ask/tell state machines, one machine an image.

A machine never sees the victim: it asks for candidates to be scored and is told the scores. Its
state is plain data, so that it can be saved, moved to another process and resumed.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field
from torch import Tensor

from udc_ray.attacks.base import Attack, StopReason
from udc_ray.tape import Tape

State = dict[str, Any]
"""Plain data: numbers, strings, lists and tensors."""


class Machine(Protocol):
    """The attack on one image.

    Attributes:
        asked: candidates that were handed out and answered.
        done: nothing more to ask.
        stop_reason: why, once done.
        curve: (queries asked, best score) at every improvement.
    """

    asked: int
    done: bool
    stop_reason: StopReason
    curve: list[tuple[int, float]]

    def ask(self) -> Tensor:
        """Candidates K x C x H x W to be scored, K >= 1, never more than the budget leaves."""
        ...

    def tell(self, scores: list[float]) -> None:
        """The scores of the candidates of the last `ask`, larger is more damage."""
        ...

    def best(self) -> tuple[Tensor, float]:
        """Best candidate that was scored, C x H x W, and its score."""
        ...

    def state(self) -> State:
        """All that `QueryAttack.restore` needs, between a tell and the next ask."""
        ...


class QueryAttack(Attack):
    """An attack that needs answers only."""

    kind: ClassVar[Literal["control", "gradient", "query"]] = "query"
    not_identity: ClassVar[frozenset[str]] = frozenset({"budget"})

    budget: int = Field(default=1000, ge=1)
    """Queries allowed per image and restart; never exceeded."""
    stop: Literal["never", "success"] = "never"
    """``success``: an image ends at its own success; off for dB objectives, whose curves run on."""

    @property
    def passes(self) -> int:
        """One a query."""
        return self.restarts * self.budget

    def start(self, x_CHW: Tensor, tape: Tape, goal: float) -> Machine:
        """Begin the attack on one image; `tape` holds exactly its id, `goal` is the success score."""
        raise NotImplementedError("a query attack implements start")

    def restore(self, x_CHW: Tensor, tape: Tape, goal: float, state: State) -> Machine:
        """Continue from a saved state, possibly with a larger budget."""
        raise NotImplementedError("a query attack implements restore")
