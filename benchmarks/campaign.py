"""Answered queries a second of a query attack on local Ray against the bare batched loop in the same host process."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import ray
import torch

from udc_ray.attacks.oracle import ScoreRequest
from udc_ray.config import Overrides, build_spec
from udc_ray.crafting import craft_by_queries
from udc_ray.host import Host
from udc_ray.plan import Unit
from udc_ray.prepare import prepare
from udc_ray.setup import HostSetup
from udc_ray_cluster.host import HostActor
from udc_ray_cluster.session import session

IMAGES, BUDGET = 4, 25


class Measured(HostActor):
    """A host that can also run the bare loop, so that both sides live in one process."""

    def bare(self, batches: int) -> float:
        """Seconds of `batches` forward passes with scoring, without anything around them."""
        host: Host = self.host
        ids = host.setup.dataset.image_ids[: host.slots]
        request = ScoreRequest(
            victim=0, objective="mse", image_ids=ids, x_NCHW=torch.stack([host.sample(i).degraded for i in ids])
        )
        started = time.perf_counter()
        for _ in range(batches):
            host.score(request)
        return time.perf_counter() - started


def craft(setup: HostSetup, unit: Unit, host: Any) -> float:
    """Seconds in which a CPU task steps the machines of a unit against a host."""
    goals = ray.get(host.goals.remote(unit))
    started = time.perf_counter()
    craft_by_queries(setup, unit, goals, lambda request: ray.get(host.score.remote(request)))
    return time.perf_counter() - started


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row: Square on 4 images of 256 x 256, micro-batch 4, 1 thread, one host."""
    flags = Overrides(attacks=(f"square:budget={BUDGET}",), defenses=("none",), limit=IMAGES)
    setup = prepare(build_spec(flags=flags, sets=("data.size=256",))).setup
    unit = next(setup.plan.units(setup.dataset.image_ids, IMAGES))
    ours, bare = [], []
    with session(1):
        host = ray.remote(Measured).options(num_cpus=0).remote(setup, "cpu", "host")
        task = ray.remote(craft).options(num_cpus=0)
        for _ in range(arguments.rounds + 1):
            ours.append(ray.get(task.remote(setup, unit, host)))
            bare.append(ray.get(host.bare.remote(BUDGET)))
    ratios = [b / o for o, b in zip(ours[1:], bare[1:], strict=True)]  # the first round is the warm-up
    return [
        {
            "name": "square on one host",
            "share_of_bare": round(statistics.median(ratios), 4),
            "lowest": round(min(ratios), 4),
            "highest": round(max(ratios), 4),
            "queries_per_s": round(IMAGES * BUDGET / statistics.median(ours[1:]), 2),
            "bare_per_s": round(IMAGES * BUDGET / statistics.median(bare[1:]), 2),
            "batch_ms": round(1000 * statistics.median(bare[1:]) / BUDGET, 1),
            "rounds": arguments.rounds,
        }
    ]
