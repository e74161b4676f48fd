"""Machines whose step needs several answers, and points at which a difference of scores is not distorted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from udc_ray.attacks.machine import QueryMachine
from udc_ray.attacks.projections import radius, unit_l2
from udc_ray.attacks.query import Answer, Ask, QueryAttack, QueryProblem

AT_ONCE = 2**22
"""Values (C*H*W over all candidates) that one ask holds at most, 16 MiB; a single candidate may hold more."""


class StepMachine(QueryMachine):
    """A machine that learns once all candidates of a step are answered.

    The candidates of a step depend on what was saved when it began, and on their place in it, so that a
    step may be asked in parts: a budget that ends in its middle loses nothing when it is raised.
    """

    SAVED = (*QueryMachine.SAVED, "step", "heard")

    def __init__(self, attack: QueryAttack, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.step = 0
        self.heard: list[float] = []
        """Answers of the present step so far."""

    def size(self) -> int:
        """Candidates of the present step."""
        raise NotImplementedError("a step has a size")

    def candidate(self, place: int) -> Tensor:
        """Candidate of the present step, C x H x W at the storage depth, counted from 0."""
        raise NotImplementedError("a step has candidates")

    def finish(self, scores: Sequence[float]) -> None:
        """What follows from all answers of the step."""
        raise NotImplementedError("a step leads to the next")

    def together(self, place: int) -> int:
        """Candidates, from a place on, that may be asked at once."""
        return self.size() - place

    def propose(self) -> Ask:
        place = len(self.heard)
        count = min(self.together(place), self.left, max(AT_ONCE // self.x_CHW.numel(), 1))
        return Ask(x_KCHW=torch.stack([self.candidate(p) for p in range(place, place + count)]))

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        self.heard += [float(answer) for answer in answers]
        if len(self.heard) == self.size():
            scores, self.heard = self.heard, []
            self.finish(scores)
            self.step += 1


class ProbingMachine(StepMachine):
    """Follows the differences of the score around an iterate; place 0 of a step is the iterate itself.

    The iterate lives in ball and box without rounding; what is asked of it is stored at the depth.
    """

    SAVED = (*StepMachine.SAVED, "iterate_CHW")

    def __init__(self, attack: QueryAttack, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.eps = radius(attack.threat)
        self.iterate_CHW = problem.x_CHW
        self._stored = (problem.x_CHW, self.threat.store(problem.x_CHW[None], problem.x_CHW[None])[0])

    def together(self, place: int) -> int:
        """The iterate goes alone where its success would make the rest of the step needless."""
        return 1 if place == 0 and self._attack.stop == "success" else super().together(place)

    def stored(self) -> Tensor:
        """The iterate at the storage depth."""
        if self._stored[0] is not self.iterate_CHW:
            self._stored = (self.iterate_CHW, self.threat.store(self.iterate_CHW[None], self.x_CHW[None])[0])
        return self._stored[1]

    def interior(self, largest: float, length: float) -> Tensor:
        """The point nearest to the iterate around which displacements are not clipped, at the storage depth.

        Clipping would shift all probes of an iterate on the border the same way, inwards, and that shift
        outweighs the differences that an estimate is made of. Half of a ball that is smaller than
        the displacements remains.

        Args:
            largest: largest absolute value of a displacement.
            length: its Euclidean norm.
        """
        room = min(largest, 0.25)
        delta = self.iterate_CHW.clamp(room, 1 - room) - self.x_CHW
        if self.threat.norm == "linf":
            margin = max(self.eps - largest, self.eps / 2)
            delta = delta.clamp(-margin, margin)
        else:
            margin = max(self.eps - length, self.eps / 2)
            size = float(torch.linalg.vector_norm(delta.double()))
            delta = delta * min(1.0, margin / max(size, 1e-12))
        return self.project(self.x_CHW + delta)

    def displaced(self, centre_CHW: Tensor, displacement_CHW: Tensor, dither: float | Tensor = 0.5) -> Tensor:
        """A candidate beside a stored point; at depth 8 the displacement is rounded, not the sum.

        The rounding towards the clean image that the storage does would pull all candidates the same way.

        Args:
            centre_CHW: a point at the storage depth.
            displacement_CHW: what is added.
            dither: 0.5 rounds to the nearest grey level; uniform noise in [0, 1) keeps the mean of
                displacements that are smaller than one.
        """
        if self.threat.depth == 8:
            displacement_CHW = torch.floor(displacement_CHW * 255 + dither) / 255
        return self.project(centre_CHW + displacement_CHW.to(centre_CHW))

    def move(self, direction_CHW: Tensor, rate: float) -> None:
        """Step of the iterate, back into ball and box."""
        moved = self.iterate_CHW + rate * direction_CHW.to(self.iterate_CHW)
        self.iterate_CHW = self.threat.continuous.project(moved[None], self.x_CHW[None])[0]


def finite(value: float) -> float:
    """The value, or zero where it is not a finite number."""
    return value if abs(value) < float("inf") else 0.0


def on_sphere(noise_CHW: Tensor) -> Tensor:
    """Normal noise scaled to a root mean square of 1: uniform on the sphere, float64."""
    unit: Tensor = unit_l2(noise_CHW.double()[None])[0] * noise_CHW.numel() ** 0.5
    return unit
