"""Doubles that several tests share: tiny deterministic victims, images, and a driver for machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from udc_ray.attacks.base import GradientAttack, GradientTarget, Problem
from udc_ray.attacks.objectives import get_objective
from udc_ray.attacks.query import Answer, Ask, Machine, QueryProblem, Wanted
from udc_ray.models.base import Descriptor, ModuleRestorer, Restorer
from udc_ray.purifiers.base import Purifier, Trace
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape, normal_like

SEED = 7


class Conv(nn.Module):
    """A small network with fixed weights that sharpens, as restorers of blurred images do."""

    def __init__(self, channels: int = 3, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.35)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        learnt: Tensor = self.last(torch.tanh(self.first(x_BCHW)))
        blurred: Tensor = Blur()(x_BCHW)
        return x_BCHW + 1.5 * (x_BCHW - blurred) + 0.05 * learnt


class Blur(nn.Module):
    """The mean over 3 x 3 pixels: linear and local."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean: Tensor = nn.functional.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
        return mean


class GlobalMean(nn.Module):
    """A gain that depends on the mean of the whole image."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * (0.5 + x_BCHW.mean(dim=(1, 2, 3), keepdim=True))


class Scale(nn.Module):
    """f(x) = a x: the least perturbation that does a given damage is known in closed form."""

    def __init__(self, a: float = 1.0) -> None:
        super().__init__()
        self.a = a

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.a * x_BCHW


class Constant(nn.Module):
    """An output that does not depend on the input, though a gradient (zero) exists."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return 0.5 + 0 * x_BCHW


def restorer(module: nn.Module | None = None) -> ModuleRestorer:
    """A module as a restorer; the small network unless given."""
    module = Conv() if module is None else module
    count = sum(p.numel() for p in module.parameters())
    return ModuleRestorer(module, Descriptor(name=type(module).__name__.lower(), parameters=count))


class Counting:
    """Counts the images that really pass a restorer, with and without a gradient."""

    def __init__(self, inner: Restorer) -> None:
        self.inner, self.descriptor = inner, inner.descriptor
        self.with_gradient = 0
        self.without = 0

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x_BCHW.requires_grad:
            self.with_gradient += len(x_BCHW)
        else:
            self.without += len(x_BCHW)
        return self.inner(x_BCHW)

    def to(self, device: str) -> Counting:
        self.inner.to(device)
        return self


class Jitter(Purifier):
    """A purifier that adds keyed noise: the smallest random victim."""

    name: ClassVar[str] = "jitter"
    random: ClassVar[bool] = True
    sigma: float = 0.05

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Any) -> tuple[Tensor, Trace]:
        noise = normal_like(tape.generators(self.identity()), x_BCHW)
        return (x_BCHW + self.sigma * noise).clamp(0, 1), Trace()


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    """Images on the 8-bit grid, with values at both ends of the box."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (count, *shape)).astype(np.float32)
    values[:, :, 0, 0], values[:, :, -1, -1] = 0, 255
    return torch.from_numpy(values / np.float32(255))


def make_target(
    attack: GradientAttack,
    x_BCHW: Tensor,
    *,
    model: Restorer | None = None,
    truth_BCHW: Tensor | None = None,
    objective: str = "mse",
    purifier: Purifier | None = None,
    grad_mode: str = "bpda",
    image_ids: Sequence[str] | None = None,
    seed: int = SEED,
    restart: int = 0,
    drop_db: float = 3.0,
) -> tuple[GradientTarget, Problem]:
    """A target and a problem as a host would make them; the truth is the blurred image unless given."""
    ids = tuple(image_ids) if image_ids is not None else tuple(f"image{b}" for b in range(len(x_BCHW)))
    model = restorer() if model is None else model
    victim = Victim(restorer=model, purifier=purifier, grad_mode="full" if purifier is None else grad_mode)
    chosen = get_objective(attack.objective or objective)
    tape = Tape(seed=seed, image_ids=ids, stream="attack", restart=restart)
    reference = Blur()(x_BCHW) if truth_BCHW is None else truth_BCHW
    with torch.no_grad():
        if chosen.reference == "clean":
            reference = model(x_BCHW)
        clean_B = chosen.score(model(x_BCHW), reference)
    target = GradientTarget(
        victim, chosen, reference, tape, eot=attack.eot, select_draws=attack.select_draws, frozen=attack.frozen_noise
    )
    goal_B = clean_B * 10 ** (drop_db / 10)
    return target, Problem(x_BCHW=x_BCHW, tape=tape, clean_score_B=clean_B, goal_B=goal_B)


def make_problem(attack: GradientAttack, x_BCHW: Tensor, **options: Any) -> Problem:
    """Only the problem of `make_target`."""
    return make_target(attack, x_BCHW, **options)[1]


def image_tape(image_id: str = "image0", *, seed: int = SEED, restart: int = 0) -> Tape:
    """The attack tape of one image, as the driver of query attacks makes it."""
    return Tape(seed=seed, image_ids=(image_id,), stream="attack", restart=restart)


def query_problem(
    x_CHW: Tensor, tape: Tape | None = None, *, goal: float = 1.0, random: bool = False, additive: bool = True
) -> QueryProblem:
    """The attack on one image as whoever steps it poses it."""
    return QueryProblem(x_CHW=x_CHW, tape=tape or image_tape(), goal=goal, random=random, additive=additive)


Score = Callable[[Tensor], Sequence[float]]
"""Scores of candidates N x C x H x W."""
Judge = Callable[[Ask], Sequence[Answer]]
"""Answers what a machine asks."""


def score_against(model: Restorer, reference_CHW: Tensor, objective: str = "mse") -> Callable[[Tensor], list[float]]:
    """A score function of candidates N x C x H x W, one candidate a forward pass."""
    chosen = get_objective(objective)

    def score(x_NCHW: Tensor) -> list[float]:
        with torch.no_grad():
            return [float(chosen.score(model(x[None]), reference_CHW[None])) for x in x_NCHW]

    return score


def judge_by(score: Score) -> Judge:
    """Answer with scores, whatever was wanted."""
    return lambda ask: list(score(ask.x_KCHW))


def judge_against(model: Restorer, reference_CHW: Tensor, goal: float = 1.0, clean_CHW: Tensor | None = None) -> Judge:
    """Answer what is wanted by the mean squared error, one candidate a forward pass; tiles are summed one by one.

    Args:
        model: restores the candidates.
        reference_CHW: what its output is compared with.
        goal: score from which on an event has happened.
        clean_CHW: the output on the untouched image, for tile sums against it.
    """

    def answer(x_CHW: Tensor, wanted: Wanted) -> Answer:
        with torch.no_grad():
            output = model(x_CHW[None])[0].clamp(0, 1)
        against = clean_CHW if wanted.against == "clean" and clean_CHW is not None else reference_CHW
        squares = (output.double() - against.double()).square().numpy()
        if wanted.kind == "tile-sums":
            return tiled(squares, wanted.tile)
        score = float(squares.mean())
        return float(score >= goal) if wanted.kind == "event" else score

    return lambda ask: [answer(x, ask.wanted) for x in ask.x_KCHW]


def tiled(values_CHW: np.ndarray, tile: int) -> np.ndarray:
    """Sums over channels and tiles, tile by tile."""
    _, height, width = values_CHW.shape
    tops, lefts = range(0, height, tile), range(0, width, tile)
    return np.array([[values_CHW[:, r : r + tile, c : c + tile].sum() for c in lefts] for r in tops])


def run_machine(machine: Machine, judge: Judge, at_most: int | None = None) -> int:
    """Drive a machine until it is done, or for `at_most` more candidates; returns how many were judged."""
    judged = 0
    while not machine.done and (at_most is None or judged < at_most):
        ask = machine.ask()
        machine.tell(judge(ask))
        judged += len(ask.x_KCHW)
    return judged
