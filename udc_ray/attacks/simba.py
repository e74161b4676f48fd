"""SimBA: one basis image at a time, added or subtracted, kept if the damage grows (Guo et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.machine import HillClimb, as_float32
from udc_ray.attacks.projections import radius
from udc_ray.attacks.query import QueryAttack, QueryProblem
from udc_ray.params import Amount

PAPER_SHARE = 8
"""The paper keeps 28 of 224 frequencies a side: an eighth."""


class SimBA(QueryAttack):
    """Simple black-box attack.

    The first query is the untouched image. Then, for the coordinates in keyed random order, the
    basis image is added, and subtracted if that did not help. After a whole pass a new one begins,
    in another order; a pass that changed nothing ends the attack as ``converged``.
    """

    name: ClassVar[str] = "simba"

    basis: Literal["dct", "pixel"] = "dct"
    """Basis images: low frequencies of the cosine transform (one channel each), or single values."""
    freq_dims: int | None = Field(default=None, ge=1)
    """Frequencies a side that the dct basis uses; an eighth of each side unless given."""
    step: Amount | None = Field(default=None, gt=0)
    """linf: largest absolute value of a basis image, eps unless given. l2: its Euclidean norm, eps / 25
    unless given (the paper's 0.2 at eps 5)."""

    @property
    def stride(self) -> float:
        """Size of a basis image."""
        if self.step is not None:
            return self.step
        return radius(self.threat) / (1 if self.norm == "linf" else 25)

    def basis_size(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Number of channels, rows and columns of coordinates, for an image C x H x W."""
        channels, height, width = shape
        if self.basis == "pixel":
            return channels, height, width
        if self.freq_dims is not None:
            return channels, min(self.freq_dims, height), min(self.freq_dims, width)
        return channels, -(-height // PAPER_SHARE), -(-width // PAPER_SHARE)

    def start(self, problem: QueryProblem) -> SimBAMachine:
        """Begin on one image."""
        return SimBAMachine(self, problem)


class SimBAMachine(HillClimb):
    """SimBA on one image; `delta` is the sum of the accepted basis images, clipped to ball and box."""

    SAVED = (*HillClimb.SAVED, "turn", "sign", "last_accepted", "sum_CHW")

    def __init__(self, attack: SimBA, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.attack = attack
        self.size = attack.basis_size(tuple(problem.x_CHW.shape))
        self.count = int(np.prod(self.size))
        self.turn, self.sign = 0, 1
        """Coordinates finished so far, over all passes; sign that is tried next."""
        self.last_accepted = -1
        self.sum_CHW = problem.x_CHW
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def candidate(self) -> Tensor:
        if self.asked == 0:
            return self.x_CHW
        return self.threat.store(self._moved()[None], self.x_CHW[None])[0]

    def climb(self, better: bool) -> None:
        if self.asked == 1:
            return
        if better:
            self.sum_CHW, self.last_accepted = self._moved(), self.turn
        if better or self.sign < 0:
            self.turn, self.sign = self.turn + 1, 1
        else:
            self.sign = -1

    def exhausted(self) -> bool:
        """Whether the last whole pass, from its first coordinate on, changed nothing."""
        passes, within = divmod(self.turn, self.count)
        return passes > 0 and within == 0 and self.last_accepted < self.turn - self.count

    def _moved(self) -> Tensor:
        """The sum with the present basis image, before rounding."""
        candidate = self.sum_CHW + self.sign * self._basis_image()
        return self.threat.continuous.project(candidate[None], self.x_CHW[None])[0]

    def _basis_image(self) -> Tensor:
        passes, within = divmod(self.turn, self.count)
        if self._order[0] != passes:
            self._order = (passes, self.generator(passes).permutation(self.count))
        channel, row, column = np.unravel_index(self._order[1][within], self.size)
        image = np.zeros(tuple(self.x_CHW.shape))
        if self.attack.basis == "pixel":
            image[channel, row, column] = 1.0
        else:
            height, width = image.shape[1:]
            image[channel] = np.outer(cosine(int(row), height), cosine(int(column), width))
        size = np.abs(image).max() if self.attack.norm == "linf" else np.linalg.norm(image)
        return as_float32(image * (self.attack.stride / size)).to(self.x_CHW.device)


def cosine(frequency: int, length: int) -> np.ndarray:
    """Basis vector of the inverse cosine transform (type II), not scaled."""
    vector: np.ndarray = np.cos(np.pi * (2 * np.arange(length) + 1) * frequency / (2 * length))
    return vector
