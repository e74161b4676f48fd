"""Answered queries a second of a campaign on local Ray, against the bare batched loop in the same host process.

Beside it: one image at a time, and groups of images that are carried to the end of the longest without refill.
`python -m benchmarks rivals` compares other tools on a classifier.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import ray
import torch

from udc_ray.attacks.driver import drive, start_chains
from udc_ray.attacks.oracle import Oracle, Row, ScoreRequest, pack
from udc_ray.config import Overrides, build_spec
from udc_ray.host import Host
from udc_ray.plan import Unit
from udc_ray.prepare import prepare
from udc_ray.setup import HostSetup
from udc_ray.stepping import query_attack
from udc_ray_cluster.host import HostActor
from udc_ray_cluster.session import session
from udc_ray_cluster.stepping import StepperActor

IMAGES, BUDGET = 12, 8


class Measured(HostActor):
    """A host that can also run the bare loop, so that both sides live in one process."""

    def bare(self, batches: int, rows: int) -> float:
        """Seconds of `batches` batches of `rows` candidates, forward pass and score, without anything around them."""
        host: Host = self.host
        ids = host.setup.dataset.image_ids[:rows]
        request = ScoreRequest(
            victim=0,
            rows=tuple(Row(image_id=i) for i in ids),
            packed=pack(torch.stack([host.sample(i).degraded for i in ids])),
        )
        started = time.perf_counter()
        for _ in range(batches):
            host.score(request)
        return time.perf_counter() - started


class Driving(StepperActor):
    """A stepper that is timed while its chains ask; goals and final scores are the harness's."""

    async def drive(self, units: list[Unit]) -> float:
        """Seconds in which all chains of the units come to their end."""
        stepper = self._stepper
        goals = [await stepper.host.goals(unit) for unit in units]
        chains = [
            start_chains(query_attack(stepper.setup, unit), stepper._problems(unit, goal))
            for unit, goal in zip(units, goals, strict=True)
        ]
        started = time.perf_counter()
        await drive([chain for group in chains for chain in group], self._oracle(units[0]), stepper.batcher)
        return time.perf_counter() - started

    def _oracle(self, unit: Unit) -> Oracle:
        return Oracle(self._stepper.batcher.send, unit.victim, Row(image_id=""), BUDGET)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Square on 12 images of 256 x 256, micro-batch 4, 1 thread, one host."""
    setup = _setup(4)
    units = list(setup.plan.units(setup.dataset.image_ids, 4))
    with session(1):
        host = ray.remote(Measured).options(num_cpus=0).remote(setup, "cpu", "host")
        stepper = ray.remote(Driving).options(num_cpus=0).remote(setup, host)
        single = ray.remote(Measured).options(num_cpus=0).remote(_setup(1), "cpu", "single")
        ours, bare, one = [], [], []
        for _ in range(arguments.rounds + 1):
            ours.append(ray.get(stepper.drive.remote(units)))
            bare.append(ray.get(host.bare.remote(IMAGES * BUDGET // 4, 4)))
            one.append(ray.get(single.bare.remote(IMAGES * BUDGET // 4, 1)) * 4)
    queries = IMAGES * BUDGET
    rows = [_row("campaign, two batches in flight", queries, ours, bare)]
    rows.append(_row("one image at a time, batches of 1", queries, one, bare))
    rows.append(_lockstep(rows[0]["bare_per_s"]))
    return rows


def _setup(slots: int) -> HostSetup:
    flags = Overrides(attacks=(f"square:budget={BUDGET}",), defenses=("none",), limit=IMAGES)
    prepared = prepare(build_spec(flags=flags, sets=("data.size=256", f"run.micro_batch={slots}")))
    return prepared.setup


def _row(name: str, queries: int, ours: list[float], bare: list[float]) -> dict[str, Any]:
    ratios = [b / o for o, b in zip(ours[1:], bare[1:], strict=True)]  # the first round is the warm-up
    return {
        "name": name,
        "share_of_bare": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
        "queries_per_s": round(queries / statistics.median(ours[1:]), 2),
        "bare_per_s": round(queries / statistics.median(bare[1:]), 2),
        "batch_ms": round(4000 * statistics.median(bare[1:]) / queries, 1),
        "rounds": len(ratios),
    }


def _lockstep(bare_per_s: float) -> dict[str, Any]:
    """Groups without refill, at the stops of `slots`: the share of a batch that is of use, at the bare rate."""
    from benchmarks.slots import ATTACKS, IMAGES, chain_length, lockstep_batches

    lengths = [chain_length(number, f"{image:03d}", 0) for number in range(ATTACKS) for image in range(IMAGES)]
    share = float(np.sum(lengths) / (4 * lockstep_batches(lengths, 4)))
    return {
        "name": "lock-step without refill, log-normal stops (computed)",
        "share_of_bare": round(share, 4),
        "queries_per_s": round(share * bare_per_s, 2),
        "bare_per_s": bare_per_s,
    }
