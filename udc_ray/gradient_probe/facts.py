"""What a victim is made of: its plan, its precision, and gradients that it takes by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from udc_ray.gradient_probe.double import modules_of
from udc_ray.gradient_probe.subject import Subject
from udc_ray.purifiers.base import SURROGATE, is_surrogate
from udc_ray.purifiers.victim import Victim


def plans(subject: Subject) -> dict[str, Any]:
    """Hashes and steps of the purification as deployed, and as the gradient passes it."""
    victim, mode = subject.victim, subject.mode
    steps = int(mode.removeprefix(SURROGATE)) if is_surrogate(mode) else None
    plan, length = _plan(subject, None)
    attack_plan, attack_length = (plan, length) if steps is None else _plan(subject, steps)
    if mode == "forward-noise":
        attack_plan, attack_length = mode, 0
    known = victim.purifier is not None
    return {
        "plan": plan,
        "attack_plan": attack_plan,
        "steps": length if known else None,
        "attack_steps": attack_length if known else None,
    }


def _plan(subject: Subject, steps: int | None) -> tuple[str, int | None]:
    """Hash and length of the chain that a purifier walks; of its parameters where it is no chain."""
    victim = subject.victim
    if victim.purifier is None:
        return "none", None
    segments = getattr(victim.purifier, "segments", None)
    if segments is None:
        return _hash(victim.purifier.identity()), None
    chain = segments(subject.x_1CHW, subject.tape, victim.prepared, steps=steps)
    described = [[getattr(s, name, None) for name in ("t", "round", "first", "last")] for s in chain]
    return _hash(f"{victim.purifier.name} {described!r}"), len(chain)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def precision(victim: Victim) -> dict[str, Any]:
    """Type of the weights as deployed, and whether anything is compiled."""
    networks = modules_of(victim)
    types = {p.dtype for network in networks for p in network.parameters() if p.dtype.is_floating_point}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in types or {torch.float32})
    compiled = any(type(part).__name__ == "OptimizedModule" for network in networks for part in network.modules())
    return {"dtype": " and ".join(names), "compiled": compiled}


def inner_gradients(subject: Subject) -> int:
    """Calls of autograd while the victim is evaluated without a gradient."""
    with _counting() as calls:
        subject.victim.evaluate(subject.x_1CHW, subject.tape)
    return len(calls)


@contextmanager
def _counting() -> Iterator[list[str]]:
    """Names of the functions of autograd that are called inside."""
    calls: list[str] = []
    originals = {name: getattr(torch.autograd, name) for name in ("grad", "backward")}

    def counted(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return originals[name](*arguments, **options)

        return call

    for name in originals:
        setattr(torch.autograd, name, counted(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(torch.autograd, name, original)
