"""The oracle's counts, and the driver's batches, with machines whose every step is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from doubles import images, restorer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.attacks.base import StopReason
from udc_ray.attacks.driver import Chain, drive, start_chains
from udc_ray.attacks.oracle import BudgetExceeded, Oracle, ScoreRequest
from udc_ray.attacks.query import QueryAttack, State
from udc_ray.attacks.simba import SimBA
from udc_ray.attacks.square import Square
from udc_ray.tape import Tape

SHAPE = (3, 2, 2)


@dataclass
class Counter:
    """Asks the given numbers of candidates in turn; each candidate is the number of its query."""

    asks: list[int]
    asked: int = 0
    stop_reason: StopReason = "budget"
    curve: list[tuple[int, float]] = field(default_factory=list)
    told: list[list[float]] = field(default_factory=list)
    shape: tuple[int, int, int] = SHAPE

    @property
    def done(self) -> bool:
        return not self.asks

    def ask(self) -> Tensor:
        return torch.stack([torch.full(self.shape, float(self.asked + n)) for n in range(self.asks[0])])

    def tell(self, scores: list[float]) -> None:
        assert len(scores) == self.asks.pop(0)
        self.asked += len(scores)
        self.told.append(scores)

    def best(self) -> tuple[Tensor, float]:
        return torch.zeros(self.shape), math.inf

    def state(self) -> State:
        return {}


@dataclass
class Target:
    """Scores a candidate by its own image and number, and remembers the batches."""

    batches: list[tuple[str, ...]] = field(default_factory=list)
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    def __call__(self, request: ScoreRequest) -> list[float]:
        assert len(request.image_ids) == len(request.x_NCHW)
        assert (request.victim, request.objective) == (5, "mse")
        self.batches.append(request.image_ids)
        self.shapes.add(tuple(request.x_NCHW.shape[1:]))
        return [1000 * int(i) + float(x.mean()) for i, x in zip(request.image_ids, request.x_NCHW, strict=True)]


def chains_of(*asks: list[int]) -> list[Chain]:
    return [Chain(key=(str(n), 0), machine=Counter(list(a)), shape=torch.Size(SHAPE)) for n, a in enumerate(asks)]


def run(chains: list[Chain], slots: int, budget: int = 10_000) -> tuple[Oracle, Target]:
    target = Target()
    oracle = Oracle(target, 5, "mse", budget)
    drive(chains, oracle, slots)
    return oracle, target


def told(chain: Chain) -> list[list[float]]:
    assert isinstance(chain.machine, Counter)
    return chain.machine.told


ASKS = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=7)


@given(ASKS, st.integers(1, 5))
def test_every_chain_gets_its_own_answers_and_an_exact_count(asks: list[list[int]], slots: int) -> None:
    chains = chains_of(*asks)
    oracle, target = run(chains, slots)
    for n, chain in enumerate(chains):
        flat = [score for scores in told(chain) for score in scores]
        assert flat == [1000 * n + q for q in range(sum(asks[n]))]
        assert [len(scores) for scores in told(chain)] == asks[n]
        assert oracle.spent.get(chain.key, 0) == sum(asks[n])
    assert all(1 <= len(batch) <= slots for batch in target.batches)
    assert sum(map(len, target.batches)) == sum(map(sum, asks)), "a padded slot was counted, or a query lost"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 5))
def test_a_freed_slot_is_filled_at_once(lengths: list[int], slots: int) -> None:
    chains = chains_of(*([1] * n for n in lengths))
    _, target = run(chains, slots)
    left = dict(enumerate(lengths))
    for batch in target.batches:
        live = sum(n > 0 for n in left.values())
        assert len(batch) == min(slots, live), "a slot was empty while a chain was waiting"
        assert len(set(batch)) == len(batch)
        for image_id in batch:
            left[int(image_id)] -= 1
    assert not any(left.values())


def test_images_of_another_size_never_share_a_batch() -> None:
    sizes = [(3, 2, 2), (3, 4, 2), (3, 2, 2), (3, 4, 2)]
    chains = [
        Chain(key=(str(n), 0), machine=Counter([1] * 5, shape=s), shape=torch.Size(s)) for n, s in enumerate(sizes)
    ]
    _, target = run(chains, 4)
    assert target.shapes == set(sizes)
    assert {frozenset(b) for b in target.batches} == {frozenset("02"), frozenset("13")}


def test_a_budget_holds_for_every_chain_by_itself() -> None:
    run(chains_of([1] * 6, [2, 2, 2]), 4, budget=6)
    with pytest.raises(BudgetExceeded, match=r"\('1', 0\) asked 7 queries of a budget of 6"):
        run(chains_of([1] * 6, [2, 2, 3]), 4, budget=6)


def test_the_query_over_budget_is_never_sent() -> None:
    target = Target()
    oracle = Oracle(target, 5, "mse", 1)
    oracle.answer([("0", 0)], torch.zeros(1, *SHAPE))
    with pytest.raises(BudgetExceeded):
        oracle.answer([("1", 0), ("0", 0)], torch.zeros(2, *SHAPE))
    assert target.batches == [("0",)]


def test_restarts_of_one_image_are_chains_of_their_own() -> None:
    oracle = Oracle(Target(), 5, "mse", 1)
    oracle.answer([("0", 0), ("0", 1)], torch.zeros(2, *SHAPE))
    assert oracle.spent == {("0", 0): 1, ("0", 1): 1}


class Starting(QueryAttack):
    """Remembers how its machines were begun."""

    name: ClassVar[str] = "starting"
    seen: ClassVar[list[Any]] = []

    def start(self, x_CHW: Tensor, tape: Tape, goal: float) -> Counter:
        self.seen.append((tape.image_ids, tape.restart, tape.seed, goal, x_CHW.shape))
        return Counter([1])


def test_one_chain_for_every_image_and_restart() -> None:
    Starting.seen.clear()
    pictures = {"a": torch.zeros(SHAPE), "b": torch.zeros(3, 4, 2)}
    chains = start_chains(Starting(restarts=2), pictures, {"a": 0.1, "b": 0.2}, seed=9)
    assert [c.key for c in chains] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [c.shape for c in chains] == [SHAPE, SHAPE, (3, 4, 2), (3, 4, 2)]
    assert Starting.seen[1] == (("a",), 1, 9, 0.1, SHAPE)
    assert Starting.seen[2] == (("b",), 0, 9, 0.2, (3, 4, 2))


@pytest.mark.parametrize("attack", [Square(budget=12), SimBA(budget=12, restarts=2)], ids=lambda a: a.name)
def test_what_is_found_depends_on_neither_slots_nor_order(attack: QueryAttack) -> None:
    x_BCHW, model = images(3, 3, 16, 16), restorer()
    pictures = {f"i{b}": x_BCHW[b] for b in range(3)}

    def score(request: ScoreRequest) -> list[float]:
        with torch.no_grad():
            return [
                float((model(x[None])[0] - pictures[i]).square().mean())
                for i, x in zip(request.image_ids, request.x_NCHW, strict=True)
            ]

    def found(order: list[str], slots: int) -> dict[tuple[str, int], Any]:
        chains = start_chains(attack, {i: pictures[i] for i in order}, dict.fromkeys(order, math.inf), seed=1)
        oracle = Oracle(score, 0, "mse", attack.budget)
        drive(chains, oracle, slots)
        assert set(oracle.spent.values()) == {attack.budget}
        return {c.key: (c.machine.best()[0].numpy().tobytes(), c.machine.curve) for c in chains}

    reference = found(["i0", "i1", "i2"], 1)
    assert len({value[0] for value in reference.values()}) == len(reference)
    assert found(["i2", "i0", "i1"], 4) == reference
    assert found(["i1", "i2", "i0"], 2) == reference
