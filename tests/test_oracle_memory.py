"""Answers from memory: fewer sends, the same results, and a column of their own."""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.memory import Memory
from udc_ray.attacks.oracle import Oracle, Query, Row
from udc_ray.attacks.query import EVENT, SCALAR, Answer, Ask, Wanted
from udc_ray.states import decode_state, encode_state

KEY = ("a", 0)


class Target:
    """Answers with the mean of a candidate, and remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    async def __call__(self, queries: list[Query]) -> list[Answer]:
        values: list[Answer] = [float(query.x_CHW.mean()) for query in queries]
        self.sent += [float(query.x_CHW.mean()) for query in queries]
        return values


def images(*values: float) -> Tensor:
    return torch.stack([torch.full((1, 2, 2), value) for value in values])


def ask(oracle: Oracle, *values: float, wanted: Wanted = SCALAR) -> list[Answer]:
    return asyncio.run(oracle.answer(KEY, Ask(x_KCHW=images(*values), wanted=wanted), 0.0))


def test_a_candidate_is_sent_once_and_counted_every_time() -> None:
    target, memory = Target(), Memory()
    oracle = Oracle(target, 0, Row(image_id=""), 100, memories={KEY: memory})
    assert ask(oracle, 0.25, 0.5, 0.25) == [0.25, 0.5, 0.25]
    assert ask(oracle, 0.5, 0.75) == [0.5, 0.75]
    assert target.sent == [0.25, 0.5, 0.75]
    assert oracle.spent[KEY] == 5 and memory.hits == 2


def test_without_memory_every_candidate_is_sent() -> None:
    target = Target()
    oracle = Oracle(target, 0, Row(image_id=""), 100)
    ask(oracle, 0.25, 0.25)
    ask(oracle, 0.25)
    assert target.sent == [0.25] * 3


def test_an_event_is_no_score_and_a_map_is_never_remembered() -> None:
    target, memory = Target(), Memory()
    oracle = Oracle(target, 0, Row(image_id=""), 100, memories={KEY: memory})
    ask(oracle, 0.25)
    ask(oracle, 0.25, wanted=EVENT)
    ask(oracle, 0.25, 0.25, wanted=Wanted(kind="tile-sums", tile=2))
    assert target.sent == [0.25] * 4 and memory.hits == 0


def test_a_memory_goes_on_from_its_state() -> None:
    target, memory = Target(), Memory()
    ask(Oracle(target, 0, Row(image_id=""), 100, memories={KEY: memory}), 0.25, 0.5, 0.25)
    again = Memory()
    again.load(decode_state(encode_state(memory.state())))
    assert ask(Oracle(target, 0, Row(image_id=""), 100, memories={KEY: again}), 0.5, 1.0) == [0.5, 1.0]
    assert target.sent == [0.25, 0.5, 1.0] and again.hits == 2
    empty = Memory()
    empty.load(decode_state(encode_state(Memory().state())))
    assert empty.hits == 0 and np.asarray(empty.state()["answers"]).size == 0
