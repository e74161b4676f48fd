"""Bandits with time and data priors (Ilyas, Engstrom and Madry 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.machine import as_float32
from udc_ray.attacks.projections import radius, steepest
from udc_ray.attacks.query import QueryAttack, QueryProblem
from udc_ray.attacks.steps import ProbingMachine, finite
from udc_ray.attacks.threat import Norm
from udc_ray.params import Amount

TILES, PIXELS = 50, 299
"""The paper's data prior has 50 x 50 values a channel for 299 x 299 pixels. Their number a side falls with the root of
the pixels a side (16 for 32); in proportion (5 for 32) they would be too coarse for a classifier of such images."""
IMAGE_SHARE: dict[Norm, float] = {"linf": 5, "l2": 10}
"""Step of the iterate as a share of eps: 0.01 at linf 0.05, 0.5 at l2 5."""
ONLINE: dict[Norm, float] = {"linf": 100.0, "l2": 0.1}
EXPLORATION: dict[Norm, float] = {"linf": 1.0, "l2": 0.01}
PROBE: dict[Norm, float] = {"linf": 0.1, "l2": 0.01}


class Bandits(QueryAttack):
    """Bandits-TD (algorithms 1 to 3 of the paper): the gradient is a prior that every step's two probes improve.

    The prior has one value for each tile of each channel, and is carried from step to step: by exponentiated gradients
    for linf, by gradient ascent for l2. A step asks two probes on opposite sides of the prior, and now and then
    (`check`) the iterate itself. The rates are for scores whose gradient is about 1 in size, so that differences
    are measured by their own root mean square.
    """

    name: ClassVar[str] = "bandits"

    rate: Amount | None = Field(default=None, gt=0)
    """Step of the iterate: largest absolute value for linf (eps / 5 unless given), Euclidean norm for l2 (eps / 10)."""
    online_rate: Amount | None = Field(default=None, gt=0)
    """Rate at which the prior learns: 100 for linf and 0.1 for l2 unless given."""
    exploration: Amount | None = Field(default=None, gt=0)
    """Size of the random direction beside the prior: 1 for linf and 0.01 for l2 unless given."""
    probe: Amount | None = Field(default=None, gt=0)
    """Euclidean distance of the probes from the iterate: 0.1 for linf and 0.01 for l2 unless given; at storage depth 8
    at least a root mean square of a grey level."""
    tiles: int | None = Field(default=None, ge=1)
    """Values of the prior along the shorter side; 50 of 299 pixels unless given, 16 of 32."""
    check: int = Field(default=10, ge=0)
    """Steps from one query of the iterate itself to the next; 0: never. The probes, which lie beside it, are candidates
    and checks for success of their own, so that the two of a step cost what the paper counts."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the prior."""
        short = min(height, width)
        wanted = TILES * math.sqrt(short / PIXELS) if self.tiles is None else self.tiles
        share = min(wanted / short, 1.0)
        return max(round(height * share), 1), max(round(width * share), 1)

    def start(self, problem: QueryProblem) -> BanditsMachine:
        """Begin on one image."""
        return BanditsMachine(self, problem)


class BanditsMachine(ProbingMachine):
    """Bandits on one image."""

    SAVED = (*ProbingMachine.SAVED, "prior", "squares")

    def __init__(self, attack: Bandits, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack = attack
        channels, height, width = problem.x_CHW.shape
        rows, columns = attack.grid(height, width)
        self.prior = np.zeros((channels, rows, columns))
        """linf: inverse hyperbolic tangent of the prior of the paper, which then never sticks at -1 or 1."""
        self.squares = 0.0
        """Sum of the squared differences of the probes so far."""
        self._up = np.ix_(np.arange(channels), np.arange(height) * rows // height, np.arange(width) * columns // width)
        norm = attack.norm
        self.exploration = attack.exploration or EXPLORATION[norm]
        self.online_rate = attack.online_rate or ONLINE[norm]
        self.rate = attack.rate or radius(attack.threat) / IMAGE_SHARE[norm]
        self.probe = attack.probe or PROBE[norm]
        if attack.depth == 8:
            self.probe = max(self.probe, math.sqrt(problem.x_CHW.numel()) / 255)

    def estimate(self) -> np.ndarray:
        """The prior of the paper, channels x rows x columns."""
        return np.tanh(self.prior) if self.attack.norm == "linf" else self.prior

    def enlarged(self, prior: np.ndarray) -> np.ndarray:
        """The nearest value of a prior at every pixel, C x H x W."""
        pixels: np.ndarray = prior[self._up]
        return pixels

    def exploring(self) -> np.ndarray:
        """The random direction of this step: normal, of variance one over the number of values, times its size."""
        noise = self.generator(2 * self.step).standard_normal(self.prior.shape)
        return noise * (self.exploration / math.sqrt(noise.size))

    def checks(self) -> int:
        """Queries of the iterate in this step."""
        return int(self.attack.check > 0 and self.step % self.attack.check == 0)

    def size(self) -> int:
        return self.checks() + 2

    def candidate(self, place: int) -> Tensor:
        place -= self.checks()
        if place < 0:
            return self.stored()
        sides = [self.enlarged(self.estimate() + side * self.exploring()) for side in (1, -1)]
        sides = [pixels * (self.probe / np.linalg.norm(pixels)) for pixels in sides]
        centre_CHW = self.interior(max(float(np.abs(pixels).max()) for pixels in sides), self.probe)
        return self.displaced(centre_CHW, torch.from_numpy(sides[place]), self.dither())

    def dither(self) -> Tensor:
        """The same uniform noise for both sides of a step, so that what they have in common is rounded alike."""
        if self.threat.depth == "float":
            return torch.zeros(())
        return torch.from_numpy(self.generator(2 * self.step + 1).random(tuple(self.x_CHW.shape)))

    def finish(self, scores: Sequence[float]) -> None:
        rise = finite(scores[-2] - scores[-1])
        self.squares += rise * rise
        usual = math.sqrt(self.squares / (self.step + 1))
        # Algorithm 2: the derivative along the exploring direction, times that direction, of a score whose gradient
        # has norm 1: without a prior, its probes differ by 2 probe / sqrt(values) in the root mean square.
        slope = (rise / usual if usual > 0 else 0.0) * 2 / (math.sqrt(self.prior.size) * self.exploration)
        # Exponentiated gradients, p e^(rate g) / (p e^(rate g) + (1 - p) e^(-rate g)) with p = (1 + v) / 2, add to the
        # inverse hyperbolic tangent of v.
        self.prior = self.prior + self.online_rate * slope * self.exploring()
        ahead_CHW = as_float32(self.enlarged(self.estimate()))
        self.move(steepest(ahead_CHW[None], self.attack.norm)[0], self.rate)
