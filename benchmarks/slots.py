"""Useful slots of a campaign whose attacks end when they like, against an ideal refill and against lock-step.

64 images x 4 attacks, batches of 8; every chain stops after a log-normal number of queries (median 30, sd 1.5, at
most 1000). The pool, the stepper and the batcher are the real ones, on local Ray; the host answers without a model
and notes whose candidates came in each batch.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from udc_ray.attacks.machine import QueryMachine
from udc_ray.attacks.oracle import ScoreRequest
from udc_ray.attacks.query import Answer, Ask, QueryAttack, QueryProblem
from udc_ray.config import build_spec
from udc_ray.crafted import Crafted
from udc_ray.data.base import Sample
from udc_ray.meter import Meter
from udc_ray.plan import Unit
from udc_ray.prepare import prepare
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup

IMAGES, ATTACKS, SLOTS = 64, 4, 8
MEDIAN, SPREAD, CAP = 30, 1.5, 1000
BATCH_SECONDS = 0.01

Chain = tuple[int, str]
"""Number of the attack, and the image."""


def chain_length(number: int, image_id: str, seed: int) -> int:
    """Queries of a chain until its success."""
    drawn = np.random.default_rng([seed, number, int(image_id)]).lognormal(math.log(MEDIAN), SPREAD)
    return int(np.clip(math.ceil(drawn), 1, CAP))


class Scripted(QueryAttack):
    """Asks for the untouched image until its script says that it has succeeded."""

    name: ClassVar[str] = "scripted"
    number: int = 0
    seed: int = 0
    budget: int = CAP

    def start(self, problem: QueryProblem) -> ScriptedMachine:
        """Begin on one image."""
        return ScriptedMachine(self, problem)


class ScriptedMachine(QueryMachine):
    """A chain of known length."""

    def __init__(self, attack: Scripted, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.length = chain_length(attack.number, problem.tape.image_ids[0], attack.seed)

    def propose(self) -> Ask:
        return Ask(x_KCHW=self.x_CHW[None])

    def exhausted(self) -> bool:
        """Whether the script is at its end."""
        return self.asked >= self.length


@dataclass(frozen=True)
class Small:
    """64 images that cost nothing."""

    name: str = "small"
    image_ids: tuple[str, ...] = tuple(f"{n:03d}" for n in range(IMAGES))

    def load(self, image_id: str) -> Sample:
        """An image of 16 x 16."""
        grey = torch.full((3, 16, 16), 0.5)
        return Sample(image_id=image_id, degraded=grey, truth=grey)


class Noting:
    """A host that takes its time for a batch, and remembers whose candidates it held."""

    def __init__(self, setup: HostSetup, device: str, name: str) -> None:
        self.meter, self.batches = Meter(), list[list[tuple[str, str]]]()

    def arrive(self) -> Any:
        """See `HostActor.arrive`."""
        from udc_ray_cluster.seats import arrival

        return arrival(memory=0)

    def pulse(self) -> Any:
        """See `HostActor.pulse`."""
        return self.meter.read()

    def recall(self, ticket: int) -> bool:
        """See `HostActor.recall`."""
        return False

    def keep(self, defences: Any) -> None:
        """It holds nothing."""

    def goals(self, unit: Unit) -> dict[str, tuple[float, float]]:
        """No success but the script's."""
        return {image_id: (0.0, math.inf) for image_id in unit.image_ids}

    def score(self, request: ScoreRequest) -> list[Answer]:
        """Note, wait, answer."""
        with self.meter.work("batch"):
            self.batches.append([(row.cell, row.image_id) for row in request.rows])
            time.sleep(BATCH_SECONDS)
            self.meter.step(len(request.rows))
        return [0.0] * len(request.rows)

    def finish(self, unit: Unit, crafted: list[Crafted]) -> UnitResult:
        """Nothing is scored."""
        return UnitResult(records=[])

    def noted(self) -> list[list[tuple[str, str]]]:
        """Chains of every batch."""
        return self.batches


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row: the share of useful slots, and what an ideal refill and lock-step would reach."""
    batches = _campaign(arguments.seed)
    asked = Counter(chain for batch in batches for chain in batch)
    lengths = [
        chain_length(number, image_id, arguments.seed) for number in range(ATTACKS) for image_id in Small().image_ids
    ]
    if sorted(asked.values()) != sorted(lengths):
        raise SystemExit("a query was lost or asked twice")
    useful = sum(lengths)
    ideal, lockstep = ideal_batches(lengths, SLOTS), lockstep_batches(lengths, SLOTS)
    return [
        {
            "name": "log-normal stops",
            "of_ideal": round(ideal / len(batches), 4),
            "while_plenty": round(share_while_plenty(batches, asked, SLOTS), 4),
            "useful": round(useful / (SLOTS * len(batches)), 4),
            "ideal": round(useful / (SLOTS * ideal), 4),
            "lockstep": round(useful / (SLOTS * lockstep), 4),
            "one_at_a_time": round(1 / SLOTS, 4),
            "queries": useful,
            "batches": len(batches),
            "ideal_batches": ideal,
            "lockstep_batches": lockstep,
            "goals": "of_ideal 0.97, while_plenty 0.95",
        }
    ]


def _campaign(seed: int) -> list[list[tuple[str, str]]]:
    """Run the campaign, and return the chains of every batch."""
    import ray

    from udc_ray_cluster.host import HOSTS
    from udc_ray_cluster.placement import Placement
    from udc_ray_cluster.pool import RayPool
    from udc_ray_cluster.session import session

    attacks = ",".join(f"{{name: 'benchmarks.slots:Scripted', number: {n}, seed: {seed}}}" for n in range(ATTACKS))
    sets = (f"attacks=[{attacks}]", "defenses=[none]", f"run.micro_batch={SLOTS}", "limit=1", "data.size=16")
    setup = prepare(build_spec(sets=sets)).setup
    setup = replace(setup, dataset=Small())
    with session(1):
        pool = RayPool(setup, Placement(least=1, most=1), "cpu", kind=replace(HOSTS, actor=Noting))
        try:
            pool.gather()
            failed = [o.error for o in pool.map_unordered(setup.plan.units(setup.dataset.image_ids, 4)) if o.error]
            noted: list[list[tuple[str, str]]] = ray.get(pool.seats[0].actor.noted.remote())
        finally:
            pool.close()
    if failed:
        raise SystemExit(failed[0])
    return noted


def ideal_batches(lengths: Sequence[int], slots: int) -> int:
    """Batches of a campaign that fills every freed slot at once, in the order of the plan."""
    waiting, live, batches = list(lengths)[::-1], list[int](), 0
    while waiting or live:
        while waiting and len(live) < slots:
            live.append(waiting.pop())
        live = [left - 1 for left in live if left > 1]
        batches += 1
    return batches


def lockstep_batches(lengths: Sequence[int], slots: int) -> int:
    """Batches where a group of images is carried to the end of its longest."""
    return sum(max(lengths[start : start + slots]) for start in range(0, len(lengths), slots))


def share_while_plenty(batches: Sequence[Sequence[object]], lengths: Counter[Any], slots: int) -> float:
    """Useful share of the slots of all batches before which at least `slots` chains were not at their end."""
    left, filled, counted = Counter(lengths), 0, 0
    for batch in batches:
        if sum(n > 0 for n in left.values()) >= slots:
            filled, counted = filled + len(batch), counted + 1
        left.subtract(batch)
    return filled / (slots * counted)
