"""PGD images a second against the bare forward and backward loop on the same network."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.interleave import compare
from udc_ray import memory
from udc_ray.attacks.base import GradientTarget, Problem
from udc_ray.attacks.objectives import get_objective
from udc_ray.attacks.pgd import PGD
from udc_ray.models.loading import load_restorer
from udc_ray.purifiers.victim import Victim
from udc_ray.spec import Entry
from udc_ray.tape import Tape

STEPS = 10


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each norm: 4 images of 128 x 128, 10 steps, 1 thread."""
    torch.set_num_threads(1)
    memory.keep_freed_memory()  # as a host does; both sides profit
    restorer = load_restorer(Entry(name="default"))
    x = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    truth = x.flip(-1)
    tape = Tape(seed=0, image_ids=tuple("abcd"), stream="attack")
    zero = torch.zeros(4, dtype=torch.float64)

    def bare() -> None:
        for _ in range(STEPS):
            leaf = x.clone().requires_grad_(True)
            loss = (restorer(leaf) - truth).square().mean(dim=(1, 2, 3)).sum()
            torch.autograd.grad(loss, leaf)
        with torch.no_grad():
            restorer(x)

    rows = []
    for norm in ("linf", "l2"):
        attack = PGD.build("attack", {"norm": norm, "steps": STEPS})

        def ours(attack: PGD = attack) -> None:
            target = GradientTarget(Victim(restorer=restorer), get_objective("mse"), truth, tape)
            attack.perturb(target, Problem(x_BCHW=x, tape=tape, clean_score_B=zero, goal_B=zero + 1))

        rows.append(compare(f"pgd-{norm}", ours, bare, arguments.rounds, repeats=2))
    return rows
