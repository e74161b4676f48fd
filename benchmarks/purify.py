"""Denoiser calls a second inside the purifier against the bare denoiser loop."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.interleave import compare
from udc_ray import memory
from udc_ray.purifiers.diffusion import DDIM
from udc_ray.tape import Tape


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for 3 and one for 10 steps: 4 images of 64 x 64, 1 thread."""
    torch.set_num_threads(1)
    memory.keep_freed_memory()  # as a host does; both sides profit
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tape = Tape(seed=0, image_ids=tuple("abcd"), stream="eval")
    rows = []
    for steps in (3, 10):
        purifier = DDIM.build("defence", {"steps": steps})
        denoiser = purifier.prepare("cpu")
        network = denoiser.network

        def ours(purifier: DDIM = purifier, denoiser: Any = denoiser) -> None:
            with torch.no_grad():
                purifier.purify(x, tape, denoiser)

        def bare(network: Any = network, steps: int = steps) -> None:
            with torch.no_grad():
                for t in range(steps):
                    network(x, torch.full((4,), t))

        rows.append(compare(f"ddim-{steps}", ours, bare, arguments.rounds, repeats=2))
    return rows
