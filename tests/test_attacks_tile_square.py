"""Tile-parallel Square: what a patch is judged by, what counts as damage, and when the plain attack takes over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from doubles import Blur, Conv, image_tape, images, judge_against, query_problem, restorer, run_machine, score_against
from torch import Tensor, nn

from udc_ray.attacks.locality import PROBES
from udc_ray.attacks.query import Answer, Ask
from udc_ray.attacks.square import Square
from udc_ray.attacks.tile_machine import PATIENCE, TileMachine
from udc_ray.attacks.tile_square import TileSquare, TileSquareMachine

QUICK = {"scans": 1, "waves": 2, "verify": 4}
STARTED = 2 + PROBES + 3
"""Queries until `QUICK` tests patches."""


class Scrambled(nn.Module):
    """Mixes globally: the small network, and then every pixel at a random place."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        order = torch.randperm(x_BCHW[0, 0].numel(), generator=torch.Generator().manual_seed(0))
        restored: Tensor = Blur()(x_BCHW)
        return restored.flatten(2)[:, :, order].reshape(x_BCHW.shape)


def picture(*shape: int, seed: int = 0) -> Tensor:
    """A smooth image, as a degraded one is."""
    smooth: Tensor = Blur()(Blur()(images(1, *shape, seed=seed)))[0]
    return smooth


class Judge:
    """Answers a machine, and keeps the images and their scores."""

    def __init__(self, x_CHW: Tensor, model: nn.Module | None = None) -> None:
        wrapped = restorer(model)
        self.truth_CHW = Blur()(x_CHW[None])[0]
        with torch.no_grad():
            clean_CHW = wrapped(x_CHW[None])[0].clamp(0, 1)
        self.answer = judge_against(wrapped, self.truth_CHW, clean_CHW=clean_CHW)
        self.score = score_against(wrapped, self.truth_CHW)
        self.seen: list[Tensor] = []
        self.against: list[str] = []

    def __call__(self, ask: Ask) -> Sequence[Answer]:
        self.seen += list(ask.x_KCHW.clone())
        self.against += [ask.wanted.against] * len(ask.x_KCHW)
        return self.answer(ask)


def machine_of(x_CHW: Tensor, **parameters: Any) -> TileSquareMachine:
    values = QUICK | parameters
    additive = values.pop("additive", True)
    return TileSquare(**values).start(query_problem(x_CHW, image_tape(), additive=additive))


@pytest.mark.parametrize("shape", [(3, 48, 48), (4, 37, 51)])
def test_every_patch_is_kept_exactly_if_it_alone_does_damage(shape: tuple[int, ...]) -> None:
    """The model reaches two pixels; one cell of margin holds that, so the parallel test is exact."""
    x = picture(*shape)
    judge = Judge(x, Conv(shape[0]))
    machine = machine_of(x, budget=40, verify=30)
    run_machine(machine, judge, STARTED)
    decided = 0
    for _ in range(4):
        before = machine.body_CHW.copy()
        base = judge.score(machine.image(before)[None])[0]
        asked = machine.ask()
        trial = machine._trial
        machine.tell(judge(asked))
        for patch in trial.patches:
            alone = before.copy()
            alone[patch.pixels] = trial.body_CHW[patch.pixels]
            gain = judge.score(machine.image(alone)[None])[0] - base
            if abs(gain) > 1e-12:  # nearer to zero than rounding, either is right
                decided += 1
                assert np.array_equal(machine.body_CHW[patch.pixels], (alone if gain > 0 else before)[patch.pixels])
        pieced = machine.sums.sum() / x.numel()
        assert pieced == pytest.approx(judge.score(machine.image(machine.body_CHW)[None])[0], rel=1e-9)
    assert decided > 40


def test_only_queried_images_count_and_probes_do_not() -> None:
    x = picture(3, 48, 48)
    judge = Judge(x)
    machine = machine_of(x, budget=60)
    assert run_machine(machine, judge) == machine.asked == 60 and machine.stop_reason == "budget"
    scores = [s if a == "reference" else -1.0 for s, a in zip(judge.score(torch.stack(judge.seen)), judge.against)]  # noqa: B905  # same length by construction
    assert judge.against.count("clean") == PROBES
    best, score = machine.best()
    assert score == pytest.approx(max(scores), rel=1e-12) and best.equal(judge.seen[int(np.argmax(scores))])
    assert [n for n, _ in machine.curve] == [
        n + 1 for n in range(60) if scores[n] > max(scores[:n], default=-2.0) and scores[n] > 0
    ]
    assert [v for _, v in machine.curve] == pytest.approx([scores[n - 1] for n, _ in machine.curve], rel=1e-12)


def test_what_was_kept_is_asked_alone_every_few_queries() -> None:
    x = picture(3, 48, 48)
    judge = Judge(x, Blur())
    machine = machine_of(x, budget=STARTED + 13, verify=5)
    run_machine(machine, judge, STARTED)
    verified = []
    for number in range(12):
        asked = machine.ask()
        if not machine._trial.patches:
            verified.append(number)
            assert asked.x_KCHW[0].equal(machine.image(machine.body_CHW))
            promised = machine.base + machine.promised
            answers = judge(asked)
            assert np.sum(answers[0]) == pytest.approx(promised, rel=1e-9)  # the model is local: it all adds up
            machine.tell(answers)
            assert machine.successes == len(verified) and machine.margin == machine.cell
        else:
            machine.tell(judge(asked))
    assert verified == [4, 9]


def test_a_model_that_mixes_globally_goes_to_the_plain_attack() -> None:
    x = picture(3, 64, 64)
    judge = Judge(x, Scrambled())
    machine = TileSquare(budget=40, horizon=200).start(query_problem(x, image_tape()))
    run_machine(machine, judge, 20)
    assert machine.inner is not None
    held = machine.best_score
    windows = []
    while not machine.done:
        asked, best = machine.ask(), machine.best()[0]
        assert asked.wanted.kind == "scalar"
        moved = (asked.x_KCHW[0] != best).any(dim=0).nonzero()
        windows.append(int((moved.amax(0) - moved.amin(0)).max()) + 1)
        machine.tell(judge(asked))
    assert max(windows) <= Square(horizon=200).window(14, 64, 64)  # one window of the plain schedule at that count
    best, score = machine.best()
    assert score > held and score == pytest.approx(judge.score(best[None])[0], rel=1e-12)


def test_patches_that_never_add_up_go_to_the_plain_attack() -> None:
    x = picture(3, 48, 48)
    machine = machine_of(x, budget=100)
    judge = Judge(x)
    run_machine(machine, judge, STARTED)
    count = 0
    while machine.inner is None:
        asked, count = machine.ask(), count + 1
        lie = 1.001**count if machine._trial.patches else 0.9
        machine.tell([machine.safe_sums * lie if machine._trial.patches else machine.safe_sums * 0.9])
        assert asked.wanted.kind == "tile-sums" and count <= 4 * PATIENCE
    assert count == 4 * PATIENCE and machine.failures == PATIENCE and machine.successes == 0


def test_lost_ground_is_given_back_and_the_margin_grows() -> None:
    x = picture(3, 64, 64)
    machine = machine_of(x, budget=100)
    judge = Judge(x)
    run_machine(machine, judge, STARTED)
    safe, margin = machine.safe_CHW.copy(), machine.margin
    for _ in range(3):
        machine.ask()
        machine.tell([machine.sums + np.where(machine.sums > 0, 1e-6, 0.0) - 1e-3 * np.eye(*machine.sums.shape)])
    assert not np.array_equal(machine.body_CHW, safe) and machine.promised > 0
    machine.ask()
    machine.tell([machine.safe_sums * 0.5])
    assert np.array_equal(machine.body_CHW, safe) and np.array_equal(machine.sums, machine.safe_sums)
    assert machine.margin == margin * 1.5 and machine.promised == 0


def test_an_objective_that_is_no_sum_is_attacked_by_the_plain_attack_alone() -> None:
    x = picture(3, 32, 32)
    machine, plain = machine_of(x, budget=15, additive=False), Square(budget=15).start(query_problem(x, image_tape()))
    first, second = Judge(x), Judge(x)
    run_machine(machine, first)
    run_machine(plain, second)
    assert all(a.equal(b) for a, b in zip(first.seen, second.seen, strict=True))
    assert machine.curve == plain.curve and machine.best()[0].equal(plain.best()[0])


@pytest.mark.parametrize("model", [None, Scrambled()])
def test_a_raised_budget_goes_on_exactly(model: nn.Module | None) -> None:
    x = picture(3, 48, 48)
    whole = Judge(x, model)
    run_machine(machine_of(x, budget=40), whole)
    pieces, state = Judge(x, model), None
    for budget in (1, 4, 8, STARTED, STARTED + 5, 31, 40):
        machine: TileMachine = machine_of(x, budget=budget)
        if state is not None:
            machine.load(state)
        run_machine(machine, pieces)
        assert machine.asked == budget and machine.done
        state = machine.state()
    assert all(a.equal(b) for a, b in zip(whole.seen, pieces.seen, strict=True))


@pytest.mark.parametrize("shape", [(3, 16, 16), (4, 17, 29), (3, 64, 30), (3, 12, 40)])
@pytest.mark.parametrize("depth", ["float", 8])
def test_candidates_are_inside_the_threat_at_any_size(shape: tuple[int, ...], depth: Any) -> None:
    x = images(1, *shape)[0]
    judge = Judge(x, Conv(shape[0]))
    machine = machine_of(x, budget=30, depth=depth, eps=0.05)
    assert run_machine(machine, judge) == 30 == len(judge.seen)
    assert (machine.inner is not None) == (shape == (3, 12, 40)) or machine.failures
    seen = torch.stack(judge.seen)
    assert float((seen - x).abs().max()) <= 0.05 + 1e-6 and float(seen.min()) >= 0 and float(seen.max()) <= 1
    if depth == 8:
        assert torch.allclose((seen * 255).round(), seen * 255, atol=1e-3)


def test_it_does_more_than_plain_square_on_a_local_model() -> None:
    for seed in range(2):
        x = picture(3, 64, 64, seed=seed)
        damage, clean = [], Judge(x, Conv()).score(x[None])[0]
        for attack in (TileSquare(budget=100), *(Square(budget=100, p=p, horizon=100) for p in (0.05, 0.8))):
            machine = attack.start(query_problem(x, image_tape(seed=seed)))
            run_machine(machine, Judge(x, Conv()))
            damage.append(machine.best()[1] - clean)
        assert damage[0] > 1.05 * max(damage[1:])


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_a_model_that_answers_nan_now_and_then_is_borne(cell: int) -> None:
    x = picture(3, 48, 48)
    judge = Judge(x)
    machine = machine_of(x, budget=40, cell=cell, scans=2)
    scores = []
    while not machine.done:
        asked = machine.ask()
        answers = [np.full_like(a, np.nan) if machine.asked % 5 == 1 else a for a in judge(asked)]
        scores += [float(np.sum(a)) / x.numel() for a in answers if asked.wanted.against == "reference"]
        machine.tell(answers)
    assert machine.inner is None and machine.best()[1] == pytest.approx(np.nanmax(scores), rel=1e-12)


def test_without_waves_it_starts_from_stripes_or_signs() -> None:
    x = picture(3, 32, 32)
    machine = machine_of(x, budget=30, scans=0, waves=0)
    judge = Judge(x)
    run_machine(machine, judge)
    assert machine.starts == 2 and machine.curve[-1][0] > 2 + PROBES
