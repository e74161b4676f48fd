"""Exact gradients through purifier and restorer against a bare loop, and the memory that they take.

Speed: per step two forward passes and one backward with respect to the input only, the parameters frozen; then the
restorer forward and backward. Guided plans are compared with plain double backward through the whole chain.
Memory: the peak above what is resident after loading, each in a process of its own (`adaptive_child`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.interleave import compare
from udc_ray import memory
from udc_ray.attacks.base import GradientTarget
from udc_ray.attacks.objectives import get_objective
from udc_ray.models.loading import load_restorer
from udc_ray.purifiers.diffusion import DDIM
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.purifiers.victim import Victim
from udc_ray.spec import Entry
from udc_ray.tape import Tape, normal_like

SLOTS = 4
GUIDED = ("gdmp", "agdm")


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: 5 and 10 steps, EOT 8 of one image, guided plans (4 images of 64 x 64, 1 thread); then memory."""
    torch.set_num_threads(1)
    memory.keep_freed_memory()  # as a host does; both sides profit
    rows = [_exact(steps, arguments.rounds) for steps in (5, 10)]
    rows.append(_copies(arguments.rounds))
    rows += [_guided(name, arguments.rounds) for name in GUIDED if name in PURIFIERS]
    return [*rows, *_memory()]


def _images() -> tuple[Tensor, Tensor, Tape]:
    x = torch.rand(SLOTS, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return x, x.flip(-1), Tape(seed=0, image_ids=tuple("abcd"), stream="attack")


def _ours(victim: Victim, count: int, eot: int = 1) -> Callable[[], Tensor]:
    x, truth, tape = _images()
    target = GradientTarget(victim, get_objective("mse"), truth, tape, eot=eot, select_draws=1, count=count)
    target.score = lambda x_BCHW, *, active_B=None: torch.zeros(len(x_BCHW))  # type: ignore[method-assign]  # gradients only

    def step() -> Tensor:
        return target.gradient(x, 0).gradient_BCHW

    return step


def _bare(purifier: DDIM, prepared: Any, batches: int) -> Callable[[], Tensor]:
    """The same arithmetic without the package's chain: DDIM with clipped estimates, eta 0."""
    x, truth, tape = _images()
    network, restorer = prepared.network, load_restorer(Entry(name="default"))
    times = purifier.rounds(prepared.schedule)[0].timesteps
    abars = [float(prepared.schedule.alpha_bar[t]) for t in times]
    moves = list(zip(times, abars, [*abars[1:], 1.0], strict=True))

    def reverse(x_t: Tensor, t: int, now: float, before: float) -> Tensor:
        eps = network(x_t, t, return_dict=False)[0]
        x0 = ((x_t - (1 - now) ** 0.5 * eps) / now**0.5).clamp(-1, 1)
        eps = (x_t - now**0.5 * x0) / (1 - now) ** 0.5
        moved: Tensor = before**0.5 * x0 + (1 - before) ** 0.5 * eps
        return moved

    def once() -> Tensor:
        noise = normal_like(tape.generators("bare"), x)
        with torch.no_grad():
            states = [abars[0] ** 0.5 * (x * 2 - 1) + (1 - abars[0]) ** 0.5 * noise]
            for move in moves:
                states.append(reverse(states[-1], *move))
        leaf = ((states[-1] + 1) / 2).clamp(0, 1).requires_grad_()
        loss = (restorer(leaf) - truth).square().mean(dim=(1, 2, 3)).sum()
        gradient = torch.autograd.grad(loss, leaf)[0] / 2
        for move, state in zip(reversed(moves), reversed(states[:-1]), strict=True):
            leaf = state.requires_grad_()
            gradient = torch.autograd.grad(reverse(leaf, *move), leaf, gradient)[0]
        found: Tensor = gradient * 2 * abars[0] ** 0.5
        return found

    def step() -> Tensor:
        return torch.stack([once() for _ in range(batches)]).sum(dim=0)

    return step


def _exact(steps: int, rounds: int) -> dict[str, Any]:
    purifier = DDIM(steps=steps)
    prepared = purifier.prepare("cpu")
    victim = Victim(restorer=load_restorer(Entry(name="default")), purifier=purifier, prepared=prepared)
    row = compare(f"ddim-{steps}, full", _ours(victim, SLOTS), _bare(purifier, prepared, 1), rounds, repeats=1)
    return row | {"times_bare": round(1 / row["share_of_bare"], 3), "goal": 1.1}


def _copies(rounds: int) -> dict[str, Any]:
    """EOT 8 of one image: two full batches of 4 rows, where eight padded ones would do the same."""
    purifier = DDIM(steps=5)
    prepared = purifier.prepare("cpu")
    victim = Victim(restorer=load_restorer(Entry(name="default")), purifier=purifier, prepared=prepared)
    row = compare("ddim-5, EOT 8 of one image", _ours(victim, 1, 8), _bare(purifier, prepared, 2), rounds, repeats=1)
    return row | {"goal": 0.95}


def _guided(name: str, rounds: int) -> dict[str, Any]:
    """A guided plan of few steps, against autograd through the whole unsegmented chain."""
    parameters: dict[str, Any] = {"steps": 5} if "steps" in PURIFIERS.get(name).model_fields else {}
    purifier = PURIFIERS.get(name).build("defence", parameters)
    prepared = purifier.prepare("cpu")
    restorer = load_restorer(Entry(name="default"))
    x, truth, tape = _images()

    def plain() -> Tensor:
        leaf = x.clone().requires_grad_()
        state: Any = (leaf,)
        for segment in purifier.segments(leaf, tape, prepared):
            state = segment(state, leaf)
        loss = (restorer(state[0]) - truth).square().mean(dim=(1, 2, 3)).sum()
        return torch.autograd.grad(loss, leaf)[0]

    victim = Victim(restorer=restorer, purifier=purifier, prepared=prepared)
    row = compare(f"{name}, full, against plain double backward", _ours(victim, SLOTS), plain, rounds, repeats=1)
    return row | {"times_bare": round(1 / row["share_of_bare"], 3)}


def _memory() -> list[dict[str, Any]]:
    few, many = _peak("segmented", 5, 8), _peak("segmented", 50, 8)
    allowed = 1.1 * few["peak_mib"] + 45 * few["state_mib"]
    whole, small = _peak("whole", 50, 1), _peak("segmented", 50, 1)
    return [
        {"name": "memory, 128 px, batch 8, 5 steps", **few},
        {"name": "memory, 128 px, batch 8, 50 steps", **many, "goal_mib": round(allowed, 1)},
        {"name": "memory, 128 px, batch 1, 50 steps", **small},
        {"name": "memory, 128 px, batch 1, 50 steps, unsegmented", **whole}
        | {"times_segmented": round(whole["peak_mib"] / small["peak_mib"], 2), "goal": 4},
    ]


def _peak(kind: str, steps: int, batch: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.adaptive_child", kind, str(steps), str(batch)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found
