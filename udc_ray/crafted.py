"""An attacked image on its way from the attack to the scores."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from udc_ray.attacks.diagnostics import Diagnostics


@dataclass(frozen=True, kw_only=True)
class Crafted:
    """What an attack made of one image in one restart.

    Attributes:
        image_id, restart: whose and which.
        x_adv_CHW: the attacked image, at the storage depth of the threat.
        queries, grad_evals: what it cost.
        stop_reason: why the attack stopped.
        seconds: wall time, shared evenly by the images of a micro-batch.
        curve: (queries asked, best score) of a query attack.
        diagnostics: what a gradient attack noticed on its way; None where it notes nothing.
    """

    image_id: str
    restart: int
    x_adv_CHW: Tensor
    queries: int
    grad_evals: int
    stop_reason: str
    seconds: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    diagnostics: Diagnostics | None = None
    from_memory: int | None = None
    """Queries that were answered from memory and not sent; None where there was none."""
    allowed: int | None = None
    """Queries that it was allowed where that was less than the attack's budget."""
