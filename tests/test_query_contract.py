"""One contract for the machines of all query attacks: budgets, states, candidates, answers of any kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from attack_cases import SHAPE, assert_inside, build_query, depths, queries, target_of
from doubles import Counting, Judge, image_tape, images, query_problem, restorer, run_machine
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.attacks.query import Answer, Ask, Machine, QueryAttack, QueryProblem, State, Wanted
from udc_ray.attacks.registry import ATTACKS
from udc_ray.attacks.threat import Depth, Norm
from udc_ray.states import decode_state, encode_state


class Watched:
    """Judges, and remembers every candidate with what was wanted of it, its answer, and where an ask ended."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.candidates: list[Tensor] = []
        self.wanted: list[Wanted] = []
        self.answers: list[Answer] = []
        self.ends: list[int] = []

    def __call__(self, ask: Ask) -> Sequence[Answer]:
        self.candidates += list(ask.x_KCHW)
        self.wanted += [ask.wanted] * len(ask.x_KCHW)
        answers = list(self.judge(ask))
        self.answers += answers
        self.ends.append(len(self.answers))
        return answers

    def again(self, first: int) -> Judge:
        """The same answers from a query on, to the same candidates only; the victim is not asked."""
        place = first

        def answers(ask: Ask) -> Sequence[Answer]:
            nonlocal place
            begin, place = place, place + len(ask.x_KCHW)
            for x, before, wanted in zip(ask.x_KCHW, self.candidates[begin:], self.wanted[begin:], strict=False):
                assert x.equal(before) and ask.wanted == wanted, "another candidate is asked"
            return self.answers[begin:place]

        return answers


def posed(seed: int = 0, **options: Any) -> tuple[QueryProblem, Watched]:
    """The attack on one image, and who answers it."""
    x = images(1, *SHAPE, seed=seed)[0]
    judge, goal = target_of(x)
    return query_problem(x, image_tape(seed=seed), **{"goal": goal} | options), Watched(judge)


@dataclass(frozen=True)
class Whole:
    """A run to its end."""

    attack: QueryAttack
    problem: QueryProblem
    machine: Machine
    watched: Watched


@lru_cache
def whole_run(name: str, norm: Norm, depth: Depth = "float", budget: int = 40, stop: str = "never") -> Whole:
    attack = build_query(name, norm, depth, budget=budget, stop=stop)
    problem, watched = posed()
    machine = attack.machine(problem)
    run_machine(machine, watched)
    return Whole(attack, problem, machine, watched)


def assert_equal_ends(one: Machine, other: Machine) -> None:
    assert (one.done, one.asked, one.stop_reason) == (other.done, other.asked, other.stop_reason)
    assert one.best()[0].equal(other.best()[0]) and one.best()[1] == other.best()[1] and one.curve == other.curve


def through_a_file(state: State) -> State:
    return decode_state(encode_state(state))


@queries
@pytest.mark.parametrize("budget", [1, 2, 3, 17])
def test_a_budget_is_never_exceeded_and_every_query_is_counted(name: str, norm: Norm, budget: int) -> None:
    x = images(1, *SHAPE)[0]
    model = Counting(restorer())
    judge, goal = target_of(x, model)
    machine = build_query(name, norm, budget=budget).machine(query_problem(x, goal=goal))
    assert run_machine(machine, judge) == machine.asked == model.without <= budget
    assert machine.done and (machine.asked == budget or machine.stop_reason != "budget")
    if machine.curve:
        assert machine.curve[-1][1] == machine.best()[1] and machine.curve[-1][0] <= budget


@queries
@depths
def test_every_candidate_is_inside_ball_and_box_at_the_storage_depth(name: str, norm: Norm, depth: Depth) -> None:
    whole = whole_run(name, norm, depth)
    x_KCHW = torch.stack(whole.watched.candidates)
    assert len(x_KCHW) == whole.machine.asked > 0
    assert_inside(whole.attack, x_KCHW, whole.problem.x_CHW.expand_as(x_KCHW))


@queries
@depths
def test_asking_changes_no_state_and_any_state_leads_on_to_the_same(name: str, norm: Norm, depth: Depth) -> None:
    """From every state: the same question, and after its answer the next state, to the bit."""
    whole = whole_run(name, norm, depth)
    machine = whole.attack.machine(whole.problem)
    while not machine.done:
        state = encode_state(machine.state())
        again = whole.attack.machine(whole.problem, decode_state(state))
        for one in (machine, again):
            assert one.ask().x_KCHW.equal(one.ask().x_KCHW), "it asks something else before it was answered"
            assert encode_state(one.state()) == state, "a question left a trace in the state"
            one.tell(whole.watched.again(one.asked)(one.ask()))
        assert encode_state(again.state()) == encode_state(machine.state())
        assert (again.done, again.stop_reason) == (machine.done, machine.stop_reason)
    assert_equal_ends(machine, whole.machine)


@queries
@depths
@pytest.mark.parametrize("budget", [1, 9, 23])
def test_a_raised_budget_goes_on_as_if_it_had_always_been_so(name: str, norm: Norm, depth: Depth, budget: int) -> None:
    whole = whole_run(name, norm, depth)
    smaller = build_query(name, norm, depth, budget=budget)
    assert smaller.identity() == whole.attack.identity()
    first = smaller.machine(whole.problem)
    run_machine(first, whole.watched.again(0))
    state = first.state()
    resumed = whole.attack.machine(whole.problem, through_a_file(state))
    assert resumed.asked == first.asked <= budget
    run_machine(resumed, whole.watched.again(resumed.asked))
    assert_equal_ends(resumed, whole.machine)
    assert first.asked <= budget and encode_state(first.state()) == encode_state(state), "a state shares its arrays"


@queries
@pytest.mark.parametrize("stop", ["never", "success"])
def test_a_machine_that_was_done_is_done_again(name: str, norm: Norm, stop: str) -> None:
    whole = whole_run(name, norm, stop=stop)
    assert_equal_ends(whole.attack.machine(whole.problem, through_a_file(whole.machine.state())), whole.machine)


@queries
def test_curves_go_one_way_and_success_stops_only_where_asked(name: str, norm: Norm) -> None:
    minimum = ATTACKS.get(name).minimum_norm
    whole = whole_run(name, norm).machine
    values = [value for _, value in whole.curve]
    assert whole.stop_reason != "success" or minimum
    steps = zip(values, values[1:], strict=False)
    assert all((later < earlier) if minimum else (later > earlier) for earlier, later in steps)
    assert [asked for asked, _ in whole.curve] == sorted({asked for asked, _ in whole.curve})
    if minimum:
        return  # what is a success is said by the attack's own parameters
    goal = values[len(values) // 2]
    problem, watched = posed(goal=goal)
    stopped = build_query(name, norm, budget=300, stop="success").machine(problem)
    run_machine(stopped, watched)
    assert stopped.stop_reason == "success" and stopped.best()[1] >= goal
    hit = next(asked for asked, value in stopped.curve if value >= goal)
    before = watched.ends[-2] if len(watched.ends) > 1 else 0
    assert before < hit <= stopped.asked == watched.ends[-1], "it went on after its success"


@queries
@settings(max_examples=8)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**20),
    answers=st.lists(st.floats(allow_nan=True), min_size=20, max_size=20),
)
def test_any_shape_and_any_answer_is_survived(
    name: str, norm: Norm, shape: tuple[int, int, int], seed: int, answers: list[float]
) -> None:
    attack, x = build_query(name, norm, budget=20), torch.full(shape, 0.5)
    if name == "transfer":
        x = torch.full((3, *shape[1:]), 0.5)  # the surrogate of the tests takes colours
    machine = attack.machine(query_problem(x, image_tape(seed=seed)))
    asked = run_machine(machine, anything(iter(answers), x))
    assert machine.done and asked == machine.asked <= 20
    assert_inside(attack, machine.best()[0][None], x[None])


def anything(pending: Iterator[float], x: Tensor) -> Judge:
    """Answers that mean nothing, of the kinds that are wanted."""

    def answer(wanted: Wanted) -> Answer:
        value = next(pending)
        if wanted.kind == "event":
            return float(value > 0)
        if wanted.kind == "scalar":
            return float(value)
        rows, columns = (-(-side // wanted.tile) for side in x.shape[1:])
        return np.full((rows, columns), value)

    return lambda ask: [answer(ask.wanted) for _ in ask.x_KCHW]


@queries
@pytest.mark.parametrize("repeats", [None, 3])
def test_a_random_victim_is_asked_in_whole_repeats(name: str, norm: Norm, repeats: int | None) -> None:
    problem, watched = posed(random=True)
    attack = build_query(name, norm, budget=32, repeats=repeats)
    machine = attack.machine(problem)
    run_machine(machine, watched)
    r, seen = repeats or (5 if attack.uses_event else 1), watched.candidates
    assert machine.asked == len(seen) <= 32 and machine.asked % r == 0
    for first in range(0, len(seen), r):
        assert all(x.equal(seen[first]) for x in seen[first : first + r]), "draws of a candidate follow one another"
