"""Steps the ask/tell machines of a few images and keeps the batches of the target full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from udc_ray.attacks.oracle import Oracle
from udc_ray.attacks.query import Machine, QueryAttack
from udc_ray.tape import Tape

ChainKey = tuple[str, int]
"""Image id and restart: one chain of queries."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One machine and the shape its candidates have."""

    key: ChainKey
    machine: Machine
    shape: torch.Size


def start_chains(attack: QueryAttack, images: dict[str, Tensor], goals: dict[str, float], seed: int) -> list[Chain]:
    """One machine for every image and restart."""
    chains = []
    for image_id, x_CHW in images.items():
        for restart in range(attack.restarts):
            tape = Tape(seed=seed, image_ids=(image_id,), stream="attack", restart=restart)
            machine = attack.start(x_CHW, tape, goals[image_id])
            chains.append(Chain(key=(image_id, restart), machine=machine, shape=x_CHW.shape))
    return chains


def drive(chains: list[Chain], oracle: Oracle, slots: int) -> None:
    """Run all chains to their end, `slots` candidates of one shape at a time.

    A chain that ends frees its slot for the next one at once.
    """
    for shape in dict.fromkeys(chain.shape for chain in chains):
        waiting = [c for c in chains if c.shape == shape and not c.machine.done]
        live, waiting = waiting[:slots], waiting[slots:]
        while live:
            _step(live, oracle, slots)
            live = [c for c in live if not c.machine.done]
            refill = slots - len(live)
            live, waiting = live + waiting[:refill], waiting[refill:]


def _step(live: list[Chain], oracle: Oracle, slots: int) -> None:
    """Ask every live chain, score the candidates in full batches, and tell."""
    asked = [(chain, chain.machine.ask()) for chain in live]
    flat = [(chain.key, candidate) for chain, candidates in asked for candidate in candidates]
    scores: list[float] = []
    for batch in _batches(flat, slots):
        scores += oracle.answer([key for key, _ in batch], torch.stack([x for _, x in batch]))
    position = 0
    for chain, candidates in asked:
        chain.machine.tell(scores[position : position + len(candidates)])
        position += len(candidates)


def _batches(flat: list[tuple[ChainKey, Tensor]], slots: int) -> Iterator[list[tuple[ChainKey, Tensor]]]:
    for start in range(0, len(flat), slots):
        yield flat[start : start + slots]
