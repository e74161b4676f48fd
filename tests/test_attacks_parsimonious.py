"""Parsimonious against sets that can be maximised by hand, and against the plain greedy search."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from doubles import judge_by, query_problem, run_machine
from torch import Tensor

from udc_ray.attacks.parsimonious import Parsimonious, ParsimoniousMachine
from udc_ray.errors import SpecError

GREY = torch.full((1, 8, 8), 0.5)
EPS = 0.1
Score = Callable[[Tensor], float]


def searched(attack: Parsimonious, score: Score, x: Tensor = GREY) -> tuple[list[Tensor], ParsimoniousMachine]:
    """All candidates of a run, and the machine."""
    machine = attack.start(query_problem(x, goal=1e9))
    seen: list[Tensor] = []
    run_machine(machine, judge_by(lambda batch: (seen.extend(batch), [score(x) for x in batch])[1]))
    return seen, machine


def pixels(x_CHW: Tensor, side: int) -> np.ndarray:
    """Which blocks of a grey image with one channel are at +eps; all pixels of a block agree."""
    delta = ((x_CHW - GREY) / EPS)[0].numpy()
    blocks = delta.reshape(8 // side, side, 8 // side, side)
    assert np.allclose(blocks, blocks[:, :1, :, :1], atol=1e-5) and np.allclose(np.abs(blocks), 1, atol=1e-5)
    chosen: np.ndarray = blocks[:, 0, :, 0] > 0
    return chosen


def linear(weights: np.ndarray, side: int) -> Score:
    """A sum over the blocks at +eps: modular."""
    return lambda x: float((weights * pixels(x, side)).sum())


def weights_of(count: int, seed: int = 1) -> np.ndarray:
    """Distinct weights of both signs."""
    rng = np.random.default_rng(seed)
    weights: np.ndarray = (rng.permutation(count) + 1.0) * rng.choice([-1, 1], count)
    return weights


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_modular_score_is_maximised_with_the_least_queries(seed: int) -> None:
    """The start, a scan of the n blocks, a second look at every winner but the first, a scan of the p winners."""
    weights = weights_of(16, seed).reshape(4, 4)
    winners = int((weights > 0).sum())
    level = 1 + 16 + (winners - 1) + winners
    seen, machine = searched(Parsimonious(eps=EPS, block=2, budget=level), linear(weights, 2))
    assert not pixels(seen[0], 2).any()
    assert (pixels(machine.best()[0], 2) == (weights > 0)).all()
    assert machine.best()[1] == weights[weights > 0].sum()
    assert machine.block == 1 and machine.sweep == 1 and machine.phase == "insert" and machine.asked == level
    # best first: what is left after the scan is looked at in the order of its weight
    order = sorted(weights[weights > 0], reverse=True)
    totals = [float((weights * pixels(x, 2)).sum()) for x in seen[17 : 17 + winners - 1]]
    assert totals == pytest.approx(np.cumsum(order)[1:])


def coverage(chosen: np.ndarray, sets: np.ndarray, cost: np.ndarray) -> float:
    """Elements covered by the chosen sets less the cost of the sets: submodular, not monotone."""
    return float(sets[chosen.ravel()].any(axis=0).sum() - cost[chosen.ravel()].sum())


def plain_greedy(value: Callable[[np.ndarray], float], count: int) -> np.ndarray:
    """Greedy insertion, then greedy removal, every gain computed anew at every step."""
    chosen = np.zeros(count, dtype=bool)
    for wanted in (False, True):
        while True:
            gains = np.full(count, -math.inf)
            for k in np.flatnonzero(chosen == wanted):
                flipped = chosen.copy()
                flipped[k] = not wanted
                gains[k] = value(flipped) - value(chosen)
            if not gains.max() > 0:
                break
            chosen[int(np.argmax(gains))] = not wanted
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_lazy_evaluation_finds_what_the_plain_greedy_search_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sets, cost = rng.random((16, 60)) < 0.2, rng.uniform(0.5, 6.0, 16)  # costs without ties

    def score(x: Tensor) -> float:
        return coverage(pixels(x, 2), sets, cost)

    machine = Parsimonious(eps=EPS, block=2, budget=10_000).start(query_problem(GREY, goal=1e9))
    run = 0
    while machine.block == 2:
        run += run_machine(machine, judge_by(lambda batch: [score(x) for x in batch]), at_most=1)
    expected = plain_greedy(lambda chosen: coverage(chosen, sets, cost), 16)
    assert (machine.signs_CHW[0, ::2, ::2].ravel() > 0).tolist() == expected.tolist()
    assert machine.score == pytest.approx(coverage(expected, sets, cost))
    inserted = int(expected.sum())
    assert run < 1 + sum(16 - k for k in range(inserted + 1)) + inserted  # fewer than all gains of all insertions


def test_removal_takes_back_what_later_insertions_made_useless() -> None:
    """Block 0 alone is best; blocks 1 and 2 together do without it."""
    values = {(): 0.0, (0,): 5.0, (1,): 4.0, (2,): 4.0, (0, 1): 7.0, (0, 2): 7.0, (1, 2): 10.0, (0, 1, 2): 9.0}

    def score(x: Tensor) -> float:
        chosen = np.flatnonzero(pixels(x, 2).ravel())
        return values.get(tuple(int(k) for k in chosen if k < 3), 0.0) - sum(1.0 for k in chosen if k > 2)

    seen, machine = searched(Parsimonious(eps=EPS, block=2, budget=1 + 16 + 3 + 3), score)
    assert machine.signs_CHW[0, ::2, ::2].ravel()[:4].tolist() == [-1, 1, 1, -1]
    assert machine.best()[1] == 10.0 and machine.block == 1


def test_blocks_are_halved_and_keep_their_signs() -> None:
    weights = weights_of(64).reshape(8, 8)
    seen, machine = searched(Parsimonious(eps=EPS, block=4, budget=5_000), linear(weights, 1))
    assert machine.stop_reason == "converged" and machine.best()[1] == weights[weights > 0].sum()
    coarse = weights.reshape(2, 4, 2, 4).sum(axis=(1, 3)) > 0
    p = int(coarse.sum())
    first_of_next = seen[1 + 4 + (p - 1) + p]
    base = np.kron(coarse, np.ones((4, 4), dtype=bool))
    changed = np.argwhere(pixels(first_of_next, 1) != base)
    assert len(changed) == 4 and np.ptp(changed, axis=0).tolist() == [1, 1] and (changed.min(axis=0) % 2 == 0).all()
    # the last pass over single pixels found nothing: each was asked once
    last = seen[-64:]
    flips = {tuple(np.argwhere(pixels(x, 1) != (weights > 0))[0]) for x in last}
    assert len(flips) == 64 and all((pixels(x, 1) != (weights > 0)).sum() == 1 for x in last)


def test_a_batch_is_searched_to_its_end_before_the_next() -> None:
    weights = -np.arange(1.0, 65.0).reshape(8, 8)  # nothing is ever inserted
    sizes: list[int] = []
    machine = Parsimonious(eps=EPS, block=1, batch=24, budget=1 + 64).start(query_problem(GREY, goal=1e9))
    seen: list[Tensor] = []

    def answer(batch: Tensor) -> list[float]:
        sizes.append(len(batch))
        seen.extend(batch)
        return [linear(weights, 1)(x) for x in batch]

    run_machine(machine, judge_by(answer))
    assert sizes == [1, 24, 24, 16]
    flips = [int(np.flatnonzero(pixels(x, 1).ravel())[0]) for x in seen[1:]]
    assert sorted(flips) == list(range(64)) and flips != sorted(flips)


def test_the_first_block_follows_the_image() -> None:
    found = {side: Parsimonious().first_block(side, side + 40) for side in (32, 256, 224, 299, 64, 128, 15, 7, 1)}
    assert found == {32: 4, 256: 32, 224: 16, 299: 32, 64: 8, 128: 16, 15: 1, 7: 1, 1: 1}
    assert Parsimonious(block=2).first_block(256, 256) == 2


@pytest.mark.parametrize(("params", "said"), [({"norm": "l2"}, "linf"), ({"block": 6}, "power of two")])
def test_what_it_cannot_do_is_refused(params: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Parsimonious.build("attack", params)


def test_colours_edges_and_the_grid_are_obeyed() -> None:
    """Blocks of one channel, smaller at the edges; the clean image is at the ends of the box in places."""
    x = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    x = (x * 255).round() / 255
    x[:, 0] = 0
    w = torch.from_numpy(weights_of(105).reshape(3, 5, 7))
    attack = Parsimonious(eps="8/255", depth=8, block=4, budget=2_000)
    seen, machine = searched(attack, lambda c: float((w * c.double()).sum()), x)
    assert machine.stop_reason == "converged"
    expected = (x + 8 / 255 * w.sign().float()).clamp(0, 1)
    assert torch.allclose(machine.best()[0], expected, atol=1e-5)
    first = (seen[1] - seen[0]).abs() > 1e-6
    assert first.any(dim=(1, 2)).sum() == 1 and 0 < int(first.sum()) <= 16


@pytest.mark.parametrize("cut", [1, 2, 9, 17, 20, 40, 90, 150])
def test_a_raised_budget_goes_on_exactly(cut: int) -> None:
    weights = weights_of(64).reshape(8, 8)

    def score(x: Tensor) -> float:
        return math.tanh(linear(weights, 1)(x) / 300)

    whole, _ = searched(Parsimonious(eps=EPS, block=2, batch=10, budget=200), score)
    _, first = searched(Parsimonious(eps=EPS, block=2, batch=10, budget=cut), score)
    second = Parsimonious(eps=EPS, block=2, batch=10, budget=200).start(query_problem(GREY, goal=1e9))
    second.load(first.state())
    later: list[Tensor] = []
    run_machine(second, judge_by(lambda batch: (later.extend(batch), [score(x) for x in batch])[1]))
    assert first.asked == cut and len(later) == len(whole) - cut > 0
    assert all(a.equal(b) for a, b in zip(later, whole[cut:], strict=True))
