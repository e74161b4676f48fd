"""Repeated questions: averages, majorities, exact budgets; and the clean-repeat control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from doubles import image_tape, query_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.attacks.controls import CleanRepeat
from udc_ray.attacks.hopskipjump import HopSkipJump
from udc_ray.attacks.machine import QueryMachine
from udc_ray.attacks.query import EVENT, SCALAR, Answer, Ask, QueryAttack, QueryProblem, Wanted
from udc_ray.attacks.repeats import Repeated, combined
from udc_ray.attacks.square import Square
from udc_ray.states import decode_state, encode_state

X = torch.full((3, 6, 6), 0.5)


class Tiles(QueryAttack):
    """Asks two candidates at once, in tiles, and remembers what it was told."""

    def start(self, problem: QueryProblem) -> TilesMachine:
        return TilesMachine(self, problem)


class TilesMachine(QueryMachine):
    def __init__(self, attack: QueryAttack, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.told: list[Answer] = []

    def propose(self) -> Ask:
        count = min(2, self.left)
        x_KCHW = torch.stack([self.x_CHW * (self.asked + n) / 100 for n in range(count)])
        return Ask(x_KCHW=x_KCHW, wanted=Wanted(kind="tile-sums", tile=3))

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        self.told += answers


def test_draws_are_combined_as_wanted() -> None:
    assert combined([1.0, 2.0, 6.0], SCALAR) == 3.0
    assert np.isnan(float(combined([1.0, float("nan")], SCALAR)))
    assert [combined(draws, EVENT) for draws in ([1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0], [1.0])] == [1, 0, 0, 1]
    sums = combined([np.array([[1.0, 2.0]]), np.array([[3.0, 6.0]])], Wanted(kind="tile-sums", tile=3))
    assert isinstance(sums, np.ndarray) and sums.tolist() == [[2.0, 4.0]]


def test_every_candidate_is_asked_in_a_row_and_its_tiles_averaged() -> None:
    machine = Repeated(Tiles(budget=10), query_problem(X), 3)
    ask = machine.ask()
    assert ask.wanted == Wanted(kind="tile-sums", tile=3) and len(ask.x_KCHW) == 6
    assert all(ask.x_KCHW[k].equal(ask.x_KCHW[0]) for k in (1, 2)) and not ask.x_KCHW[3].equal(ask.x_KCHW[0])
    machine.tell([np.full((2, 2), float(k)) for k in (0, 1, 5, 10, 10, 13)])
    assert isinstance(machine.inner, TilesMachine)
    assert [float(np.mean(told)) for told in machine.inner.told] == [2.0, 11.0]
    assert machine.asked == 6 and not machine.done and len(machine.ask().x_KCHW) == 3


@pytest.mark.parametrize("attack", [Square, HopSkipJump])
@settings(max_examples=25, deadline=None)
@given(budget=st.integers(1, 90), repeats=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_budget_counts_every_repeat(attack: type[QueryAttack], budget: int, repeats: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    machine = Repeated(attack(budget=budget), query_problem(X), repeats)
    asked = 0
    while not machine.done:
        ask = machine.ask()
        assert 1 <= len(ask.x_KCHW) <= machine.left
        asked += len(ask.x_KCHW)
        machine.tell([float(rng.random() < 0.7) for _ in ask.x_KCHW])
        assert machine.asked == asked <= budget
    assert asked % repeats == 0
    assert machine.stop_reason != "budget" or budget - asked < repeats
    assert all(count % repeats == 0 and count <= asked for count, _ in machine.curve)
    assert [value for _, value in machine.curve] == [value for _, value in machine.inner.curve]


@pytest.mark.parametrize("cut", [5, 16, 33, 59])
def test_a_raised_budget_goes_on_exactly(cut: int) -> None:
    def score(machine: Any, at_most: int) -> list[Tensor]:
        seen: list[Tensor] = []
        while not machine.done and len(seen) < at_most:
            ask = machine.ask()
            seen += list(ask.x_KCHW)
            machine.tell([float((c.double() - 0.5).abs().sum() + n % 4) for n, c in enumerate(ask.x_KCHW)])
        return seen

    whole, first = (Repeated(Square(budget=b), query_problem(X), 4) for b in (60, cut))
    seen, begun = score(whole, 60), score(first, 60)
    resumed = Repeated(Square(budget=60), query_problem(X), 4)
    resumed.load(decode_state(encode_state(first.state())))
    assert resumed.asked == len(begun) == cut // 4 * 4
    again = begun + score(resumed, 60)
    assert all(a.equal(b) for a, b in zip(again, seen, strict=True))
    assert (resumed.curve, resumed.asked, resumed.done) == (whole.curve, whole.asked, True)
    assert resumed.best()[0].equal(whole.best()[0])


def test_a_majority_finds_the_boundary_that_noise_hides() -> None:
    """Events are false one time in eight; the true boundary is a plane 0.3 away."""
    normal = np.random.default_rng(0).standard_normal(tuple(X.shape))
    normal /= np.linalg.norm(normal)

    def depth_reached(repeats: int, budget: int, seed: int) -> float:
        """How far the closest image that passed for a success lies towards the plane."""
        rng = np.random.default_rng(seed)
        machine = Repeated(HopSkipJump(budget=budget), query_problem(X, image_tape(str(seed)), random=True), repeats)
        while not machine.done:
            asked = machine.ask().x_KCHW.double() - X.double()
            true = (asked.numpy() * normal).sum(axis=(1, 2, 3)) >= 0.3
            machine.tell([float(t != (rng.random() < 1 / 8)) for t in true])
        return float(((machine.best()[0].double() - X.double()).numpy() * normal).sum())

    lucky = [depth_reached(1, 60, seed) for seed in range(20)]
    assert sum(depth < 0.29 for depth in lucky) >= 10  # a draw that was false passes for a success
    majority = [depth_reached(21, 60 * 21, seed) for seed in range(20)]
    assert min(majority) > 0.29


def test_query_attacks_repeat_on_random_victims_only() -> None:
    attack = HopSkipJump(repeats=3)
    machine = attack.machine(query_problem(X, random=True))
    assert isinstance(machine, Repeated) and machine.repeats == 3
    assert not isinstance(attack.machine(query_problem(X)), Repeated)
    assert isinstance(HopSkipJump().machine(query_problem(X, random=True)), Repeated)
    assert not isinstance(Square().machine(query_problem(X, random=True)), Repeated)


def test_clean_repeat_asks_the_untouched_image_and_keeps_the_worst() -> None:
    machine = CleanRepeat(budget=40).start(query_problem(X, image_tape(), random=True))
    answers = np.random.default_rng(0).random(40).tolist()
    asked = 0
    while not machine.done:
        ask = machine.ask()
        assert all(candidate.equal(X) for candidate in ask.x_KCHW) and ask.wanted == SCALAR
        machine.tell(answers[asked : asked + len(ask.x_KCHW)])
        asked += len(ask.x_KCHW)
    assert asked == machine.asked == 40 and machine.stop_reason == "budget"
    assert machine.best()[0].equal(X) and machine.best()[1] == max(answers)
    assert machine.curve[-1] == (1 + int(np.argmax(answers)), max(answers))
    assert CleanRepeat().budget == 10 and CleanRepeat.kind == "query"
