"""What the published networks cost on this CPU: one 256 x 256 image, a fresh process each, one thread."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from udc_ray.models.published import PUBLISHED, build, run_published

EDGE = 256
ROUNDS = 3


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a network: parameters, multiplications, seconds and peak memory of the network's own."""
    return [_row(name) for name in PUBLISHED]


def _row(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.networks", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"network": name, **json.loads(done.stdout)}


def one(name: str) -> dict[str, float]:
    """Cost of one network in this process, one thread, without gradients."""
    torch.set_num_threads(1)
    options = {"image_size": EDGE} if name.startswith(("uformer", "swinir")) else {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network, image = build(name, **options), torch.rand(1, 3, EDGE, EDGE)
    times = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            started = time.perf_counter()
            run_published(name, network, image)
            times.append(time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        with FlopCounterMode(display=False) as counter:
            run_published(name, network, image)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "gmac": round(counter.get_total_flops() / 2e9, 1),
        "seconds": round(statistics.median(times), 2),
        "peak_mib": round(peak / 1024),
    }


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1])))
