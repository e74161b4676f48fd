"""SignHunter against the theorem of its paper: a separable score is maximised in one sweep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from doubles import judge_by, query_problem, run_machine
from torch import Tensor

from udc_ray.attacks.signhunter import SignHunter, SignHunterMachine
from udc_ray.attacks.threat import Depth, Norm

GREY = torch.full((1, 8, 8), 128 / 255)


def slope(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """A gradient with no small value, so that float32 images do not decide."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape))


def score_of(x_KCHW: Tensor, w_CHW: Tensor) -> list[float]:
    return [float((w_CHW * x.double()).sum()) for x in x_KCHW]


def hunted(attack: SignHunter, w_CHW: Tensor, x: Tensor = GREY) -> tuple[list[Tensor], SignHunterMachine]:
    machine = attack.start(query_problem(x, goal=1e9))
    seen: list[Tensor] = []
    run_machine(machine, judge_by(lambda batch: (seen.extend(batch), score_of(batch, w_CHW))[1]))
    return seen, machine


@pytest.mark.parametrize("depth", ["float", 8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", [1, 2])
def test_all_signs_of_a_linear_score_are_found_in_one_sweep(norm: Norm, depth: Depth, seed: int) -> None:
    """Two starts, and 2 n - 1 flips: one block of all values, two halves, ... n single values."""
    w, n, eps = slope(tuple(GREY.shape), seed), GREY.numel(), 0.1 if norm == "linf" else 0.8
    attack = SignHunter(norm=norm, eps=eps, depth=depth, budget=2 + 2 * n - 1)
    _, machine = hunted(attack, w)
    delta = machine.best()[0] - GREY
    assert delta.sign().equal(w.sign().float())
    if depth == "float":
        assert delta.abs().numpy() == pytest.approx(0.1, rel=1e-4)  # l2: eps / sqrt(n)
    assert machine.asked == 2 * n + 1
    before = hunted(attack.model_copy(update={"budget": n}), w)[1].best()[0] - GREY
    assert not before.sign().equal(w.sign().float())  # half of it is not enough


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 7), (1, 1, 1)])
def test_any_number_of_values_is_divided_to_the_end(shape: tuple[int, int, int]) -> None:
    n = math.prod(shape)
    sides = [math.ceil(n / 2**level) for level in range(math.ceil(math.log2(n)) + 1)]
    sweep = 2 + sum(math.ceil(n / side) for side in sides)
    w, x = slope(shape), torch.full(shape, 0.5)
    seen, machine = hunted(SignHunter(eps=0.1, budget=sweep), w, x)
    assert (machine.best()[0] - x).sign().equal(w.sign().float())
    assert len(seen) == sweep and machine.sweep == 1 and machine.level < 0
    assert sides[-1] == 1 and sweep <= 2 + 4 * n


def test_the_order_of_the_flips() -> None:
    """The better start, with one block after the other flipped; nothing is better than the start here."""
    machine = SignHunter(eps=0.1, budget=12).start(query_problem(GREY, goal=1e9))
    seen: list[Tensor] = []
    run_machine(machine, judge_by(lambda batch: (seen.extend(batch), [float(-len(seen))])[1]))
    signs = [(x - GREY).sign().flatten().int() for x in seen]
    assert signs[0].tolist() == [1] * 64 and set(signs[1].tolist()) == {-1, 1}
    start, n = signs[0], 64
    places = [(0, 64), (0, 32), (32, 64), (0, 16), (16, 32), (32, 48), (48, 64), (0, 8), (8, 16), (16, 24)]
    for (low, high), found in zip(places, signs[2:], strict=True):
        expected = start.clone()
        expected[low:high] *= -1
        assert found.equal(expected) and high <= n
    assert machine.best()[0].equal(seen[0])


def test_independent_signs_are_the_start_where_they_do_more_and_ties_stay() -> None:
    machine = SignHunter(eps=0.1, budget=4).start(query_problem(GREY, goal=1e9))
    seen: list[Tensor] = []
    scores = iter([1.0, 2.0, 2.0, 1.0])
    run_machine(machine, judge_by(lambda batch: (seen.extend(batch), [next(scores)])[1]))
    drawn, flipped, half = ((x - GREY).sign().flatten() for x in seen[1:])
    assert flipped.equal(-drawn)
    assert half[:32].equal(drawn[:32]) and half[32:].equal(-drawn[32:])  # on top of the flip that tied


def test_a_separable_score_that_is_not_linear_is_maximised() -> None:
    """Per value a |d + b|: the better corner depends on b, and is known value by value."""
    offsets = slope(tuple(GREY.shape)) / 20
    gains = slope(tuple(GREY.shape), 3).abs()
    machine = SignHunter(eps=0.1, budget=129).start(query_problem(GREY, goal=1e9))

    def score(batch: Tensor) -> list[float]:
        return [float((gains * (x.double() - GREY.double() + offsets).abs()).sum()) for x in batch]

    run_machine(machine, judge_by(score))
    assert (machine.best()[0] - GREY).sign().equal(offsets.sign().float())


def test_a_new_sweep_begins_around_the_best_image_and_ends_the_attack_if_it_finds_nothing() -> None:
    w, n = slope(tuple(GREY.shape)), GREY.numel()
    seen, machine = hunted(SignHunter(eps=0.1, budget=1000), w)
    assert machine.stop_reason == "converged" and machine.asked == len(seen) == 2 * (2 * n + 1)
    corner = (GREY + 0.1 * w.sign()).float()
    again = (seen[2 * n + 1] - GREY).double()
    assert torch.allclose(again, (corner - GREY + 0.1).clamp(-0.1, 0.1).double(), atol=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 129, 130, 200])
def test_a_raised_budget_goes_on_exactly(cut: int) -> None:
    w = slope(tuple(GREY.shape))
    whole, _ = hunted(SignHunter(eps=0.1, budget=220, norm="l2"), w)
    _, first = hunted(SignHunter(eps=0.1, budget=cut, norm="l2"), w)
    second = SignHunter(eps=0.1, budget=220, norm="l2").start(query_problem(GREY, goal=1e9))
    second.load(first.state())
    later: list[Tensor] = []
    run_machine(second, judge_by(lambda batch: (later.extend(batch), score_of(batch, w))[1]))
    assert first.asked == cut and len(later) == len(whole) - cut
    assert all(a.equal(b) for a, b in zip(later, whole[cut:], strict=True))


def test_the_first_success_ends_it_where_asked() -> None:
    w = slope(tuple(GREY.shape))
    goal = score_of(GREY[None], w)[0] + 0.05 * float(w.abs().sum())
    machine = SignHunter(eps=0.1, budget=1000, stop="success").start(query_problem(GREY, goal=goal))
    run_machine(machine, judge_by(lambda batch: score_of(batch, w)))
    assert machine.stop_reason == "success" and machine.curve[-1][0] == machine.asked < 129
