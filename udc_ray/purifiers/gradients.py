"""Exact gradients through a chain at the memory of one step: store a state a step, do every step again.

One state is stored before every segment; backward redoes one segment at a time from it, with the noise drawn
anew from the tape, and passes the gradient on. What is redone must equal what was stored bit for bit
(the self-test of DiffBreak, NeurIPS 2025): a gradient of another chain is no gradient of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from udc_ray.errors import UserError
from udc_ray.purifiers.chain import Segment, State


class RecomputeError(UserError):
    """A step that was done again gave other bits."""


def exact(segments: Sequence[Segment], x_BCHW: Tensor) -> Tensor:
    """Purify, with the exact gradient with respect to the input.

    Args:
        segments: the steps; pure, so that they can be done again.
        x_BCHW: images in [0, 1].

    Raises:
        RecomputeError: in backward, where a step gives other bits than before.
    """
    purified: Tensor = _Exact.apply(x_BCHW, tuple(segments))  # type: ignore[no-untyped-call]  # torch gives it no types
    return purified


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, segments: tuple[Segment, ...]) -> Tensor:
        state: State = (x_BCHW,)
        stored: list[Tensor] = []
        widths: list[int] = []
        for segment in segments:
            stored += state
            widths.append(len(state))
            state = segment(state, x_BCHW)
        ctx.save_for_backward(*stored, *state)
        ctx.segments, ctx.widths = segments, [*widths, len(state)]
        return state[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *received: Tensor) -> tuple[Tensor, None]:
        states = _split(ctx.saved_tensors, ctx.widths)
        x_BCHW = states[0][0]
        gradient, into_x = received, torch.zeros_like(x_BCHW)
        for number in reversed(range(len(ctx.segments))):
            gradient, direct = _redo(ctx.segments[number], number, states, gradient, x_BCHW)
            into_x = into_x + direct
        return gradient[0] + into_x, None


def _split(tensors: Sequence[Tensor], widths: Sequence[int]) -> list[State]:
    states, start = [], 0
    for width in widths:
        states.append(tuple(tensors[start : start + width]))
        start += width
    return states


def _redo(
    segment: Segment, number: int, states: Sequence[State], gradient: Sequence[Tensor], x_BCHW: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of one segment: with respect to the state before it, and to the purifier's input."""
    with torch.enable_grad():
        before = tuple(part.detach().requires_grad_() for part in states[number])
        source = x_BCHW.detach().requires_grad_()
        after = segment(before, source)
        _compare(number, after, states[number + 1])
        wanted = [*before, source]
        pairs = [(a, g) for a, g in zip(after, gradient, strict=True) if a.requires_grad]
        if not pairs:
            return tuple(map(torch.zeros_like, before)), torch.zeros_like(source)
        found = torch.autograd.grad([a for a, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
    *into_state, into_x = (
        torch.zeros_like(leaf) if part is None else part for leaf, part in zip(wanted, found, strict=True)
    )
    return tuple(into_state), into_x


def _compare(number: int, redone: State, stored: State) -> None:
    if all(torch.equal(a.detach(), b) for a, b in zip(redone, stored, strict=True)):
        return
    gap = max(float((a.detach() - b).abs().max()) for a, b in zip(redone, stored, strict=True))
    raise RecomputeError(
        f"step {number + 1} of the purification gave other values when it was done again, by up to {gap:.2g}",
        "a network that is not deterministic, is in training mode, or was changed between the two",
        "use deterministic kernels, or grad_mode bpda",
    )
