"""Carlini & Wagner's L2 attack (2017), for a target that returns an image, or logits.

Minimises ||x' - x||_2^2 + c * max(0, f(x')), x' = (tanh w + 1) / 2. For a restorer success is a declared damage (a PSNR
drop of 3 dB, say), and f = 10 log10(goal / loss) + confidence, in decibels: for a loss that is an MSE, f is the
PSNR of the output minus the PSNR that the goal asks for. For a classifier f is the paper's f6, untargeted: the true
class's logit minus the largest other one, plus confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.base import AttackResult, Best, Gradient, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.objectives import Margin
from udc_ray.attacks.threat import l2_norm
from udc_ray.params import Amount
from udc_ray.tape import normal_like

INSIDE = 1 - 1e-6
"""Shrinks the box a little, so that the inverse of tanh is finite."""
LARGEST_CONST = 1e10
"""Upper end of the search for c while nothing has succeeded."""
NOTHING = 1e-9
"""A loss below this is no damage: its logarithm has no useful gradient."""
IMPROVEMENT = 0.9999
"""The loss has to fall below this share of its last check, or the image's descent is aborted."""


class CarliniWagnerL2(GradientAttack):
    """The smallest L2 perturbation that does the declared damage, or makes a classifier miss the class.

    The gradient comes from the unclamped output; whether an iterate succeeds is judged by its score
    as reported, at the storage depth, and the penalty stays on until it does. Without any success the
    iterate with the highest score is returned, with stop reason ``iterations``.
    """

    name: ClassVar[str] = "cw"
    minimum_norm: ClassVar[bool] = True

    norm: Literal["l2"] = "l2"
    search_steps: int = Field(default=9, ge=1)
    """Steps of the binary search for c."""
    iterations: int = Field(default=100, ge=1)
    """Adam iterations per search step."""
    rate: Amount = Field(default=0.01, gt=0)
    """Adam's learning rate, in tanh space."""
    initial_const: Amount = Field(default=1e-3, gt=0)
    """First c."""
    confidence: float = Field(default=0.0, ge=0)
    """Decibels, or logits of a classifier, by which the goal has to be surpassed."""
    abort_early: bool = True
    """Stop an image's descent when its loss has not fallen over a tenth of the iterations."""

    @property
    def passes(self) -> int:
        """Three an iteration."""
        return 3 * self.restarts * self.search_steps * self.iterations

    def perturb(self, target: GradientTarget, problem: Problem) -> AttackResult:
        """Search c per image; an image that has aborted rests, uncounted, until the next search step."""
        search = _Search.begin(self, problem)
        for turn in range(self.search_steps):
            succeeded_B = _Descent(self, target, problem, search).run(turn)
            search.narrow(succeeded_B)
        found_B = search.smallest_l2_B < math.inf
        strongest = search.strongest
        return AttackResult(
            x_adv_BCHW=torch.where(found_B[:, None, None, None], search.smallest_BCHW, strongest.x_BCHW),
            score_B=torch.where(found_B, search.smallest_score_B, strongest.score_B),
            queries=list(target.queries),
            grad_evals=list(target.grad_evals),
            stop_reasons=["success" if found else "iterations" for found in found_B.tolist()],
        )


@dataclass
class _Search:
    """What is kept over the steps of the binary search, per image."""

    const_B: Tensor
    low_B: Tensor
    high_B: Tensor
    smallest_BCHW: Tensor
    smallest_l2_B: Tensor
    smallest_score_B: Tensor
    strongest: Best

    @classmethod
    def begin(cls, attack: CarliniWagnerL2, problem: Problem) -> _Search:
        x = problem.x_BCHW

        def filled(value: float) -> Tensor:
            return torch.full((len(x),), value, dtype=torch.float64, device=x.device)

        return cls(
            const_B=filled(attack.initial_const),
            low_B=filled(0.0),
            high_B=filled(LARGEST_CONST),
            smallest_BCHW=x,
            smallest_l2_B=filled(math.inf),
            smallest_score_B=filled(-math.inf),
            strongest=Best(x, filled(-math.inf)),
        )

    def offer(self, x_BCHW: Tensor, l2_B: Tensor, score_B: Tensor, succeeded_B: Tensor) -> None:
        """Keep the smallest success and the strongest iterate."""
        smaller_B = succeeded_B & (l2_B < self.smallest_l2_B)
        self.smallest_BCHW = torch.where(smaller_B[:, None, None, None], x_BCHW, self.smallest_BCHW)
        self.smallest_l2_B = torch.where(smaller_B, l2_B, self.smallest_l2_B)
        self.smallest_score_B = torch.where(smaller_B, score_B, self.smallest_score_B)
        self.strongest.offer(x_BCHW, score_B)

    def narrow(self, succeeded_B: Tensor) -> None:
        """Next c: halve the interval, or ten times c while no success bounds it from above."""
        self.high_B = torch.where(succeeded_B, torch.minimum(self.high_B, self.const_B), self.high_B)
        self.low_B = torch.where(succeeded_B, self.low_B, torch.maximum(self.low_B, self.const_B))
        bounded_B = self.high_B < LARGEST_CONST
        self.const_B = torch.where(bounded_B, (self.low_B + self.high_B) / 2, self.const_B * 10)


class _Hinge(Protocol):
    """f of the paper, of scores and losses."""

    def needed(self, goal_B: Tensor, confidence: float) -> Tensor:
        """Score from which on f is 0."""
        ...

    def missing(self, needed: float, score: float) -> float:
        """f, where it is above 0."""
        ...

    def weight(self, const_B: Tensor, loss_B: Tensor) -> Tensor:
        """Minus the derivative of c f with respect to the loss."""
        ...

    def flat(self, loss_B: Tensor) -> Tensor:
        """Where that is of no use."""
        ...


class _Decibels:
    """See `_Hinge`; of a damage above 0."""

    def needed(self, goal_B: Tensor, confidence: float) -> Tensor:
        return goal_B.double() * 10 ** (confidence / 10)

    def missing(self, needed: float, score: float) -> float:
        return max(0.0, 10 * math.log10(needed / max(score, NOTHING)))

    def weight(self, const_B: Tensor, loss_B: Tensor) -> Tensor:
        return const_B * 10 / math.log(10) / loss_B.clamp(min=NOTHING)

    def flat(self, loss_B: Tensor) -> Tensor:
        return loss_B < NOTHING


class _Logits:
    """See `_Hinge`; of a margin, the largest other logit minus the true one."""

    def needed(self, goal_B: Tensor, confidence: float) -> Tensor:
        return goal_B.double() + confidence

    def missing(self, needed: float, score: float) -> float:
        return max(0.0, needed - score)

    def weight(self, const_B: Tensor, loss_B: Tensor) -> Tensor:
        return const_B

    def flat(self, loss_B: Tensor) -> Tensor:
        return torch.zeros_like(loss_B, dtype=torch.bool)


class _Descent:
    """One Adam descent with fixed c per image.

    Every image is a parameter of its own: tanh and Adam's fused steps round differently at the ends
    of a tensor, so that in one tensor for all an image's bits would depend on its place.
    """

    def __init__(self, attack: CarliniWagnerL2, target: GradientTarget, problem: Problem, search: _Search) -> None:
        self.attack, self.target, self.problem, self.search = attack, target, problem, search
        self.x = problem.x_BCHW
        self.rows = [torch.atanh((2 * x_CHW - 1) * INSIDE).requires_grad_(True) for x_CHW in self.x]
        self.adam = torch.optim.Adam(self.rows, lr=attack.rate)
        classifies = target.objective.task == "classification"
        self.hinge: _Hinge = _Logits() if classifies else _Decibels()
        self.loss = Margin().loss if classifies else target.objective.loss
        self.needed_B = self.hinge.needed(problem.goal_B, attack.confidence)
        self.active_B = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        self.succeeded_B = torch.zeros_like(self.active_B)
        self.checked_B = torch.full_like(search.const_B, math.inf)

    def run(self, turn: int) -> Tensor:
        """Descend; returns which images succeeded at any iterate."""
        every = max(1, self.attack.iterations // 10)
        for iteration in range(self.attack.iterations):
            objective_B = self._step(turn * self.attack.iterations + iteration)
            if self.attack.abort_early and iteration % every == 0:
                self.active_B &= objective_B < self.checked_B * IMPROVEMENT
                self.checked_B = objective_B
                if not bool(self.active_B.any()):
                    break
        return self.succeeded_B

    def _step(self, step: int) -> Tensor:
        """Evaluate the present iterate, keep it, and move on; returns the minimised value per image."""
        inside = (torch.stack([torch.tanh(w_CHW.detach()) for w_CHW in self.rows]) + 1) / 2
        stored = self.attack.threat.store(inside, self.x)
        found = self.target.gradient(stored, step, loss=self.loss, active_B=self.active_B)
        l2_B, score_B = l2_norm(stored - self.x), found.score_B.double()
        reached_B = score_B >= self.needed_B
        success_B = reached_B & self.active_B
        resting_score_B = torch.where(self.active_B, score_B, torch.full_like(score_B, -math.inf))
        self.search.offer(stored, l2_B, resting_score_B, success_B)
        self.succeeded_B = self.succeeded_B | success_B
        self._move(inside, found, reached_B, step)
        return l2_B.square() + self.search.const_B * self._shortfall(score_B)

    def _shortfall(self, score_B: Tensor) -> Tensor:
        """What the reported scores lack; one by one, as a vector's log10 has two roundings too."""
        pairs = zip(self.needed_B.tolist(), score_B.tolist(), strict=True)
        missing = [self.hinge.missing(needed, score) for needed, score in pairs]
        return torch.tensor(missing, dtype=torch.float64, device=score_B.device)

    def _move(self, inside: Tensor, found: Gradient, reached_B: Tensor, step: int) -> None:
        """One Adam step of the images that are active; in dB the gradient of f is -10 / (ln 10 loss) grad loss."""
        damage = torch.nan_to_num(found.gradient_BCHW, nan=0.0, posinf=0.0, neginf=0.0)
        loss_B = found.loss_B.double()
        lost_B = ~reached_B & (self.hinge.flat(loss_B) | (damage.flatten(1).abs().amax(dim=1) == 0))
        weight_B = self.hinge.weight(self.search.const_B, loss_B)
        weight_B = torch.where(reached_B | lost_B, torch.zeros_like(weight_B), weight_B)
        slope = 2 * (inside - self.x) - weight_B.to(damage.dtype)[:, None, None, None] * damage
        slope = slope * 2 * inside * (1 - inside)
        for w_CHW, slope_CHW, active in zip(self.rows, slope, self.active_B.tolist(), strict=True):
            w_CHW.grad = slope_CHW if active else None
        self.adam.step()
        self._kick(lost_B & self.active_B, step)

    def _kick(self, lost_B: Tensor, step: int) -> None:
        """Move images that no gradient leads away by keyed noise of the size of a step.

        The untouched image is a stationary point when outputs are compared with the victim's own
        clean output, and the descent starts there.
        """
        tape = self.problem.tape.at(step=step)
        for b in lost_B.nonzero().flatten().tolist():
            generator = replace(tape, image_ids=(tape.image_ids[b],)).generators(self.attack.identity())
            with torch.no_grad():
                self.rows[b] += self.attack.rate * normal_like(generator, self.rows[b][None])[0]
