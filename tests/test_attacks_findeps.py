"""find-eps: bisection over a ladder, against thresholds that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from doubles import query_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.attacks.findeps import FindEps, FindEpsMachine
from udc_ray.attacks.square import Square
from udc_ray.errors import SpecError
from udc_ray.params import Params
from udc_ray.states import decode_state, encode_state

X = torch.full((3, 6, 6), 0.5)
LEVELS = [n / 255 for n in (0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]


def build(**params: Any) -> FindEps:
    made: FindEps = FindEps.build("attack", params)
    return made


def drive(machine: FindEpsMachine) -> list[Tensor]:
    """All candidates, scored by the largest change: a level succeeds at once, or never."""
    seen: list[Tensor] = []
    while not machine.done:
        ask = machine.ask()
        assert 1 <= len(ask.x_KCHW) <= machine.left
        seen += list(ask.x_KCHW)
        machine.tell([float((c.double() - 0.5).abs().max()) for c in ask.x_KCHW])
    return seen


@pytest.mark.parametrize("level", range(12))
def test_the_smallest_harmful_level_is_found(level: int) -> None:
    goal = LEVELS[level] - 1e-5 if level < 11 else 0.2
    machine = build(attack={"name": "square", "budget": 5}).start(query_problem(X, goal=goal))
    seen = drive(machine)
    best, value = machine.best()
    if level == 11:
        assert machine.stop_reason == "converged" and best.equal(X) and value == math.inf and machine.curve == []
    else:
        assert machine.stop_reason == "success" and value == pytest.approx(LEVELS[level])
        assert float((best - X).abs().max()) == pytest.approx(LEVELS[level], abs=1e-6)
        assert machine.curve[-1][1] == value
    sizes = [float((c - X).abs().max()) for c in seen]
    failed = {round(s, 5) for s in sizes if s < goal}
    assert len(seen) == machine.asked <= 5 * len(failed) + 4  # one query a success, the inner budget a failure
    assert all(sum(round(s, 5) == f for s in sizes) == 5 for f in failed)
    assert len({round(s, 5) for s in sizes}) <= 4  # twelve outcomes take four levels


def test_curves_fall_with_the_levels() -> None:
    machine = build(attack={"name": "square", "budget": 5}).start(query_problem(X, goal=1e-4))
    drive(machine)
    assert [v for _, v in machine.curve] == sorted((v for _, v in machine.curve), reverse=True)
    assert machine.curve == [(n + 1, pytest.approx(LEVELS[k])) for n, k in enumerate((5, 2, 0))]


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 29), goal=st.floats(0.001, 0.15))
def test_a_cut_search_says_so_and_goes_on_exactly(cut: int, goal: float) -> None:
    problem = query_problem(X, goal=goal)
    whole = build(attack={"name": "square", "budget": 7}, budget=30).start(problem)
    seen = drive(whole)
    first = build(attack={"name": "square", "budget": 7}, budget=cut).start(problem)
    begun = drive(first)
    assert len(begun) == first.asked <= cut
    assert (first.stop_reason == "budget") == (cut < len(seen))
    assert first.stop_reason != "budget" or first.asked == cut
    resumed = build(attack={"name": "square", "budget": 7}, budget=30).start(problem)
    resumed.load(decode_state(encode_state(first.state())))
    again = begun + drive(resumed)
    assert len(again) == len(seen) and all(a.equal(b) for a, b in zip(again, seen, strict=True))
    assert (resumed.curve, resumed.asked, resumed.stop_reason) == (whole.curve, whole.asked, whole.stop_reason)
    assert resumed.best()[0].equal(whole.best()[0])


def test_a_state_taken_with_a_question_open_is_the_one_before_it() -> None:
    machine = build(attack={"name": "square", "budget": 3}).start(query_problem(X, goal=0.05))
    while not machine.done:
        ask = machine.ask()
        copy = build(attack={"name": "square", "budget": 3}).start(query_problem(X, goal=0.05))
        copy.load(decode_state(encode_state(machine.state())))
        assert copy.ask().x_KCHW.equal(ask.x_KCHW)
        machine.tell([float((c - X).abs().max()) for c in ask.x_KCHW])


def test_settings_of_the_search_reach_the_inner_attack() -> None:
    attack = build(norm="l2", depth=8, attack={"name": "square", "p": 0.3})
    inner = attack.inner(attack.ladder[6])
    assert inner == Square(norm="l2", eps=5.0, depth=8, p=0.3, stop="success", budget=200)
    assert attack.ladder[-1] == pytest.approx(20.0) and attack.level_budget == 200
    assert build().level_budget == 200 and build().ladder == pytest.approx(LEVELS)
    assert build(levels=["1/255", "2/255"]).ladder == pytest.approx((1 / 255, 2 / 255))
    assert FindEps.minimum_norm and not FindEps.uses_event and build().eps is None
    assert isinstance(attack, Params) and build() == build(attack={"name": "square", "budget": 200})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"attack": {"budget": 3}}, "name of its inner attack"),
        ({"attack": {"name": "squares"}}, "unknown attack"),
        ({"attack": {"name": "pgd"}}, "cannot run 'pgd'"),
        ({"attack": {"name": "find-eps"}}, "find-eps"),
        ({"attack": {"name": "square", "eps": 0.1}}, "takes no 'eps'"),
        ({"attack": {"name": "square", "bugdet": 3}}, "no parameter 'bugdet'"),
        ({"levels": [0.2, 0.1]}, "rise"),
        ({"levels": [0, 0.1]}, "positive"),
        ({"levels": [4, 8]}, "write 8/255"),
        ({"eps": 0.1}, "minimum-norm"),
    ],
)
def test_mistakes_are_told_in_one_message(params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(**params)
