"""Bandits against the update rules of its paper, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from doubles import judge_by, query_problem, run_machine
from torch import Tensor

from udc_ray.attacks.bandits import Bandits, BanditsMachine
from udc_ray.attacks.threat import Norm, Threat, l2_norm

GREY = torch.full((3, 16, 16), 128 / 255)
SLOPE = torch.from_numpy(np.kron(np.random.default_rng(1).normal(size=(3, 4, 4)), np.ones((1, 4, 4))))
"""A gradient that is constant over tiles of 4 x 4 pixels."""


def linear(x_KCHW: Tensor) -> list[float]:
    return [float((SLOPE * (x.double() - GREY.double())).sum()) for x in x_KCHW]


def run(attack: Bandits, scores: list[float] | None = None, x: Tensor = GREY) -> tuple[list[Tensor], BanditsMachine]:
    """All candidates of a run that is told given scores, or those of a linear score."""
    machine = attack.start(query_problem(x, goal=1e9))
    seen: list[Tensor] = []

    def answer(batch: Tensor) -> list[float]:
        told = linear(batch) if scores is None else scores[len(seen) : len(seen) + len(batch)]
        seen.extend(batch)
        return told

    run_machine(machine, judge_by(answer))
    return seen, machine


def probed(seen: list[Tensor], length: float) -> list[np.ndarray]:
    """Directions of probes, as unit vectors."""
    deltas = [(x - GREY).double().numpy() for x in seen]
    for delta in deltas:
        assert np.linalg.norm(delta) == pytest.approx(length, rel=1e-3)
    return [delta / np.linalg.norm(delta) for delta in deltas]


ANSWERS = [(4.0, 1.0), (-2.0, 0.5)]
"""Scores of the probes of two steps."""
SLOPES = [2 / math.sqrt(48), -2.5 / math.sqrt((3**2 + 2.5**2) / 2) * 2 / math.sqrt(48)]
"""Their differences over the root mean square so far, for 48 values of the prior and exploration 1."""


def test_the_prior_moves_by_exponentiated_gradients() -> None:
    """The paper's EG step on p = (1 + v) / 2, with scores of our own."""
    attack = Bandits(eps=0.05, tiles=4, check=0, budget=4, online_rate=7, exploration=0.5, probe=0.2)
    machine = attack.start(query_problem(GREY, goal=1e9))
    v = np.zeros((3, 4, 4))
    for answers, slope in zip(ANSWERS, SLOPES, strict=True):
        gradient = slope / 0.5 * machine.exploring()
        p = (1 + v) / 2
        up, down = p * np.exp(7 * gradient), (1 - p) * np.exp(-7 * gradient)
        v = 2 * up / (up + down) - 1
        before = machine.iterate_CHW
        machine.tell(answers)
        assert machine.estimate() == pytest.approx(v, abs=1e-12)
        step = np.kron(np.sign(v), np.ones((1, 4, 4))) * 0.01
        expected = (before.numpy() - GREY.numpy() + step).clip(-0.05, 0.05)
        assert (machine.iterate_CHW - GREY).numpy() == pytest.approx(expected, abs=1e-6)
    assert 0.01 < np.abs(v).max() < 1


def test_the_prior_moves_along_gradients_for_l2() -> None:
    attack = Bandits(norm="l2", eps=5, tiles=4, check=0, budget=4)
    machine = attack.start(query_problem(GREY, goal=1e9))
    assert (machine.online_rate, machine.exploration, machine.probe) == (0.1, 0.01, 0.01)
    v = np.zeros((3, 4, 4))
    for answers, slope in zip(ANSWERS, SLOPES, strict=True):
        v = v + 0.1 * slope / 0.01 * machine.exploring()
        before = machine.iterate_CHW
        machine.tell(answers)
        assert machine.prior == pytest.approx(v, rel=1e-9)
        wide = np.kron(v, np.ones((1, 4, 4)))
        moved = (machine.iterate_CHW - before).numpy()
        assert moved == pytest.approx(0.5 * wide / np.linalg.norm(wide), abs=1e-6)


@pytest.mark.parametrize(("norm", "length"), [("linf", 0.1), ("l2", 0.01)])
def test_probes_lie_on_both_sides_of_the_prior(norm: Norm, length: float) -> None:
    attack = Bandits(norm=norm, tiles=4, check=0, budget=2)
    seen, machine = run(attack)
    plus, minus = probed(seen, length)
    assert plus == pytest.approx(-minus, abs=1e-5)  # there is no prior yet
    assert plus == pytest.approx(np.kron(plus[:, ::4, ::4], np.ones((1, 4, 4))), abs=1e-4)
    machine = attack.start(query_problem(GREY, goal=1e9))
    prior = np.random.default_rng(0).normal(size=(3, 4, 4)) * 0.3
    machine.prior = np.arctanh(np.tanh(prior)) if norm == "linf" else prior
    estimate = np.tanh(prior) if norm == "linf" else prior
    for side, found in zip((1, -1), probed(list(machine.ask().x_KCHW), length), strict=True):
        q = np.kron(estimate + side * machine.exploring(), np.ones((1, 4, 4)))
        assert found == pytest.approx(q / np.linalg.norm(q), abs=1e-4)


def test_the_exploring_direction_has_the_size_of_the_paper() -> None:
    machine = Bandits(tiles=16, exploration=1).start(query_problem(GREY))
    draws = []
    for step in range(20):
        machine.step = step
        draws.append(machine.exploring())
    assert np.mean([np.square(d).sum() for d in draws]) == pytest.approx(1, abs=0.05)
    assert abs(float(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1])) < 0.15


def test_canonical_settings() -> None:
    linf, l2 = Bandits(eps=0.05), Bandits(norm="l2", eps=5)
    machine = linf.start(query_problem(GREY))
    assert (machine.rate, machine.online_rate) == pytest.approx((0.01, 100))
    assert (machine.exploration, machine.probe) == (1, 0.1)
    assert l2.start(query_problem(GREY)).rate == pytest.approx(0.5)
    assert linf.grid(299, 299) == (50, 50) and linf.grid(32, 32) == (16, 16)
    assert linf.grid(299, 598) == (50, 100) and linf.grid(1, 1) == (1, 1) and linf.grid(3, 2) == (3, 2)
    assert Bandits(tiles=5).grid(32, 64) == (5, 10) and Bandits(tiles=50).grid(8, 4) == (8, 4)


def test_the_iterate_is_asked_now_and_then_and_charged() -> None:
    seen, _ = run(Bandits(eps=0.05, tiles=4, check=3, budget=15))
    assert seen[0].equal(GREY)
    offsets = (torch.stack([seen[7], seen[14]]) - GREY).abs() * 100  # steps of 0.01 to and fro
    assert (offsets - offsets.round()).abs().max() < 1e-3
    between = (torch.stack([*seen[1:7], *seen[8:14]]) - GREY).abs() * 100
    assert (between - between.round()).abs().amax(dim=(1, 2, 3)).min() > 1e-3  # probes lie beside it
    machine = Bandits(eps=0.05, check=10, budget=1000, stop="success").start(query_problem(GREY, goal=0.5))
    sizes: list[int] = []
    run_machine(machine, judge_by(lambda batch: (sizes.append(len(batch)), linear(batch))[1]))
    assert sizes[:3] == [1, 2, 1] and machine.stop_reason == "success"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_probes_of_an_iterate_on_the_border_are_not_clipped(norm: Norm) -> None:
    """A difference between clipped probes would not see the values whose probes point outwards."""
    eps = 0.05 if norm == "linf" else 1.0
    attack = Bandits(norm=norm, eps=eps, tiles=4, check=0, budget=2)
    machine = attack.start(query_problem(GREY))
    corner = SLOPE.sign() if norm == "linf" else SLOPE / SLOPE.norm()
    machine.iterate_CHW = (GREY + eps * corner).float()
    wide = SLOPE[:, ::4, ::4].numpy()
    machine.prior = np.sign(wide) * 0.2 if norm == "linf" else wide  # outwards everywhere
    plus, minus = (x.double().numpy() for x in machine.ask().x_KCHW)
    expected = []
    for side in (1, -1):
        q = np.kron(machine.estimate() + side * machine.exploring(), np.ones((1, 4, 4)))
        expected.append(machine.probe * q / np.linalg.norm(q))
    assert plus - minus == pytest.approx(expected[0] - expected[1], abs=1e-6)
    threat = Threat(norm=norm, eps=eps)
    assert threat.project(machine.ask().x_KCHW, GREY[None]).sub(machine.ask().x_KCHW).abs().max() < 1e-6


@pytest.mark.parametrize(("norm", "online_rate"), [("linf", 5), ("l2", 0.1)])
def test_it_climbs_to_the_border_whatever_the_unit_of_the_score_is(norm: Norm, online_rate: float) -> None:
    eps = 0.05 if norm == "linf" else 1.0
    attack = Bandits(norm=norm, eps=eps, tiles=4, budget=800, online_rate=online_rate)
    found = []
    for scale, offset in ((1.0, 0.0), (2.0**-13, 4.0)):
        machine = attack.start(query_problem(GREY, goal=1e9))
        run_machine(machine, judge_by(lambda batch, a=scale, b=offset: [b + a * s for s in linear(batch)]))
        found.append(machine.best())
        prior, wanted = machine.enlarged(machine.estimate()).ravel(), SLOPE.numpy().ravel()
        assert prior @ wanted / np.linalg.norm(prior) / np.linalg.norm(wanted) > 0.8
    most = eps * float(SLOPE.abs().sum() if norm == "linf" else SLOPE.norm())
    assert found[0][1] > 0.85 * most
    assert torch.allclose(found[0][0], found[1][0], atol=1e-3)


def test_on_the_grid_small_displacements_survive_in_the_mean() -> None:
    x = torch.full((1, 100, 100), 100 / 255)
    machine = Bandits(depth=8, eps="8/255", budget=3).start(query_problem(x))
    assert machine.probe == pytest.approx(math.sqrt(10_000) / 255)
    dither = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for size in (0.3, -0.7, 2.25):
        moved = machine.displaced(x, torch.full(x.shape, size / 255), dither)
        levels = (moved - x).double() * 255
        assert (levels - levels.round()).abs().max() < 1e-3 and len(levels.round().unique()) == 2
        assert float(levels.mean()) == pytest.approx(size, abs=0.02)
    seen, _ = run(Bandits(depth=8, tiles=4, check=0, budget=2))
    assert not seen[0].equal(seen[1])
    assert float(l2_norm((seen[0] - seen[1])[None])) > 1 / 255


def test_on_the_grid_probes_differ_beside_a_strong_prior() -> None:
    """Each value moves by a grey level, give or take a few per cent: rounded to the nearest, they were equal."""
    machine = Bandits(depth=8, tiles=16, check=0, eps="16/255").start(query_problem(GREY))
    machine.prior = np.full((3, 16, 16), 3.0)
    plus, minus = machine.ask().x_KCHW
    levels = (torch.stack([plus, minus]) - GREY).double() * 255
    assert levels.mean(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.05)
    changed = plus != minus
    assert 10 < int(changed.sum()) < 200
    wanted = torch.from_numpy(machine.exploring()).sign()  # all others are rounded alike
    assert (plus - minus).double().sign()[changed].equal(wanted[changed])


@pytest.mark.parametrize("attack", [Bandits(tiles=4, check=3), Bandits(tiles=4, norm="l2", depth=8, stop="success")])
@pytest.mark.parametrize("cut", [1, 2, 5, 13, 22])
def test_a_raised_budget_goes_on_exactly(attack: Bandits, cut: int) -> None:
    whole, _ = run(attack.model_copy(update={"budget": 40}))
    _, first = run(attack.model_copy(update={"budget": cut}))
    second = attack.model_copy(update={"budget": 40}).start(query_problem(GREY, goal=1e9))
    second.load(first.state())
    later: list[Tensor] = []
    run_machine(second, judge_by(lambda batch: (later.extend(batch), linear(batch))[1]))
    assert first.asked == cut and len(later) == 40 - cut
    assert all(a.equal(b) for a, b in zip(later, whole[cut:], strict=True))
