"""A low-frequency attack: a perturbation of the slowest waves, bounded by how different the image looks.

Purifiers remove what changes fast; what changes slowly passes them, and no Lp ball says how visible it is. So the
perturbation lives in the lowest bands of a discrete cosine transform and is bounded by a distance of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from udc_ray.attacks.base import AttackResult, Best, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.diagnostics import Observer
from udc_ray.attacks.distances import DISTANCES, DistanceName
from udc_ray.attacks.projections import unit_l2
from udc_ray.params import Amount
from udc_ray.tape import normal_like

TAUS: dict[str, float] = {"ssim": 0.05, "stlpips": 0.05, "l2": 5.0}
"""Bounds of the distances unless given."""
SLACK = 1e-5
"""Share of tau that an image keeps off it: the distance is measured again elsewhere, with other roundings."""
HALVINGS = 12
"""Bisections of the way back to tau."""
FACTOR = 4.0
"""lambda grows or shrinks by it while only one side of it is known."""


class LowFrequency(GradientAttack):
    """The most damage by a perturbation in the lowest DCT bands whose image stays within a distance tau.

    Adam ascends loss - lambda max(0, d - tau) over the coefficients; lambda is searched per image, over a fixed number
    of rounds. Only images with d(x, x') <= tau count, measured as they are stored, and the best of them by
    score is returned: the untouched image where none does harm. It is no Lp threat and has no eps; it is named by its
    distance, and the noise that it is compared with has the L2 norm that it reached.
    """

    name: ClassVar[str] = "low-frequency"

    norm: Literal["l2"] = "l2"
    eps: None = None
    distance: DistanceName = "ssim"
    """``ssim`` (1 - SSIM), ``stlpips``, or ``l2`` (Euclidean, of the clamped and stored perturbation)."""
    tau: Amount = Field(default=TAUS["ssim"], gt=0)
    """Largest distance from the untouched image: 0.05, and 5.0 for l2, unless given."""
    bands: Amount = Field(default=1 / 8, gt=0, le=1)
    """Share of the rows and of the columns of the DCT that are perturbed; at least one of each."""
    rounds: int = Field(default=5, ge=1)
    """Values of lambda that are tried."""
    iterations: int = Field(default=40, ge=1)
    """Adam steps a round."""
    rate: Amount = Field(default=2 / 255, gt=0)
    """Size of an Adam step: root mean square over the pixels."""

    @model_validator(mode="before")
    @classmethod
    def _fill_eps(cls, values: Any) -> Any:
        """In place of the radius, the bound of the distance."""
        if not isinstance(values, dict):
            return values
        tau = TAUS.get(values.get("distance", "ssim"))
        return ({} if tau is None else {"tau": tau}) | {k: v for k, v in values.items() if v is not None}

    @field_validator("eps", mode="before")
    @classmethod
    def _refuse_eps(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("it is bounded by a distance: give tau")
        return value

    @property
    def bound(self) -> str:
        """What bounds it, for people."""
        return f"{self.distance}<={self.tau:g}"

    @property
    def passes(self) -> int:
        """Three a step, one for the untouched image and for each round's last one."""
        return self.restarts * (self.rounds * (3 * self.iterations + 1) + 1) * self.eot

    def weight_hashes(self) -> dict[str, str]:
        return DISTANCES[self.distance].weight_hashes()

    def check_shape(self, channels: int, height: int, width: int) -> None:
        """Refuse images that the distance is not defined for with a DataError."""
        DISTANCES[self.distance].check(channels, height, width)

    def reached(self, x_adv_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Distances d(x, x') of stored images, B values in float64; at most tau for all that it returns."""
        return DISTANCES[self.distance].values(x_adv_BCHW, x_BCHW)

    def perturb(self, target: GradientTarget, problem: Problem) -> AttackResult:
        """Search lambda per image; every round starts where the best image so far was."""
        self.check_shape(*problem.x_BCHW.shape[1:])
        search = _Search(self, target, problem)
        for turn in range(self.rounds):
            last_B = search.run(turn)
        best = search.best
        return AttackResult(
            x_adv_BCHW=best.x_BCHW,
            score_B=best.score_B,
            queries=list(target.queries),
            grad_evals=list(target.grad_evals),
            stop_reasons=["iterations"] * len(best.x_BCHW),
            diagnostics=search.observer.finish(best.score_B, last_B),
        )


def dct_rows(size: int, count: int) -> Tensor:
    """The first rows of the orthonormal DCT-II matrix (Ahmed et al. 1974), count x size, float64.

    Row k at i is sqrt(2 / size) cos(pi (2 i + 1) k / (2 size)), and sqrt(1 / size) for k = 0.
    """
    place, wave = torch.arange(size, dtype=torch.float64), torch.arange(count, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * place + 1) * wave[:, None] / (2 * size)) * math.sqrt(2 / size)
    rows[0] = math.sqrt(1 / size)
    return rows


@dataclass(frozen=True)
class Bands:
    """The lowest bands of the two-dimensional DCT of every channel: coefficients C x h x w, images C x H x W."""

    rows_hH: Tensor
    rows_wW: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Coefficients a channel."""
        return len(self.rows_hH), len(self.rows_wW)

    @classmethod
    def of(cls, x_BCHW: Tensor, share: float) -> Bands:
        """The bands of images of this size: a share of the rows and columns, rounded up."""
        made = [dct_rows(size, math.ceil(share * size)).to(x_BCHW.device) for size in x_BCHW.shape[2:]]
        return cls(*made)

    def image(self, z_Chw: Tensor) -> Tensor:
        """The inverse transform."""
        return self.rows_hH.T @ z_Chw @ self.rows_wW

    def coefficients(self, image_CHW: Tensor) -> Tensor:
        """The transform; also the gradient with respect to the coefficients from one with respect to the image."""
        return self.rows_hH @ image_CHW.double() @ self.rows_wW.T


class _Search:
    """What is kept over the rounds, per image.

    Every image is transformed on its own, and is a parameter of its own to Adam: a matrix product or a fused step
    may round differently with the place in a batch.
    """

    def __init__(self, attack: LowFrequency, target: GradientTarget, problem: Problem) -> None:
        self.attack, self.target, self.x = attack, target, problem.x_BCHW
        self.distance, self.tau = DISTANCES[attack.distance], attack.tau * (1 - SLACK)
        self.bands = Bands.of(self.x, attack.bands)
        zeros_B = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        self.weight_B, self.low_B, self.high_B = zeros_B, zeros_B, zeros_B + math.inf
        self.best, self.observer = Best(self.x, target.score(self.x)), Observer()
        self.z = self._random(problem)

    def _random(self, problem: Problem) -> list[Tensor]:
        """Keyed starts, as large as a step: the untouched image may be a stationary point."""
        like = torch.empty(len(self.x), self.x.shape[1], *self.bands.shape, dtype=torch.float64, device=self.x.device)
        noise = unit_l2(normal_like(problem.tape.generators(self.attack.identity()), like))
        return list(self.attack.rate * math.sqrt(self.x[0].numel()) * noise)

    def run(self, turn: int) -> Tensor:
        """One round of Adam at one lambda, from where the best image was; returns the scores at its end."""
        leaves = [z_Chw.clone() for z_Chw in self.z]
        # every coefficient moves by the rate, and only a few of them make up the image
        share = math.prod(self.bands.shape) / math.prod(self.x.shape[2:])
        adam = torch.optim.Adam(leaves, lr=self.attack.rate / math.sqrt(share), maximize=True)
        count = self.attack.iterations
        held_B = torch.zeros_like(self.weight_B)
        for iteration in range(count):
            inside_B, slopes = self._slopes(leaves, turn * count + iteration)
            held_B = held_B + inside_B if iteration >= count // 2 else held_B
            for leaf, slope_Chw in zip(leaves, slopes, strict=True):
                leaf.grad = slope_Chw
            adam.step()
        self._narrow(held_B >= (count - count // 2) / 2)
        return self._pull_back(leaves)

    def _slopes(self, z: list[Tensor], step: int) -> tuple[Tensor, list[Tensor]]:
        """Evaluate iterates, keep those that may count; who is inside, and the gradients of what is maximised."""
        stored, free_BCHW = self._images(z)
        found = self.target.gradient(stored, step)
        distance_B, away_BCHW = self.distance.slope(stored, self.x)
        inside_B = distance_B <= self.tau
        score_B = torch.where(inside_B, found.score_B.double(), -math.inf)
        loss_B = torch.where(inside_B, found.loss_B.double(), -math.inf)
        self.observer.observe(step, loss_B, score_B, found.gradient_BCHW)
        self._offer(z, stored, score_B)
        harm = self._coefficients(found.gradient_BCHW * free_BCHW)
        away = self._coefficients(away_BCHW * free_BCHW)
        harm_B, away_B = (torch.stack([row.norm() for row in rows]) for rows in (harm, away))
        first_B = (self.weight_B == 0) & ~inside_B & (away_B > 0)
        self.weight_B = torch.where(first_B, harm_B / away_B, self.weight_B)
        pull_B = torch.where(inside_B, 0.0, self.weight_B)
        return inside_B, [h - pull * a for h, pull, a in zip(harm, pull_B, away, strict=True)]

    def _images(self, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Images of coefficients as they are stored, and where the box leaves their values free."""
        moved = self.x.double() + torch.stack([self.bands.image(z_Chw) for z_Chw in z])
        stored = self.attack.threat.store(moved.clamp(0, 1).to(self.x.dtype), self.x)
        return stored, (moved >= 0) & (moved <= 1)

    def _coefficients(self, gradient_BCHW: Tensor) -> list[Tensor]:
        finite = torch.nan_to_num(gradient_BCHW, nan=0.0, posinf=0.0, neginf=0.0)
        return [self.bands.coefficients(row) for row in finite]

    def _offer(self, z: list[Tensor], stored: Tensor, score_B: Tensor) -> None:
        better_B = self.best.offer(stored, score_B).tolist()
        self.z = [new.clone() if better else old for new, old, better in zip(z, self.z, better_B, strict=True)]

    def _pull_back(self, z: list[Tensor]) -> Tensor:
        """Shrink the last perturbations until their images are inside; keeps them, and returns their scores."""
        low_B, high_B = torch.zeros_like(self.weight_B), torch.ones_like(self.weight_B)
        share_B = high_B
        for _ in range(HALVINGS):
            stored, _ = self._images([share * row for share, row in zip(share_B, z, strict=True)])
            inside_B = self.distance.values(stored, self.x) <= self.tau
            low_B, high_B = torch.where(inside_B, share_B, low_B), torch.where(inside_B, high_B, share_B)
            share_B = torch.where(low_B == 1, 1.0, (low_B + high_B) / 2)
        shrunk = [low * row for low, row in zip(low_B, z, strict=True)]  # a share that was measured, or nothing
        stored, _ = self._images(shrunk)
        score_B = self.target.score(stored).double()
        self._offer(shrunk, stored, score_B)
        return score_B

    def _narrow(self, held_B: Tensor) -> None:
        """The next lambda: between the last that was too small and the last that held, by their ratio."""
        known_B = self.weight_B > 0
        self.low_B = torch.where(known_B & ~held_B, self.weight_B, self.low_B)
        self.high_B = torch.where(known_B & held_B, self.weight_B, self.high_B)
        both_B = (self.low_B > 0) & (self.high_B < math.inf)
        alone_B = torch.where(held_B, self.weight_B / FACTOR, self.weight_B * FACTOR)
        self.weight_B = torch.where(both_B, (self.low_B * self.high_B).sqrt(), alone_B)
