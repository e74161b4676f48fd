"""The noise floor of a random target: what repeating the untouched image does."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from udc_ray.attacks.decision import AT_ONCE
from udc_ray.attacks.machine import QueryMachine
from udc_ray.attacks.query import Ask, QueryAttack, QueryProblem


class CleanRepeat(QueryAttack):
    """Asks the untouched image again and again, as often as the budget says.

    Whatever it "finds" is luck of the draw: an attack on a random target that does no more has found
    nothing. The curve holds the worst answer so far; on a deterministic target it has one entry. The
    image is never changed, so eps only sets the size of the random noise that stands beside it.
    """

    name: ClassVar[str] = "clean-repeat"

    budget: int = Field(default=10, ge=1)
    """How often the image is asked."""

    def start(self, problem: QueryProblem) -> CleanRepeatMachine:
        """Begin on one image."""
        return CleanRepeatMachine(self, problem)


class CleanRepeatMachine(QueryMachine):
    """The untouched image, over and over."""

    def propose(self) -> Ask:
        return Ask(x_KCHW=self.x_CHW.repeat(min(self.left, AT_ONCE), 1, 1, 1))
