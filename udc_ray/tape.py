"""The keyed noise of a victim: who draws, for which images, at which step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from udc_ray import rng


@dataclass(frozen=True, kw_only=True)
class Tape:
    """Noise for a batch of images, each row keyed by its own image id.

    A stream is one of ``attack | select | eval | certify | control``, with the attack's or
    purifier's own name and parameters added by whoever draws; never the model, the defence's
    place in the spec, or the fingerprint.
    """

    seed: int
    image_ids: tuple[str, ...]
    stream: str
    restart: int = 0
    sample: int = 0
    step: int = 0
    rows: tuple[tuple[int, int], ...] | None = None
    """Restart and sample of every row, where rows differ in them (the queries of many chains in one batch)."""

    def at(self, *, step: int | None = None, sample: int | None = None, stream: str | None = None) -> Tape:
        """The same tape at another step, sample or stream."""
        return replace(
            self,
            step=self.step if step is None else step,
            sample=self.sample if sample is None else sample,
            stream=self.stream if stream is None else stream,
        )

    def copied(self, copy: int, copies: int) -> Tape:
        """The tape of one of the copies that a victim combines; the same tape where it makes only one."""
        if copies == 1:
            return self
        rows = None if self.rows is None else tuple((r, s * copies + copy) for r, s in self.rows)
        return replace(self, sample=self.sample * copies + copy, rows=rows)

    def generators(self, name: str) -> list[np.random.Generator]:
        """One generator per image, for the drawer called `name`."""
        stream = f"{self.stream}/{name}"
        rows = self.rows or ((self.restart, self.sample),) * len(self.image_ids)
        return [
            rng.generator(self.seed, i, stream, restart=restart, sample=sample, step=self.step)
            for i, (restart, sample) in zip(self.image_ids, rows, strict=True)
        ]


def normal_like(generators: list[np.random.Generator], x_BCHW: Tensor) -> Tensor:
    """Standard normal noise of the shape of `x_BCHW`, row b from generator b."""
    rows = [rng.normal(g, *x_BCHW.shape[1:]) for g in generators]
    return torch.stack(rows).to(x_BCHW.device, x_BCHW.dtype)


def signs_like(generators: list[np.random.Generator], x_BCHW: Tensor) -> Tensor:
    """Independent signs of the shape of `x_BCHW`, row b from generator b."""
    rows = [rng.signs(g, *x_BCHW.shape[1:]) for g in generators]
    return torch.stack(rows).to(x_BCHW.device, x_BCHW.dtype)


def uniform_like(generators: list[np.random.Generator], x_BCHW: Tensor) -> Tensor:
    """Uniform noise in [-1, 1) of the shape of `x_BCHW`, row b from generator b."""
    rows = [rng.uniform(g, -1.0, 1.0, *x_BCHW.shape[1:]) for g in generators]
    return torch.stack(rows).to(x_BCHW.device, x_BCHW.dtype)
