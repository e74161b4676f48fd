"""What a run of query attacks costs, known before it starts: units, queries, device hours and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from udc_ray.attacks.query import QueryAttack
from udc_ray.evaluation import CONTROL_DRAWS
from udc_ray.plan import Plan, Unit
from udc_ray.setup import HostSetup

PROBE_SECONDS = 10.0
"""How long a host is measured for an estimate, over all victims."""
RECORD_BYTES = 400
"""A record in parquet, about."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An estimate; queries and bytes are upper bounds, as successes may end attacks early.

    Attributes:
        units, images: what is dispatched, and the images in it, counted once a cell.
        queries: that attacks ask at most.
        harness: evaluations for clean images, noise controls and final scores.
        device_hours: of one host; None where the target was not probed.
        kept_bytes: records, attacked images and states.
    """

    units: int
    images: int
    queries: int
    harness: int
    device_hours: float | None
    kept_bytes: int

    def lines(self) -> list[str]:
        """The estimate in words."""
        time = "time unknown: a metered target is not probed"
        if self.device_hours is not None:
            time = f"about {describe_hours(self.device_hours)} of one host"
        return [
            f"to do: {self.units:,} units, {self.images:,} attacked images; at most {self.queries:,} queries "
            f"and {self.harness:,} evaluations of the harness",
            f"cost: {time}; at most {describe_bytes(self.kept_bytes)} on disk",
        ]


def attacked_victims(units: Iterable[Unit]) -> list[int]:
    """Victims whose speed matters: those that are attacked, and those that are scored."""
    return sorted({d for unit in units for d in (unit.victim, *(cell.defence for cell in unit.cells))})


def estimate(setup: HostSetup, units: Sequence[Unit], seconds: Mapping[int, float] | None) -> Cost:
    """Cost of what is to be done.

    Args:
        setup: the run, with what was resolved.
        units: what is to be done, with their caps.
        seconds: of one full batch, by victim; None where nothing was probed.
    """
    queries = {unit.key: unit_queries(setup.plan, unit) for unit in units}
    scored = [
        (cell.defence, len(unit.image_ids) * _scoring(setup.plan, cell.defence))
        for unit in units
        for cell in unit.cells
    ]
    hours = None
    if seconds is not None:
        slots = setup.resolved.micro_batch
        asked = sum(queries[unit.key] * seconds[unit.victim] for unit in units)
        harness = sum(count * seconds[victim] for victim, count in scored)
        hours = (asked + harness) / slots / 3600
    return Cost(
        units=len(units),
        images=sum(len(unit.image_ids) for unit in units),
        queries=sum(queries.values()),
        harness=sum(count for _, count in scored),
        device_hours=hours,
        kept_bytes=_kept_bytes(setup, units),
    )


def unit_queries(plan: Plan, unit: Unit) -> int:
    """Queries that the attack of a unit asks at most."""
    attack = plan.attacks[unit.attack].attack
    if not isinstance(attack, QueryAttack):
        return 0
    return sum(unit.caps) if unit.caps else len(unit.image_ids) * attack.restarts * attack.budget


def _scoring(plan: Plan, defence: int) -> int:
    """Evaluations of the harness for one image of a cell."""
    purifier = plan.defences[defence].purifier
    samples = purifier.samples if purifier is not None and purifier.random else 1
    return 2 * samples + CONTROL_DRAWS


def _kept_bytes(setup: HostSetup, units: Sequence[Unit]) -> int:
    sizes: dict[str, int] = {}
    total = 0
    for unit in units:
        for image_id in unit.image_ids:
            if image_id not in sizes:
                sizes[image_id] = 4 * math.prod(setup.dataset.load(image_id).degraded.shape)
            pictures = 0 if setup.spec.run.save == "none" else 2
            states = isinstance(setup.plan.attacks[unit.attack].attack, QueryAttack)
            total += (pictures + states) * sizes[image_id] + RECORD_BYTES * len(unit.cells)
    return total


def describe_hours(hours: float) -> str:
    """Hours, minutes or seconds, whichever reads best."""
    seconds = hours * 3600
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{hours:,.1f} h"


def describe_bytes(count: int) -> str:
    """Bytes in a unit that reads well."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
