"""Auto-PGD: projected ascent with momentum that sets its own step size (Croce and Hein 2020, algorithm 1)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.base import AttackResult, Best, Gradient, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.diagnostics import Observer
from udc_ray.attacks.projections import radius, random_point, steepest
from udc_ray.attacks.threat import Threat

MOMENTUM = 0.75
"""alpha: weight of the new direction; the rest is that of the last move."""
RISING = 0.75
"""rho: share of the steps between two checkpoints that has to raise the loss."""


def checkpoints(steps: int) -> list[int]:
    """The iterations w_j = ceil(p_j steps), j >= 1, after which the step size is reconsidered.

    p_0 = 0, p_1 = 0.22 and p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), in hundredths, as 0.57 * 100 is not 57.
    """
    found: list[int] = []
    share, gap = 22, 22
    while share <= 100:
        found.append(-(-share * steps // 100))
        gap = max(gap - 3, 6)
        share += gap
    return sorted(set(found))


class APGD(GradientAttack):
    """Auto-PGD with the project's losses; first step 2 eps, halved at checkpoints where an image stalls.

    An image whose step is halved goes on from its best point so far. Best there, and rising, are by the
    loss, as in the paper: on a random victim that is the loss of the step's own draws. What is returned is the
    best iterate by score. It costs `steps` gradients and a last score.
    """

    name: ClassVar[str] = "apgd"

    steps: int = Field(default=100, ge=1)
    """Gradient steps, N_iter of the paper."""
    random_start: bool = True
    """Start from a uniform point of the ball, keyed by image and restart."""

    @property
    def passes(self) -> int:
        """Three a step, one for the last score."""
        return self.restarts * (3 * self.steps + 1) * self.eot

    def begin(self, problem: Problem) -> Tensor:
        """First iterate."""
        if not self.random_start:
            return problem.x_BCHW
        return random_point(problem.x_BCHW, self.threat, problem.tape.generators(self.identity()))

    def perturb(self, target: GradientTarget, problem: Problem) -> AttackResult:
        """Climb; between steps an iterate is continuous, what is evaluated and kept is its stored form."""
        x, threat = problem.x_BCHW, self.threat
        best = Best(x, torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device))
        climb, observer = _Climb(threat, x, checkpoints(self.steps)), Observer()
        iterate = self.begin(problem)
        for step in range(self.steps):
            stored = threat.store(iterate, x)
            found = target.gradient(stored, step)
            best.offer(stored, found.score_B)
            observer.observe(step, found.loss_B, found.score_B, found.gradient_BCHW)
            iterate = climb.move(iterate, found)
        stored = threat.store(iterate, x)
        last_B = target.score(stored)
        best.offer(stored, last_B)
        return AttackResult(
            x_adv_BCHW=best.x_BCHW,
            score_B=best.score_B,
            queries=list(target.queries),
            grad_evals=list(target.grad_evals),
            stop_reasons=["iterations"] * len(x),
            diagnostics=observer.finish(best.score_B, last_B),
        )


class _Point(NamedTuple):
    """An iterate before it is stored, with the loss and the gradient of its stored form."""

    x_BCHW: Tensor
    loss_B: Tensor
    gradient_BCHW: Tensor

    def where(self, mine_B: Tensor, other: _Point) -> _Point:
        """This point for the images of `mine_B`, the other one for the rest."""
        mine_B111 = mine_B[:, None, None, None]
        return _Point(
            torch.where(mine_B111, self.x_BCHW, other.x_BCHW),
            torch.where(mine_B, self.loss_B, other.loss_B),
            torch.where(mine_B111, self.gradient_BCHW, other.gradient_BCHW),
        )


class _Climb:
    """The state of algorithm 1 at x^(k), every image with its own step size and best point.

    Where the text leaves room: f_max^(k) is the best loss of x^(0) ... x^(k), as condition 1 counts rises up to
    x^(k) too; and after a restart x^(k+1) is the best point itself, in the momentum and in the count of rises.
    """

    def __init__(self, threat: Threat, x_BCHW: Tensor, checks: list[int]) -> None:
        self.threat, self.x_BCHW, self.checks = threat.continuous, x_BCHW, checks
        self.k, self.checked = 0, 0
        self.eta_B = torch.full((len(x_BCHW),), 2 * radius(threat), dtype=x_BCHW.dtype, device=x_BCHW.device)
        self.rises_B = torch.zeros(len(x_BCHW), dtype=torch.int64, device=x_BCHW.device)
        self.halved_B = torch.zeros(len(x_BCHW), dtype=torch.bool, device=x_BCHW.device)
        self.last: _Point
        self.top: _Point
        self.top_checked_B: Tensor

    def move(self, iterate_BCHW: Tensor, found: Gradient) -> Tensor:
        """x^(k+1) from x^(k) and its gradient."""
        loss_B = torch.nan_to_num(found.loss_B.double(), nan=-torch.inf)
        here = _Point(iterate_BCHW, loss_B, found.gradient_BCHW)
        if self.k == 0:
            self.top, self.top_checked_B = here, loss_B
            moved = self._step(here)
        else:
            here = self._reconsidered(here)
            self.rises_B = self.rises_B + (here.loss_B > self.last.loss_B)
            x = here.x_BCHW
            pushed = x + MOMENTUM * (self._step(here) - x) + (1 - MOMENTUM) * (x - self.last.x_BCHW)
            moved = self.threat.project(pushed, self.x_BCHW)
        self.last, self.k = here, self.k + 1
        return moved

    def _step(self, point: _Point) -> Tensor:
        direction = steepest(point.gradient_BCHW, self.threat.norm)
        return self.threat.project(point.x_BCHW + self.eta_B[:, None, None, None] * direction, self.x_BCHW)

    def _reconsidered(self, here: _Point) -> _Point:
        """x^(k), or the best point where iteration k - 1 was a checkpoint at which an image stalled."""
        stalled_B = self._checkpoint() if self.k - 1 in self.checks else torch.zeros_like(self.halved_B)
        self.top = here.where(here.loss_B > self.top.loss_B, self.top)
        return self.top.where(stalled_B, here)

    def _checkpoint(self) -> Tensor:
        """Conditions 1 and 2 of the paper; halves the step of the images that meet one, and returns which."""
        few_B = self.rises_B < RISING * (self.k - 1 - self.checked)
        stuck_B = ~self.halved_B & (self.top.loss_B == self.top_checked_B)
        self.halved_B = few_B | stuck_B
        self.eta_B = torch.where(self.halved_B, self.eta_B / 2, self.eta_B)
        self.checked, self.top_checked_B = self.k - 1, self.top.loss_B
        self.rises_B = torch.zeros_like(self.rises_B)
        return self.halved_B
