"""NES and ZO-signSGD against gradients known in closed form, and their schedules against the papers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from doubles import image_tape, judge_by, query_problem, run_machine
from torch import Tensor

from udc_ray.attacks import steps
from udc_ray.attacks.nes import NES, ZOSignSGD, ZOSignSGDMachine
from udc_ray.attacks.threat import Depth, Norm, l2_norm

GREY = torch.full((3, 4, 4), 128 / 255)
SLOPE = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4, 4)))
Score = Callable[[Tensor], list[float]]


def linear(x_KCHW: Tensor) -> list[float]:
    """<w, x>: its gradient is w everywhere."""
    return [float((SLOPE * x.double()).sum()) for x in x_KCHW]


def quadratic(x_KCHW: Tensor) -> list[float]:
    """<w, d> - 40 |d|^2 with d = x - grey: its gradient at grey is w."""
    deltas = [x.double() - GREY.double() for x in x_KCHW]
    return [float((SLOPE * d).sum() - 40 * d.square().sum()) for d in deltas]


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum() / (a.double().norm() * b.double().norm()))


def spying(function: Callable[..., Tensor], seen: list[Tensor]) -> Callable[..., Tensor]:
    def spy(*args: object) -> Tensor:
        seen.append(function(*args))
        return seen[-1]

    return spy


def asked_of(attack: NES | ZOSignSGD, score: Score = linear, x: Tensor = GREY) -> tuple[list[Tensor], list[int]]:
    """All candidates of a run, and how many each ask held."""
    seen: list[Tensor] = []
    sizes: list[int] = []

    def answer(batch: Tensor) -> list[float]:
        seen.extend(batch)
        sizes.append(len(batch))
        return score(batch)

    run_machine(attack.start(query_problem(x, goal=1e9)), judge_by(answer))
    return seen, sizes


@pytest.mark.parametrize("score", [linear, quadratic])
def test_the_estimate_of_nes_is_the_gradient(score: Score) -> None:
    """The even part of the score cancels in every pair, so that the curvature does not matter."""
    machine = NES(samples=1600, sigma=0.01, budget=1601, momentum=0).start(query_problem(GREY))
    run_machine(machine, judge_by(score))
    assert cosine(machine.direction_CHW, SLOPE) > 0.95  # 800 pairs in 48 dimensions: 0.97 is to be expected
    assert float(machine.direction_CHW.norm() / SLOPE.norm()) == pytest.approx(1, abs=0.1)


def test_an_estimate_is_the_mean_of_differences_times_directions() -> None:
    seen, _ = asked_of(NES(samples=6, budget=7, momentum=0))
    assert seen[0].equal(GREY)
    expected = torch.zeros_like(SLOPE)
    for plus, minus in zip(seen[1::2], seen[2::2], strict=True):
        assert torch.allclose(plus - GREY, GREY - minus, atol=1e-7)
        u = (plus.double() - minus.double()) / 2 / 1e-3
        expected += (linear(plus[None])[0] - linear(minus[None])[0]) * u / (6 * 1e-3)
    machine = NES(samples=6, budget=7, momentum=0).start(query_problem(GREY))
    run_machine(machine, judge_by(linear))
    assert torch.allclose(machine.direction_CHW, expected, rtol=1e-3, atol=1e-3)
    noise = torch.stack([(c - GREY) / 1e-3 for c in asked_of(NES(samples=400, budget=401))[0][1::2]])
    assert float(noise.mean()) == pytest.approx(0, abs=0.04) and float(noise.std()) == pytest.approx(1, abs=0.03)


def test_canonical_steps_of_nes() -> None:
    attack = NES(eps=0.05, budget=3 * 51)
    seen, sizes = asked_of(attack)
    assert sizes == [51, 51, 51]
    first, second = (seen[51 * n].double() - seen[51 * n - 51].double() for n in (1, 2))
    assert first.abs().numpy() == pytest.approx(0.01, abs=1e-6)
    assert second.abs().numpy() == pytest.approx(0.01, abs=1e-6)
    assert NES(eps="8/255").start(query_problem(GREY)).rate == pytest.approx(8 / 255 / 5)
    seen, _ = asked_of(NES(norm="l2", eps=5, budget=52))
    assert float(l2_norm((seen[51] - seen[0])[None])) == pytest.approx(0.3, rel=1e-4)


def test_momentum_carries_the_former_direction_on() -> None:
    machine = NES(samples=4, budget=10).start(query_problem(GREY))
    estimates: list[Tensor] = []
    machine.estimate = spying(machine.estimate, estimates)  # type: ignore[method-assign]  # to see what it returns
    run_machine(machine, judge_by(linear))
    first, second = estimates
    assert float(first.norm()) > 0 and cosine(first, second) < 0.99
    assert torch.allclose(machine.direction_CHW, 0.9 * (0.1 * first) + 0.1 * second)
    moved = machine.iterate_CHW - GREY
    assert torch.allclose(moved, 8 / 255 / 5 * (first.sign() + machine.direction_CHW.sign()).float(), atol=1e-6)


def test_the_rate_is_halved_on_a_plateau_and_never_vanishes() -> None:
    machine = NES(samples=2, budget=1000, eps=0.05).start(query_problem(GREY))
    falling = iter(range(1000, 0, -1))
    rates = []
    for _ in range(60):
        run_machine(machine, lambda ask: [float(next(falling)) for _ in ask.x_KCHW], at_most=3)
        rates.append(machine.rate)
    assert rates[:11] == pytest.approx([0.01] * 4 + [0.005] * 5 + [0.0025] * 2)  # a new window begins at each halving
    assert min(rates) == rates[-1] == pytest.approx(5e-5)
    rising = NES(samples=2, budget=60).start(query_problem(GREY))
    run_machine(rising, lambda ask: [float(rising.asked + k) for k in range(len(ask.x_KCHW))])
    assert rising.rate == rising.first_rate


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nes_climbs_to_the_border(norm: Norm) -> None:
    machine = NES(norm=norm, eps=0.05 if norm == "linf" else 0.3, budget=1500).start(query_problem(GREY, goal=1e9))
    run_machine(machine, judge_by(linear))
    best, score = machine.best()
    most = 0.05 * SLOPE.abs().sum() if norm == "linf" else 0.3 * SLOPE.norm()
    assert score - linear(GREY[None])[0] > 0.97 * float(most)
    assert score == linear(best[None])[0]


@pytest.mark.parametrize("score", [linear, quadratic])
def test_the_estimate_of_zo_signsgd_is_the_gradient(score: Score) -> None:
    machine = ZOSignSGD(samples=800, budget=801, mu=1e-4).start(query_problem(GREY))
    assert isinstance(machine, ZOSignSGDMachine)
    estimates = []
    machine.estimate = spying(machine.estimate, estimates)  # type: ignore[method-assign]  # to see what it returns
    run_machine(machine, judge_by(score))
    assert len(estimates) == 1 and cosine(estimates[0], SLOPE) > 0.95
    assert float(estimates[0].norm() / SLOPE.norm()) == pytest.approx(1, abs=0.1)


def test_canonical_steps_of_zo_signsgd() -> None:
    seen, _ = asked_of(ZOSignSGD(eps=0.05, budget=32))
    assert seen[0].equal(GREY)
    lengths = l2_norm(torch.stack(seen[1:31]) - GREY)
    assert lengths.numpy() == pytest.approx(1e-3 * 48**0.5, rel=1e-4)
    assert (seen[31] - GREY).abs().numpy() == pytest.approx(0.01, abs=1e-6)
    seen, _ = asked_of(ZOSignSGD(norm="l2", eps=5, budget=32))
    assert float(l2_norm((seen[31] - GREY)[None])) == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("depth", ["float", 8])
def test_differences_on_the_border_are_taken_from_inside(depth: Depth) -> None:
    """Clipped directions would lower all scores alike, and that would outweigh what the directions tell."""
    attack = ZOSignSGD(samples=400, budget=402, eps="16/255", depth=depth)
    machine = attack.start(query_problem(GREY))
    assert isinstance(machine, ZOSignSGDMachine)
    machine.iterate_CHW = GREY + 16 / 255 * SLOPE.sign().float()  # the corner where every direction outwards is clipped
    estimates: list[Tensor] = []
    machine.estimate = spying(machine.estimate, estimates)  # type: ignore[method-assign]  # to see what it returns
    ask = machine.ask()
    assert len(ask.x_KCHW) == 402 and not ask.x_KCHW[0].equal(ask.x_KCHW[1])
    machine.tell(linear(ask.x_KCHW))
    assert cosine(estimates[0], SLOPE) > 0.85
    assert asked_of(ZOSignSGD(samples=3, budget=4))[0][0].equal(GREY)  # inside, the iterate is the centre


@pytest.mark.parametrize("attack", [NES(samples=50, depth=8, budget=300), ZOSignSGD(depth=8, budget=300)])
def test_on_the_grid_the_directions_survive_rounding(attack: NES | ZOSignSGD) -> None:
    seen, _ = asked_of(attack)
    levels = torch.stack(seen).double() * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4
    moved = (torch.stack(seen[1:31]) - GREY).double() * 255
    assert 0.5 < float((moved.abs() > 0.5).double().mean()) < 0.75  # |u| > 1/2 for 62 % of normal values
    assert abs(float(moved.mean())) < 0.1
    assert max(linear(torch.stack(seen))) > linear(GREY[None])[0] + 0.5 * 8 / 255 * float(SLOPE.abs().sum())


@pytest.mark.parametrize("attack", [NES(samples=6), ZOSignSGD(samples=5), NES(samples=6, norm="l2", depth=8)])
@pytest.mark.parametrize("cut", [1, 4, 9, 14])
def test_a_budget_that_ends_within_a_step_goes_on_exactly(attack: NES | ZOSignSGD, cut: int) -> None:
    whole, _ = asked_of(attack.model_copy(update={"budget": 40}))
    first = attack.model_copy(update={"budget": cut}).start(query_problem(GREY, goal=1e9))
    run_machine(first, judge_by(linear))
    assert first.asked == cut and first.done
    second = attack.model_copy(update={"budget": 40}).start(query_problem(GREY, goal=1e9))
    second.load(first.state())
    later: list[Tensor] = []
    run_machine(second, judge_by(lambda batch: (later.extend(batch), linear(batch))[1]))
    assert len(later) == 40 - cut
    assert all(a.equal(b) for a, b in zip(later, whole[cut:], strict=True))


def test_a_step_may_be_asked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = asked_of(NES(budget=120))
    monkeypatch.setattr(steps, "AT_ONCE", 7 * GREY.numel() + 1)
    parts, sizes = asked_of(NES(budget=120))
    assert max(sizes) == 7 and sizes[:8] == [7] * 7 + [2]
    assert all(a.equal(b) for a, b in zip(whole, parts, strict=True))
    monkeypatch.setattr(steps, "AT_ONCE", 1)
    assert set(asked_of(NES(budget=60))[1]) == {1}


def test_an_iterate_that_succeeds_spares_its_samples() -> None:
    goal = linear(GREY[None])[0] + 0.012 * float(SLOPE.abs().sum())
    machine = NES(eps=0.05, budget=1000, stop="success").start(query_problem(GREY, image_tape(), goal=goal))
    sizes = []
    run_machine(machine, judge_by(lambda batch: (sizes.append(len(batch)), linear(batch))[1]))
    assert sizes[0::2] == [1] * len(sizes[0::2]) and set(sizes[1::2]) == {50}
    assert machine.stop_reason == "success" and machine.asked % 51 == 1
