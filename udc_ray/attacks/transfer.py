"""Transfer: an image made on a surrogate model, then a Square attack that starts from it.

MI (momentum, Dong et al. 2018), DI (random resizing, Xie et al. 2019), TI (smoothed gradients, Dong et
al. 2019) and SI (darker copies, Lin et al. 2020) together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from udc_ray.attacks.machine import as_float32
from udc_ray.attacks.query import QueryProblem
from udc_ray.attacks.square import LinfSquare, Square
from udc_ray.attacks.threat import Threat
from udc_ray.errors import SpecError, WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.location import place
from udc_ray.models.base import Restorer
from udc_ray.models.loading import load
from udc_ray.params import Amount
from udc_ray.tape import Tape

FULL_SIDE = 100
"""Sides of an image from which on the TI kernel has its full size; below it shrinks in proportion."""
LARGEST = 1.1
"""Largest factor of DI's resizing."""


class Transfer(Square):
    """MI+DI+TI+SI on a surrogate, linf, then Square from what it made.

    The surrogate is the attacker's own: nothing that is asked of it is a query. The image it gives is
    the first charged query, and Square goes on from there with the budget that is left; a budget of 1 is
    the plain transfer attack. Against a surrogate that restores, the loss is the MSE to the surrogate's own
    output on the untouched image, under the same scaling and resizing; against one that classifies, the
    cross-entropy to the surrogate's own prediction. The literature uses eps 16/255 on classifiers.
    """

    name: ClassVar[str] = "transfer"

    # A path says nothing about the content; `weight_files` does.
    not_identity: ClassVar[frozenset[str]] = Square.not_identity | {"weights"}

    norm: Literal["linf"] = "linf"
    surrogate: str | dict[str, Any] = "default"
    """The surrogate as a model entry: a name, a weights file, package.module:factory, or a mapping."""
    weights: str | None = None
    """Its weights file."""
    steps: int = Field(default=10, ge=1)
    """Steps on the surrogate, of size eps / steps."""
    decay: Amount = Field(default=1.0, ge=0)
    """Momentum: share of the earlier gradients that is kept."""
    scales: int = Field(default=5, ge=1)
    """SI: copies x / 2^i whose gradients are averaged."""
    diversity: Amount = Field(default=0.5, ge=0, le=1)
    """DI: probability that a copy is resized."""
    kernel: int = Field(default=15, ge=1)
    """TI: side of the Gaussian kernel that smooths gradients; 1 leaves them alone."""

    @property
    def passes(self) -> int:
        """The queries, and three passes of the surrogate for every gradient."""
        return self.restarts * (self.budget + 3 * self.steps * self.scales)

    def weight_files(self) -> dict[str, str]:
        """Names and paths of the files whose hashes belong to the fingerprint."""
        return {} if self.weights is None else {"weights": self.weights}

    def weight_hashes(self) -> dict[str, str]:
        """sha256 of `weight_files`, by name."""
        return {name: file_sha256(place(path, WeightsError)) for name, path in self.weight_files().items()}

    def load_surrogate(self) -> Restorer:
        """The surrogate, loaded once a process."""
        return _loaded(json.dumps(self.surrogate, sort_keys=True), self.weights)

    def start(self, problem: QueryProblem) -> TransferMachine:
        """Begin on one image."""
        return TransferMachine(self, problem)


@lru_cache(maxsize=2)
def _loaded(surrogate: str, weights: str | None) -> Restorer:
    return load(json.loads(surrogate), weights)


class TransferMachine(LinfSquare):
    """Square whose first image comes from the surrogate."""

    STARTS: ClassVar[int] = 1

    def __init__(self, attack: Transfer, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.transfer = attack

    def beginning(self, rng: np.random.Generator) -> Tensor:
        """The transferred image; made where it is asked, as its randomness is keyed by the tape."""
        made = craft(self.transfer.load_surrogate(), self.transfer, self.x_CHW, self.tape)
        return self.project(made)


def craft(surrogate: Restorer, attack: Transfer, x_CHW: Tensor, tape: Tape) -> Tensor:
    """The image that the surrogate's gradients lead to.

    Args:
        surrogate: a restorer or a classifier.
        attack: its settings.
        x_CHW: untouched image in [0, 1].
        tape: noise of exactly this image.

    Returns:
        C x H x W inside ball and box, not rounded.
    """
    x, threat = x_CHW[None], Threat(norm="linf", eps=attack.eps, depth="float")
    loss = _Loss(surrogate, x)
    stride = (attack.eps or 0.0) / attack.steps
    iterate, momentum = x, torch.zeros_like(x)
    if loss.restores:  # the untouched image is a stationary point of the distance from its own output
        start = _generator(attack, tape, attack.steps).uniform(-stride, stride, tuple(x.shape))
        iterate = threat.project(x + as_float32(start).to(x.device), x)
    for step in range(attack.steps):
        rng = _generator(attack, tape, step)
        views = [View.draw(rng, x_CHW.shape[1:], 0.5**scale, attack.diversity) for scale in range(attack.scales)]
        gradient = smoothed(sum((loss.gradient(iterate, view) for view in views), torch.zeros_like(x)), attack.kernel)
        size = gradient.abs().mean()
        momentum = attack.decay * momentum + (gradient / size if size > 0 else gradient)
        iterate = threat.project(iterate + stride * momentum.sign(), x)
    return iterate[0]


@dataclass(frozen=True, kw_only=True)
class View:
    """How the surrogate is shown an image: darker (SI), and perhaps resized with a black margin (DI).

    Attributes:
        scale: factor of the values.
        size: rows and columns after resizing; None to leave the size alone.
        corner: rows and columns of margin above and left.
        canvas: rows and columns with the margin; the result is resized back to the image's own size.
    """

    scale: float
    size: tuple[int, int] | None
    corner: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def draw(cls, rng: np.random.Generator, image: Sequence[int], scale: float, probability: float) -> View:
        """A view of an image of the given rows and columns, resized with a probability."""
        canvas = (int(image[0] * LARGEST), int(image[1] * LARGEST))
        factor, resized = rng.uniform(1, LARGEST), rng.random() < probability
        size = (min(int(image[0] * factor), canvas[0]), min(int(image[1] * factor), canvas[1]))
        corner = (int(rng.integers(0, canvas[0] - size[0] + 1)), int(rng.integers(0, canvas[1] - size[1] + 1)))
        return cls(scale=scale, size=size if resized else None, corner=corner, canvas=canvas)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """The image as the surrogate sees it, of the shape it had."""
        shown = self.scale * x_BCHW
        if self.size is None:
            return shown
        small = F.interpolate(shown, size=self.size, mode="bilinear", align_corners=False)
        below, right = (c - s - k for c, s, k in zip(self.canvas, self.size, self.corner, strict=True))
        framed = F.pad(small, (self.corner[1], right, self.corner[0], below))
        return F.interpolate(framed, size=tuple(x_BCHW.shape[2:]), mode="bilinear", align_corners=False)


class _Loss:
    """The damage on the surrogate, and its gradient under a view."""

    def __init__(self, surrogate: Restorer, x_BCHW: Tensor) -> None:
        self.surrogate, self.x_BCHW = surrogate, x_BCHW
        with torch.no_grad():
            try:
                output = surrogate(x_BCHW)
            except Exception as error:  # whatever a user's own model raises is theirs to see, as a message
                raise SpecError(
                    f"the surrogate fails on an image of {tuple(x_BCHW.shape)}: {type(error).__name__}: {error}",
                    "it wants another number of channels or another size",
                    "choose a surrogate that takes the images of this run",
                ) from error
        self.restores = surrogate.descriptor.task == "restoration"
        self.label_B = torch.zeros(0) if self.restores else output.argmax(dim=1)

    def gradient(self, iterate_BCHW: Tensor, view: View) -> Tensor:
        """Gradient with respect to the iterate; values that are not finite count as zero."""
        with torch.no_grad():
            reference = self.surrogate(view(self.x_BCHW)) if self.restores else None
        with torch.enable_grad():
            leaf = iterate_BCHW.detach().clone().requires_grad_(True)
            output = self.surrogate(view(leaf))
            loss = F.mse_loss(output, reference) if reference is not None else F.cross_entropy(output, self.label_B)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def smoothed(gradient_BCHW: Tensor, kernel: int) -> Tensor:
    """TI: the gradient under a Gaussian window of three standard deviations to each side."""
    channels, height, width = gradient_BCHW.shape[1:]
    side = max(1, round(kernel * min(1.0, min(height, width) / FULL_SIDE)))
    side -= 1 - side % 2
    weights = torch.exp(-0.5 * torch.linspace(-3, 3, side, dtype=torch.float64).square())
    window = (weights / weights.sum()).to(gradient_BCHW)
    rows, columns = (window.reshape(1, 1, *shape).expand(channels, 1, *shape) for shape in ((side, 1), (1, side)))
    down = F.conv2d(gradient_BCHW, rows, padding=(side // 2, 0), groups=channels)
    return F.conv2d(down, columns, padding=(0, side // 2), groups=channels)


def _generator(attack: Transfer, tape: Tape, step: int) -> np.random.Generator:
    return tape.at(step=step).generators(f"{attack.identity()}/surrogate")[0]
