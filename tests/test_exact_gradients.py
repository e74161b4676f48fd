"""Exact gradients through a purification: against plain autograd, differences, and planted gaps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from purifier_doubles import LINEAR, tiny_denoiser
from torch import Tensor, nn

from udc_ray.purifiers.chain import Noise, Segment, make_segments, run_chain
from udc_ray.purifiers.gradients import RecomputeError, exact
from udc_ray.purifiers.plan import Plan, Round
from udc_ray.purifiers.sampler import Level, root
from udc_ray.tape import Tape

TIMES = LINEAR.timesteps(99, 10)


class Smooth(nn.Module):
    """A noise predictor in float64 that depends on every neighbour, and on the time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = (nn.Conv2d(a, b, 3, padding=1).double() for a, b in ((3, 8), (8, 3)))
        self.requires_grad_(False)

    def forward(self, x_t: Tensor, t: int) -> Tensor:
        hidden: Tensor = self.second(torch.tanh(self.first(x_t) + t / 1000))
        return hidden


@dataclass(frozen=True)
class Pull:
    """A guide whose distance is smooth and mixes image and reference."""

    scale: float = 0.3
    form: Literal["eps", "mean"] = "eps"
    calls: int = 1
    noised: bool = False

    def distance(self, x_t: Tensor, reference: Tensor, abar_t: Level, noise: Tensor | None) -> Tensor:
        seen = (x_t / root(abar_t) + 1) / 2
        compared = reference if noise is None else reference + 0.1 * noise
        return (torch.sin(3 * seen) - torch.sin(3 * compared)).square().sum(dim=(1, 2, 3))


def soft(x0: Tensor, reference: Tensor) -> Tensor:
    return torch.tanh(x0) * 0.9 + 0.1 * (reference * 2 - 1)


def one(**settings: object) -> Round:
    return Round(**{"timesteps": TIMES, "clip_x0": False, **settings})  # type: ignore[arg-type]  # drawn


PLANS = {
    "ddim": Plan(rounds=(one(),)),
    "ddpm": Plan(rounds=(one(eta=1.0),)),
    "large variance": Plan(rounds=(one(eta=0.5, variance="fixed_large"),)),
    "diffpure": Plan(rounds=(one(kernel="euler"),)),
    "gradual": Plan(rounds=(one(timesteps=(40, 20)), one(eta=1.0, timesteps=TIMES[::2]), one(timesteps=(99, 40, 9)))),
    "hook": Plan(rounds=(one(),), hook=soft),
    "guide eps": Plan(rounds=(one(),), guide=Pull(scale=2.0)),
    "guide mean": Plan(rounds=(one(eta=1.0),), guide=Pull(form="mean", scale=3.0, noised=True)),
    "twice one-step": Plan(
        rounds=(
            one(timesteps=(99,), guided=False),
            one(timesteps=(99, 98), start="input", reference="previous", eta=1.0),
        ),
        guide=Pull(form="mean", scale=20.0),
    ),
}


def images(count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (0.4 + 0.2 * x).to(dtype)


def noise(count: int = 2, name: str = "test") -> Noise:
    return Noise(tape=Tape(seed=0, image_ids=tuple("ab"[:count]), stream="attack"), name=name)


def segments(plan: Plan, **settings: bool) -> list[Segment]:
    return make_segments(plan, Smooth(), LINEAR, noise(), **settings)


def plain(steps: list[Segment], x: Tensor) -> Tensor:
    state = (x,)
    for step in steps:
        state = step(state, x)  # type: ignore[assignment]  # a tuple of any length
    return state[0]


def gradient(purify: Callable[[list[Segment], Tensor], Tensor], steps: list[Segment], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    weights = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x[0].shape)
    loss = (purify(steps, leaf).sin() * weights).sum()
    return torch.autograd.grad(loss, leaf)[0]


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_gradient_is_that_of_plain_autograd(plan: Plan) -> None:
    steps, x = segments(plan), images()
    assert gap(gradient(exact, steps, x), gradient(plain, steps, x)) < 1e-10
    assert torch.equal(exact(steps, x), run_chain(steps, x)), "the value is that of the purifier without gradient"


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_gradient_is_that_of_central_differences(plan: Plan) -> None:
    steps, x = segments(plan), images(1)
    steps = make_segments(plan, Smooth(), LINEAR, noise(1))
    found = gradient(exact, steps, x)
    weights = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x[0].shape)

    def loss(at: Tensor) -> float:
        return float((run_chain(steps, at).sin() * weights).sum())

    for seed in range(8):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        direction /= direction.norm()
        slope = (loss(x + 1e-5 * direction) - loss(x - 1e-5 * direction)) / 2e-5
        assert slope == pytest.approx(float((found * direction).sum()), rel=1e-6, abs=1e-6 * float(found.norm()))


class Cut:
    """A segment that loses one of the ways in which the image enters: the state, or the purifier's input."""

    def __init__(self, segment: Segment, lost: str) -> None:
        self.segment, self.lost = segment, lost

    def __call__(self, state: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        if self.lost == "input":
            return self.segment(state, x.detach())
        if self.lost == "reference":
            return self.segment((state[0].detach(),), x)
        return self.segment((state[0] + 0.05 * (state[0].detach() - state[0]), *state[1:]), x)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_one_missing_term_shows(plan: Plan) -> None:
    """Five per cent of one step's gradient for plain chains; the whole path of a guide or hook elsewhere."""
    steps, x = segments(plan), images()
    lost = "input" if plan.guide or plan.hook else "state"
    if any(part.reference == "previous" for part in plan.rounds):
        lost = "reference"  # what the round before hands over
    place = len(plan.rounds[0].timesteps) if lost == "reference" else len(steps) // 2
    planted: list[Segment] = [Cut(s, lost) if n == place else s for n, s in enumerate(steps)]
    assert torch.equal(run_chain(planted, x), run_chain(steps, x)) or lost == "state"
    assert gap(gradient(exact, planted, x), gradient(plain, steps, x)) > 1e-3


def test_a_gradient_that_leaves_out_the_guide_is_another_one() -> None:
    plan, x = PLANS["guide eps"], images()
    whole, cut = segments(plan), segments(plan, guide_gradient=False)
    assert torch.equal(run_chain(whole, x), run_chain(cut, x)), "the purified image is the same"
    assert gap(gradient(exact, cut, x), gradient(exact, whole, x)) > 1e-3


@pytest.mark.parametrize("clip_x0", [True, False])
def test_redone_steps_are_the_stored_ones_in_float32(clip_x0: bool) -> None:
    """50 steps of a network with attention-free GroupNorm and SiLU, ancestral noise, a guide."""
    times = LINEAR.timesteps(99, 50)
    for guide in (None, Pull()):
        plan = Plan(rounds=(Round(timesteps=times, eta=1.0, clip_x0=clip_x0),), guide=guide)
        steps = make_segments(plan, tiny_denoiser(), LINEAR, noise())
        x = images(dtype=torch.float32)
        assert torch.isfinite(gradient(exact, steps, x)).all()  # backward compares every step, and raises


def test_a_step_that_changes_between_forward_and_backward_is_refused() -> None:
    steps, x = segments(PLANS["ddpm"]), images()
    step = steps[4]
    calls = []

    def other_noise(state: tuple[Tensor, ...], source: Tensor) -> tuple[Tensor, ...]:
        calls.append(1)
        fresh = replace(step, noise=noise(name=f"draw {len(calls)}"))  # type: ignore[type-var]  # a Step
        return fresh(state, source)  # type: ignore[operator]  # a Step

    leaf = x.clone().requires_grad_()
    purified = exact([*steps[:4], other_noise, *steps[5:]], leaf)
    with pytest.raises(RecomputeError, match="step 5 of the purification gave other values"):
        purified.sum().backward()


def test_an_input_that_wants_no_gradient_gets_none() -> None:
    steps, x = segments(PLANS["ddim"]), images()
    assert not exact(steps, x).requires_grad


def test_a_surrogate_starts_at_the_same_time_with_fewer_steps() -> None:
    short = PLANS["gradual"].respaced(LINEAR, 2)
    assert [r.timesteps[0] for r in short.rounds] == [40, 99, 99]
    assert [len(r.timesteps) for r in short.rounds] == [2, 2, 2]
    assert PLANS["ddim"].respaced(LINEAR, 50) == PLANS["ddim"]
