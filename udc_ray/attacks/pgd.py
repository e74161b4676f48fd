"""Projected gradient ascent in its variants: FGSM, PGD and SSIM-guided PGD."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.base import AttackResult, Best, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.diagnostics import Observer
from udc_ray.attacks.projections import radius, random_point, steepest
from udc_ray.params import Amount


class ProjectedAscent(GradientAttack):
    """The loop that the variants share; they say where to start, how far and how often to step.

    Between steps an iterate is continuous; what is evaluated and kept is its stored form, so that
    rounding to 8 bits does not swallow small steps.
    """

    @property
    def length(self) -> int:
        """Number of steps."""
        raise NotImplementedError("a variant says how many steps it takes")

    @property
    def passes(self) -> int:
        """Three a step, one for the last score."""
        return self.restarts * (3 * self.length + 1) * self.eot

    @property
    def stride(self) -> float:
        """Size of a step, in the norm of the threat."""
        raise NotImplementedError("a variant says how far it steps")

    def begin(self, problem: Problem) -> Tensor:
        """First iterate."""
        return problem.x_BCHW

    def perturb(self, target: GradientTarget, problem: Problem) -> AttackResult:
        """Ascend; the best iterate by score is kept, and the last one costs one query a select draw."""
        x, threat, ball = problem.x_BCHW, self.threat, self.threat.continuous
        best = Best(x, torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device))
        observer = Observer()
        iterate = self.begin(problem)
        for step in range(self.length):
            stored = threat.store(iterate, x)
            found = target.gradient(stored, step)
            best.offer(stored, found.score_B)
            observer.observe(step, found.loss_B, found.score_B, found.gradient_BCHW)
            iterate = ball.project(iterate + self.stride * steepest(found.gradient_BCHW, self.norm), x)
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


class FGSM(ProjectedAscent):
    """One step of size eps from the untouched image (Goodfellow et al. 2015; l2: its unit gradient).

    An image that the step does not harm is returned untouched. Against the victim's own clean
    output the untouched image is a stationary point: use PGD there, whose start is random.
    """

    name: ClassVar[str] = "fgsm"

    @property
    def length(self) -> int:
        return 1

    @property
    def stride(self) -> float:
        return radius(self.threat)


class PGD(ProjectedAscent):
    """Projected gradient descent (Madry et al. 2018), ascending the damage."""

    name: ClassVar[str] = "pgd"

    steps: int = Field(default=10, ge=1)
    """Gradient steps."""
    step_size: Amount | None = Field(default=None, gt=0)
    """Size of a step in the norm of the threat; 2.5 eps / steps unless given."""
    random_start: bool = True
    """Start from a uniform point of the ball, keyed by image and restart."""

    @property
    def length(self) -> int:
        return self.steps

    @property
    def stride(self) -> float:
        return 2.5 * radius(self.threat) / self.steps if self.step_size is None else self.step_size

    def begin(self, problem: Problem) -> Tensor:
        if not self.random_start:
            return problem.x_BCHW
        return random_point(problem.x_BCHW, self.threat, problem.tape.generators(self.identity()))


class SSIMPGD(PGD):
    """PGD along the gradient of 1 - SSIM of the unclamped output."""

    name: ClassVar[str] = "ssim-pgd"

    objective: Literal["ssim"] = "ssim"
