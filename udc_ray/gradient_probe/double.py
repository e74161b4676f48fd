"""A victim in double precision, to be compared with differences that float32 would drown."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from udc_ray.errors import UdcRayError
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

CLOSE = 1e-2
"""Distance of the outputs in both precisions, in units of the image, up to which the copy is the same victim."""


class NoDouble(UdcRayError):
    """The victim has no copy in double precision."""


def in_double(victim: Victim, x_1CHW: Tensor, tape: Tape) -> Victim:
    """A copy of a victim that computes in float64.

    Args:
        victim: not changed.
        x_1CHW: image on which both are compared, float32.
        tape: noise of both.

    Raises:
        NoDouble: with the reason.
    """
    try:
        restorer, prepared = copy.deepcopy((victim.restorer, victim.prepared))
        for part in _parts([restorer, prepared]):
            _to_double(part)
        doubled = replace(victim, restorer=restorer, prepared=prepared)
        output, _ = doubled.evaluate(x_1CHW.double(), tape)
    except Exception as error:  # a user's model may refuse in any way; it is only compared in one way less
        raise NoDouble(f"no copy in float64: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    if output.dtype != torch.float64:
        raise NoDouble(f"the victim answers in {str(output.dtype).removeprefix('torch.')} whatever it is given")
    deployed, _ = victim.evaluate(x_1CHW, tape)
    gap = float((output - deployed).abs().max())
    if not gap <= CLOSE * max(1.0, float(deployed.abs().max())):
        raise NoDouble(f"a copy in float64 answers otherwise, by {gap:.2g}")
    return doubled


def modules_of(victim: Victim) -> list[nn.Module]:
    """The networks of a victim, the outermost ones."""
    return [part for part in _parts([victim.restorer, victim.prepared]) if isinstance(part, nn.Module)]


def _parts(roots: list[Any]) -> Iterator[Any]:
    """Modules, and whatever else may hold tensors, each once; what is inside a module is left to the module."""
    todo, seen = list(roots), set[int]()
    while todo:
        part = todo.pop()
        if id(part) in seen or isinstance(part, type):
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            todo += part.values()
        elif isinstance(part, list | tuple | set | frozenset):
            todo += part
        elif hasattr(part, "__dict__") and not callable(getattr(part, "__code__", None)):
            yield part
            if not isinstance(part, nn.Module):
                todo += vars(part).values()


def _to_double(part: Any) -> None:
    owners = [part]
    if isinstance(part, nn.Module):
        nn.Module.double(part)  # what a library puts in its place may warn, or keep some parts
        owners = list(part.modules())
    for owner in owners:
        for name, value in list(vars(owner).items()):
            if isinstance(value, Tensor) and value.dtype == torch.float32:
                object.__setattr__(owner, name, value.double())
