"""Tile-parallel SimBA: its basis images, its two signs, and that parallel tests are exact on a local model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import Blur, Scale, image_tape, judge_against, query_problem, restorer, run_machine
from scipy.fft import dctn
from test_attacks_tile_square import Judge, Scrambled, picture
from torch import Tensor, nn

from udc_ray.attacks.locality import PROBES
from udc_ray.attacks.simba import SimBA
from udc_ray.attacks.tile_simba import TileSimBA, TileSimBAMachine


def machine_of(x_CHW: Tensor, **parameters: object) -> TileSimBAMachine:
    return TileSimBA(**parameters).start(query_problem(x_CHW, image_tape()))  # type: ignore[arg-type]  # checked by pydantic


def test_it_begins_with_the_untouched_image_and_the_probes() -> None:
    x = picture(3, 48, 48)
    judge = Judge(x)
    machine = machine_of(x, budget=10)
    run_machine(machine, judge, 1 + PROBES)
    assert judge.seen[0].equal(x) and judge.against == ["reference"] + ["clean"] * PROBES
    assert machine.best()[0].equal(x) and machine.curve == [(1, judge.score(x[None])[0])]


def test_a_tile_adds_one_product_of_cosines_and_subtracts_it_where_it_did_not_help() -> None:
    x = picture(3, 48, 48) * 0.6 + 0.2
    judge = Judge(x, Blur())
    machine = machine_of(x, budget=60, eps=0.05, step=0.02, verify=50)
    run_machine(machine, judge, 1 + PROBES)
    for _ in range(6):
        before = machine.body_CHW.copy()
        machine.ask()
        added = machine._trial
        machine.tell(judge(machine.ask()))
        for patch in added.patches:
            change = (added.body_CHW - before)[patch.pixels]
            spectrum = [dctn(plane) for plane in change]
            used = [np.abs(s).max() > 1e-4 for s in spectrum]
            assert sum(used) in (1, 3) and np.abs(change).max() == pytest.approx(0.02, rel=1e-4)
            for s, on in zip(spectrum, used, strict=True):
                assert not on or np.sort(np.abs(s).ravel())[-2] < 1e-4 * np.abs(s).max()
        refused = [p for p, no in zip(added.patches, machine.refused, strict=False) if no]
        if refused:
            middle = machine.body_CHW.copy()
            machine.ask()
            subtracted = machine._trial
            assert list(subtracted.patches) == refused
            for patch in refused:
                wanted = middle[patch.pixels] - (added.body_CHW - before)[patch.pixels]
                assert np.allclose(subtracted.body_CHW[patch.pixels], wanted, atol=1e-6)
            machine.tell(judge(machine.ask()))
        assert not len(machine.refused)


def test_parallel_decisions_equal_those_one_by_one() -> None:
    x = picture(3, 48, 48)
    judge = Judge(x, nn.Sequential(Blur(), Blur()))
    machine = machine_of(x, budget=60, verify=50)
    run_machine(machine, judge, 1 + PROBES)
    decided = 0
    for _ in range(8):
        before = machine.body_CHW.copy()
        base = judge.score(machine.image(before)[None])[0]
        machine.ask()
        trial = machine._trial
        machine.tell(judge(machine.ask()))
        for patch in trial.patches:
            alone = before.copy()
            alone[patch.pixels] = trial.body_CHW[patch.pixels]
            gain = judge.score(machine.image(alone)[None])[0] - base
            if abs(gain) > 1e-12:
                decided += 1
                assert np.array_equal(machine.body_CHW[patch.pixels], (alone if gain > 0 else before)[patch.pixels])
    assert decided > 10


def test_a_pass_visits_every_tile() -> None:
    x = picture(3, 48, 64)
    judge = Judge(x, Blur())
    machine = machine_of(x, budget=100, verify=90)
    run_machine(machine, judge, 1 + PROBES)
    count = machine.layout(machine.usable()[-1]).colours ** 2
    visited = np.zeros((48, 64), dtype=int)
    while machine.turn < count:
        machine.ask()
        if not len(machine.refused):
            for patch in machine._trial.patches:
                visited[patch.rows, patch.columns] += 1
        machine.tell(judge(machine.ask()))
    assert (visited == 1).all()


def test_it_goes_to_plain_simba_from_the_best_image() -> None:
    x = picture(3, 64, 64)
    judge = Judge(x, Scrambled())
    machine = machine_of(x, budget=40)
    run_machine(machine, judge, 20)
    assert machine.inner is not None
    run_machine(machine, judge)
    best, score = machine.best()
    assert score == pytest.approx(judge.score(best[None])[0], rel=1e-12) and machine.curve[-1][0] > 1 + PROBES


@pytest.mark.parametrize("model", [None, Scrambled()])
def test_a_raised_budget_goes_on_exactly(model: nn.Module | None) -> None:
    x = picture(3, 40, 40)
    whole = Judge(x, model)
    run_machine(machine_of(x, budget=36, verify=5), whole)
    pieces, state = Judge(x, model), None
    for budget in (1, 3, 5, 8, 9, 17, 36):
        machine = machine_of(x, budget=budget, verify=5)
        if state is not None:
            machine.load(state)
        run_machine(machine, pieces)
        state = machine.state()
    assert all(a.equal(b) for a, b in zip(whole.seen, pieces.seen, strict=True))


@pytest.mark.parametrize("shape", [(3, 16, 16), (4, 17, 29)])
def test_candidates_are_inside_the_threat(shape: tuple[int, ...]) -> None:
    x = picture(*shape)
    judge = Judge(x, Blur())
    machine = machine_of(x, budget=30, depth=8, eps=0.05)
    assert run_machine(machine, judge) == 30
    seen = torch.stack(judge.seen)
    assert float((seen - x).abs().max()) <= 0.05 + 1e-6 and float(seen.min()) >= 0 and float(seen.max()) <= 1


def test_it_does_more_than_plain_simba_where_details_count() -> None:
    """Against its own clean output the damage of f(x) = x is that of every tile alone; SimBA has one try a query."""
    x = picture(3, 64, 64)
    judge = Judge(x, Scale())
    judge.answer = judge_against(restorer(Scale()), x + 0.2 * (picture(3, 64, 64, seed=1) - 0.5), clean_CHW=x)
    damage = []
    for attack in (TileSimBA(budget=80), SimBA(budget=80)):
        machine = attack.start(query_problem(x, image_tape()))
        run_machine(machine, judge)
        damage.append(machine.best()[1])
    assert damage[0] > 1.02 * damage[1]
