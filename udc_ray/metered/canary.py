"""Canaries: clean images that a target is asked again and again, to see that it is still the same model."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from udc_ray.metered.failures import TargetDrift, TargetError

REPEATS = 3
"""Answers to each canary from which the noise of a random target is measured."""
TOLERANCE = 1.5
"""Times the noise between two answers of a random target that count as drift."""
LEAST = 0.5 / 255
"""Mean difference below which a target that calls itself random has not moved: half an 8-bit step."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What a target answered to one canary.

    Attributes:
        answers: K x ... float32: images C x H x W, or scores.
        sha256: of shape and values of the first answer.
        noise: mean absolute difference between two answers; 0 for a deterministic target.
    """

    answers: Floats
    sha256: str
    noise: float

    @classmethod
    def of(cls, answers: list[Floats]) -> Clean:
        """Summarise answers to one image."""
        noise = [_distance(a, b) for a, b in itertools.combinations(answers, 2)]
        return cls(answers=np.stack(answers), sha256=digest(answers[0]), noise=float(np.mean(noise)) if noise else 0.0)

    def distance(self, answer: Floats) -> float:
        """Mean absolute difference of an answer from these, over values and over these answers."""
        return float(np.mean([_distance(answer, before) for before in self.answers]))


class Canaries:
    """Clean answers at the start, and the comparison with them later on.

    Args:
        images: canary images by id, C x H x W, on the target's grid.
        ask: asks the target once, charged to the harness.
        random: whether two answers to one image may differ.
        every_s: seconds between two looks.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        images: Mapping[str, Tensor],
        ask: Callable[[Tensor], Tensor],
        *,
        random: bool = False,
        every_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._images, self._ask, self._random = dict(images), ask, random
        self._every_s, self._clock = every_s, clock
        self._clean: dict[str, Clean] = {}
        self._looked = -np.inf

    @property
    def cost_of_start(self) -> int:
        """Queries of `start`."""
        return len(self._images) * REPEATS if self._random else len(self._images) + min(1, len(self._images))

    @property
    def cost_of_check(self) -> int:
        """Queries of `check`, at most: a random target that seems to have moved is asked again."""
        return len(self._images) * (REPEATS if self._random else 1)

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return self._clock() - self._looked >= self._every_s

    @property
    def fingerprint(self) -> str:
        """One hash over the first clean answers, hexadecimal."""
        text = "".join(f"{image_id}:{clean.sha256}\n" for image_id, clean in sorted(self._clean.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def start(self) -> None:
        """Ask for the clean answers that later ones are compared with.

        Raises:
            TargetError: the target is random, and its entry says nothing of it.
        """
        for position, (image_id, x_CHW) in enumerate(self._images.items()):
            repeats = REPEATS if self._random else 2 if position == 0 else 1
            clean = Clean.of([self._answer(x_CHW) for _ in range(repeats)])
            if not self._random and clean.noise > 0:
                raise TargetError(
                    f"the target answered the image {image_id} twice, and differently: "
                    f"mean difference {_in_steps(clean.noise)}",
                    "it draws noise, or several different models share one address",
                    "give random: true with the target",
                )
            self._clean[image_id] = clean
        self._looked = self._clock()

    def check(self) -> None:
        """Ask again and compare.

        Raises:
            TargetDrift: with what moved, and by how much.
        """
        moved = [text for image_id in self._images if (text := self._moved(image_id))]
        since = "since the answers of an earlier session" if self._looked == -np.inf else "during the run"
        self._looked = self._clock()
        if moved:
            raise TargetDrift(
                f"the target has changed {since}: {'; '.join(moved)}",
                "another model or other settings behind the same address; "
                "answers from before and after do not belong together",
                "restore the model that the run began with and resume, or start a new run",
            )

    def state(self) -> dict[str, Any]:
        """Plain data from which `load` goes on in a resumed run."""
        return {image_id: clean.answers for image_id, clean in self._clean.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the clean answers of an earlier session; a `check` is due then.

        Raises:
            TargetError: they belong to other canaries.
        """
        if set(state) != set(self._images):
            raise TargetError(
                "the canaries of the run are other images than before",
                "the data of the run have changed",
                "restore the data, or start a new run",
            )
        self._clean = {image_id: Clean.of(list(np.asarray(a, np.float32))) for image_id, a in state.items()}
        self._looked = -np.inf

    def _answer(self, x_CHW: Tensor) -> Floats:
        answer: Floats = np.ascontiguousarray(self._ask(x_CHW).detach().cpu().numpy(), dtype=np.float32)
        return answer

    def _moved(self, image_id: str) -> str:
        """What moved in the answer to one canary; nothing where it is as before."""
        clean, answer = self._clean[image_id], self._answer(self._images[image_id])
        if answer.shape != clean.answers.shape[1:]:
            return f"{image_id}: the answer has the shape {answer.shape}, before {clean.answers.shape[1:]}"
        if not self._random:
            return "" if digest(answer) == clean.sha256 else f"{image_id}: {_difference(answer, clean.answers[0])}"
        allowed = max(TOLERANCE * clean.noise, LEAST)
        distance = clean.distance(answer)
        if distance > allowed:  # one answer may be far off by chance
            again = [clean.distance(self._answer(self._images[image_id])) for _ in range(REPEATS - 1)]
            distance = float(np.median([distance, *again]))
        if distance <= allowed:
            return ""
        return f"{image_id}: mean difference {_in_steps(distance)}, between two answers before {_in_steps(clean.noise)}"


def digest(values: Floats) -> str:
    """sha256 of shape and values, hexadecimal."""
    header = f"{values.shape}|".encode()
    return hashlib.sha256(header + np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def _distance(a: Floats, b: Floats) -> float:
    """Mean absolute difference, in float64; infinite between answers of two shapes."""
    return float(np.abs(a.astype(np.float64) - b).mean()) if a.shape == b.shape else float("inf")


def _difference(a: Floats, b: Floats) -> str:
    largest = float(np.abs(a.astype(np.float64) - b).max())
    return f"mean difference {_in_steps(_distance(a, b))}, largest {_in_steps(largest)}"


def _in_steps(value: float) -> str:
    return f"{value:.3g}" if value == 0 or value > 1 else f"{value:.3g} ({value * 255:.3g}/255)"
