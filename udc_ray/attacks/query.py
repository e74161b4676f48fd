"""Query attacks as ask/tell state machines, one machine an image.

A machine never sees the victim: it asks for candidates to be judged and is told the answers. Its
state is plain data, so that it can be saved, moved to another process and resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.base import Attack, StopReason
from udc_ray.tape import Tape

State = dict[str, Any]
"""Plain data: numbers, strings, lists, numpy arrays and tensors."""

Answer = float | NDArray[np.float64]
"""A score (larger is more damage), an event (1.0 or 0.0), or tile sums (rows x columns)."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a machine wants to know of the image that the target returns; the host reduces it to that.

    Attributes:
        kind: ``scalar``: the objective's score. ``event``: whether that score reaches the success level.
            ``tile-sums``: squared differences of the clamped output from the reference, summed over the
            channels and the pixels of every tile of `tile` x `tile` pixels (the last row and column may
            be smaller), float64; for objectives that are sums over pixels.
        tile: side of a tile in pixels.
        against: ``reference``: what the objective compares with. ``clean``: the victim's own output on the
            untouched image.
    """

    kind: Literal["scalar", "event", "tile-sums"] = "scalar"
    tile: int = 0
    against: Literal["reference", "clean"] = "reference"


SCALAR, EVENT = Wanted(), Wanted(kind="event")
EVENT_REPEATS = 5
"""Draws that decide an event of a random victim."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Candidates, K x C x H x W at the storage depth of the threat, K >= 1, and what is wanted of each."""

    x_KCHW: Tensor
    wanted: Wanted = SCALAR


@dataclass(frozen=True, kw_only=True)
class QueryProblem:
    """The attack on one image.

    Attributes:
        x_CHW: untouched image in [0, 1].
        tape: keyed noise of exactly this image, stream ``attack``, with the restart.
        goal: score from which on the image counts as a success; known to whoever decides the stop, not to
            be used by the search itself.
        random: whether the victim draws noise, so that two answers to one candidate differ.
        additive: whether the objective is the mean of squared differences over all values, so that tile
            sums add up to it: score = sums / (C*H*W).
    """

    x_CHW: Tensor
    tape: Tape
    goal: float
    random: bool = False
    additive: bool = True


class Machine(Protocol):
    """The attack on one image.

    Attributes:
        asked: candidates that were handed out and answered.
        done: nothing more to ask.
        stop_reason: why, once done.
        curve: (queries asked, best value) at every improvement; the value is the score, for minimum-norm
            attacks the distance of the closest success.
    """

    asked: int
    done: bool
    stop_reason: StopReason
    curve: list[tuple[int, float]]

    def ask(self) -> Ask:
        """Candidates to be judged, never more than the budget leaves; the same until they are answered."""
        ...

    def tell(self, answers: Sequence[Answer]) -> None:
        """The answers to the candidates of the last `ask`, in their order."""
        ...

    def best(self) -> tuple[Tensor, float]:
        """Best candidate that was asked, C x H x W, and its value."""
        ...

    def state(self) -> State:
        """All that `load` needs, between a tell and the next ask."""
        ...

    def load(self, state: State) -> None:
        """Take over a saved state; a machine that had spent a smaller budget goes on."""
        ...


class QueryAttack(Attack):
    """An attack that needs answers only."""

    kind: ClassVar[Literal["control", "gradient", "query"]] = "query"
    not_identity: ClassVar[frozenset[str]] = frozenset({"budget"})
    uses_event: ClassVar[bool] = False
    """Whether it learns from the success event alone, and so needs one to be declared."""

    budget: int = Field(default=1000, ge=1)
    """Queries allowed per image and restart; never exceeded."""
    stop: Literal["never", "success"] = "never"
    """``success``: an image ends at its own success; off for dB objectives, whose curves run on."""
    repeats: int | None = Field(default=None, ge=1)
    """Charged draws of a random victim for every candidate: scores are averaged, events decided by the
    majority. Unless given: `EVENT_REPEATS` where an event is learned from, else 1."""

    @property
    def passes(self) -> int:
        """One a query."""
        return self.restarts * self.budget

    def start(self, problem: QueryProblem) -> Machine:
        """Begin the attack on one image."""
        raise NotImplementedError("a query attack implements start")

    def machine(self, problem: QueryProblem, state: State | None = None) -> Machine:
        """The attack on one image from the beginning, or from where a saved state ends; repeats included."""
        from udc_ray.attacks.repeats import Repeated  # it wraps what is defined here

        repeats = self.repeats or (EVENT_REPEATS if self.uses_event else 1)
        wrapped = problem.random and repeats > 1
        machine = Repeated(self, problem, repeats) if wrapped else self.start(problem)
        if state is not None:
            machine.load(state)
        return machine
