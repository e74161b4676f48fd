"""A short throughput probe of the default restorer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from udc_ray import memory
from udc_ray.models.base import Restorer
from udc_ray.models.loading import load_restorer
from udc_ray.spec import Entry

SLOTS, EDGE = 4, 128


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second of one host."""

    device: str
    threads: int
    forward: float
    """Images restored per second."""
    gradient: float
    """Images restored and differentiated with respect to the input per second."""


def measure(*, seconds: float = 10.0, threads: int = 1, restorer: Restorer | None = None) -> Speed:
    """Run micro-batches of 4 images of 128 x 128 through a restorer, without and with gradient.

    Args:
        seconds: how long, half for each; every way runs at least once beyond its warm-up.
        threads: torch threads.
        restorer: what to measure; the default one unless given.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory.keep_freed_memory()  # as a host does
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = restorer or load_restorer(Entry(name="default"), device)
        x_BCHW = torch.full((SLOTS, model.descriptor.channels, EDGE, EDGE), 0.5, device=device)

        def forward() -> None:
            with torch.no_grad():
                model(x_BCHW)

        def gradient() -> None:
            leaf_BCHW = x_BCHW.clone().requires_grad_()
            torch.autograd.grad(model(leaf_BCHW).square().mean(), leaf_BCHW)

        rates = [_rate(step, seconds / 2) for step in (forward, gradient)]
    finally:
        torch.set_num_threads(before)
    return Speed(device=device, threads=threads, forward=rates[0], gradient=rates[1])


def _rate(step: Callable[[], None], seconds: float) -> float:
    """Images per second, after one call to warm up."""
    step()
    _wait()
    begin, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - begin < seconds:
        step()
        _wait()
        calls += 1
    return SLOTS * calls / (time.perf_counter() - begin)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
