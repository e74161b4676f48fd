"""What was measured of a run beside its records: how gradients pass each victim, and how a level was chosen.

`udc_ray.gradient_probe` makes the readings before the units begin; they stand in environment.json under ``probes``,
so that the checks can be made again from the files of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from udc_ray.metrics.statistics import CellRecords

GRADIENTS = "gradients"
"""Key of the readings in environment.json, under ``probes``."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a gradient passes one victim in one mode, measured on a crop of one image. Unknown is None.

    Attributes:
        defense: label of the defence, as in the records; ``none`` is the undefended model.
        grad_mode: the mode.
        image_id, side: the image, and the edge of its crop in pixels.
        failure: why there is no gradient to look at, where it is neither cut nor refused by the recompute.
        cut: the output does not depend on the image as far as autograd knows.
        finite: every value of the gradient is a number.
        zero_share: share of the gradient's values that are exactly 0.
        recomputed: steps that were done again gave the same bits; None where nothing is done again.
        directions, agreeing, kinks: central differences that were taken in float64, how many of them the gradient
            equals, and how many straddled a kink and say nothing.
        gap: largest relative distance of a directional derivative from its central difference, kinks left out.
        no_double: why no central difference could be taken.
        cosine: of the gradient with the exact one, for modes that are not exact.
        guide_gap: relative distance between directional derivatives with and without the path through the guide.
        eot: (n, cosine of two independent gradients averaged over n draws), n increasing.
        repeatable: the same noise gives the same output, and the gradient's forward pass is the deployed one.
        own_noise: evaluation draws other noise than the attack.
        frozen, free: damage of a short attack on frozen noise, and of the same attack with fresh noise, both scored
            on the frozen noise. In units of the objective, clean damage taken off.
        plan, attack_plan: hash of the purification as deployed, and as the gradient passes it.
        steps, attack_steps: denoiser calls of both.
        forward_gap: largest distance between the deployed output and the forward pass of the gradient, same noise.
        dtype, compiled: as deployed.
        parity: dB between the score as deployed and the score of an eager copy in double.
        inner_gradients: calls of autograd while the victim was evaluated without a gradient.
        seconds: what the probe took.
    """

    defense: str
    grad_mode: str
    image_id: str = ""
    side: int = 0
    failure: str = ""
    cut: bool = False
    finite: bool | None = None
    zero_share: float | None = None
    recomputed: bool | None = None
    directions: int = 0
    agreeing: int = 0
    kinks: int = 0
    gap: float | None = None
    no_double: str = ""
    cosine: float | None = None
    guide_gap: float | None = None
    eot: tuple[tuple[int, float], ...] = ()
    repeatable: bool | None = None
    own_noise: bool | None = None
    frozen: float | None = None
    free: float | None = None
    plan: str = ""
    attack_plan: str = ""
    steps: int | None = None
    attack_steps: int | None = None
    forward_gap: float | None = None
    dtype: str = ""
    compiled: bool = False
    parity: float | None = None
    inner_gradients: int | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that JSON cannot hold becomes null."""
        plain = asdict(self)
        for key, value in plain.items():
            if isinstance(value, float) and not math.isfinite(value):
                plain[key] = None
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reading:
        """Read back what `to_json` wrote; keys of later versions are left out."""
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        return cls(**kept | {"eot": tuple((int(n), float(cosine)) for n, cosine in values.get("eot", ()))})


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that the checks read beside records and spec.

    Attributes:
        gradients: one reading a victim and mode.
        choices: how noise levels were chosen before the run, by label of the defence; see `udc_ray.selection.Choice`.
    """

    gradients: tuple[Reading, ...] = ()
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, cell: CellRecords) -> Reading | None:
        """The reading that belongs to a cell."""
        wanted = (cell.head.defense, cell.head.grad_mode)
        return next((r for r in self.gradients if (r.defense, r.grad_mode) == wanted), None)


NOTHING = Measured()


def measured(environment: object, selection: object = None) -> Measured:
    """What the files of a run hold beside its records; what cannot be read counts as missing.

    Args:
        environment: environment.json, or None; the readings of the latest session that has any are taken.
        selection: selection.json, or None.
    """
    sessions: Sequence[object] = ()
    if isinstance(environment, Mapping):
        earlier = environment.get("earlier", ())
        sessions = [environment, *reversed(list(earlier) if isinstance(earlier, Sequence) else [])]
    probes = [s["probes"] for s in sessions if isinstance(s, Mapping) and isinstance(s.get("probes"), Mapping)]
    gradients = next((p[GRADIENTS] for p in probes if p.get(GRADIENTS)), ())
    choices = [c for c in selection if isinstance(c, Mapping)] if isinstance(selection, Sequence) else []
    return Measured(gradients=tuple(_readings(gradients)), choices={str(c.get("label")): c for c in choices})


def _readings(values: Iterable[object]) -> list[Reading]:
    try:
        return [Reading.from_json(value) for value in values if isinstance(value, Mapping)]
    except (TypeError, ValueError):
        return []
