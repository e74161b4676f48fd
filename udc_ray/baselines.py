"""Scores that do not depend on the attack: computed once a host, remembered.

What is remembered are floats that a fresh computation would give bit for bit, so it makes no
difference to any number which host had met an image before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import Tensor

from udc_ray.data.base import Sample
from udc_ray.evaluation import Control, Evaluator, Reading
from udc_ray.purifiers.victim import Victim

T = TypeVar("T")


class Baselines:
    """Clean readings and noise controls by defence and image.

    Args:
        evaluator: computes what is not remembered yet.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._known: dict[Hashable, object] = {}

    def clean(
        self, defence: int, victim: Victim, samples: Sequence[Sample], references: Sequence[Tensor]
    ) -> list[list[Reading]]:
        """Readings of the untouched images: per image, one for every evaluation draw."""

        def compute(todo: list[int]) -> list[list[Reading]]:
            some = [samples[n] for n in todo]
            by_draw = self.evaluator.read(victim, some, [s.degraded for s in some], [references[n] for n in todo])
            return [list(readings) for readings in zip(*by_draw, strict=True)]

        return self._remember([("clean", defence, s.image_id) for s in samples], compute)

    def noise(
        self,
        defence: int,
        victim: Victim,
        samples: Sequence[Sample],
        references: Sequence[Tensor],
        control: Control,
    ) -> list[float]:
        """Quality under random noise of the given size, per image: PSNR in dB, or the task's score."""

        def compute(todo: list[int]) -> list[float]:
            part = Control(norm=control.norm, sizes=tuple(control.sizes[n] for n in todo))
            return self.evaluator.control(victim, [samples[n] for n in todo], [references[n] for n in todo], part)

        keys: list[Hashable] = [
            ("noise", defence, s.image_id, control.norm, size) for s, size in zip(samples, control.sizes, strict=True)
        ]
        return self._remember(keys, compute)

    def _remember(self, keys: Sequence[Hashable], compute: Callable[[list[int]], list[T]]) -> list[T]:
        todo = [n for n, key in enumerate(keys) if key not in self._known]
        if todo:
            self._known |= {keys[n]: value for n, value in zip(todo, compute(todo), strict=True)}
        return [self._known[key] for key in keys]  # type: ignore[misc]  # one key always holds one type
