"""Scores of images through victims: clean, under equal-size noise, and attacked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from udc_ray.attacks.noise import control_noise
from udc_ray.batching import micro_batches
from udc_ray.data.base import Sample
from udc_ray.metrics.perceptual import Perceptual, ShiftTolerant
from udc_ray.metrics.protocols import Protocol
from udc_ray.purifiers.base import Trace
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape
from udc_ray.tasks import Task, get_task
from udc_ray.tasks.base import NOT_FUSED, Fused, Yardstick
from udc_ray.tasks.base import Reading as Reading  # others import it from here

CONTROL_DRAWS = 4
"""Draws of random noise that the control is averaged over."""

_SHIPPED = ShiftTolerant()


@dataclass(frozen=True, kw_only=True)
class Control:
    """Size of the random noise that a cell is compared with."""

    norm: str
    sizes: tuple[float, ...]
    """One radius an image."""


class Clock:
    """Time that purifications took, by defence; two runs of the same spec differ in it."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._images: Counter[str] = Counter()

    def note(self, defence: str, seconds: Sequence[float]) -> None:
        """Add purifications of single images behind a defence, by its label."""
        self._seconds[defence] += math.fsum(seconds)  # type: ignore[assignment]  # counters hold floats as well
        self._images[defence] += len(seconds)

    def to_json(self) -> dict[str, dict[str, float]]:
        """Images and their seconds in all, by defence."""
        return {name: {"images": count, "seconds": self._seconds[name]} for name, count in self._images.items()}


class Evaluator:
    """Evaluates victims in fixed-shape micro-batches.

    Args:
        protocol: how outputs are scored.
        slots: images per forward pass.
        device: where the victims live.
        seed: seed of the evaluation noise.
        perceptual: the perceptual distance that is measured beside; None for none.
        task: what the victims are for; restoration unless given.
    """

    def __init__(
        self,
        protocol: Protocol,
        slots: int,
        device: str,
        seed: int,
        perceptual: Perceptual | None = _SHIPPED,
        task: Task | None = None,
    ) -> None:
        self.protocol, self.slots, self.device, self.seed = protocol, slots, device, seed
        self.task = get_task("restoration") if task is None else task
        self.yardstick = Yardstick(protocol=protocol, perceptual=perceptual, device=torch.device(device))
        self.executed: Counter[str] = Counter()
        self.clock = Clock()

    def outputs(
        self, victim: Victim, image_ids: Sequence[str], images: Sequence[Tensor], tape: Tape
    ) -> tuple[list[Tensor], list[Trace]]:
        """Unclamped outputs on the CPU, C x H x W each (K logits of a classifier), and what each purification cost.

        Seconds are those of a full micro-batch, shared evenly by its slots.
        """
        found: dict[int, tuple[Tensor, Trace]] = {}
        for batch in micro_batches(image_ids, images, self.slots):
            row_tape = replace(tape, image_ids=batch.image_ids)
            output, trace = victim.evaluate(batch.x_BCHW.to(self.device), row_tape)
            self.executed[tape.stream] += batch.count
            own = replace(trace, seconds=trace.seconds / self.slots)
            found |= {where: (row, own) for where, row in zip(batch.where, output.cpu()[: batch.count], strict=True)}
        ordered = [found[position] for position in range(len(images))]
        return [output for output, _ in ordered], [trace for _, trace in ordered]

    def samples(self, victim: Victim, image_ids: Sequence[str], images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Outputs of the `eval` draws: one list of images for every sample of the victim."""
        return [self.outputs(victim, image_ids, images, self._tape("eval", s))[0] for s in range(victim.samples)]

    def read(
        self, victim: Victim, samples: Sequence[Sample], images: Sequence[Tensor], references: Sequence[Tensor]
    ) -> list[list[Reading]]:
        """Readings of `images`, by sample and then by image."""
        ids = [s.image_id for s in samples]
        draws = [self.outputs(victim, ids, images, self._tape("eval", draw)) for draw in range(victim.samples)]
        fused = [NOT_FUSED] * len(samples)
        if len(draws) > 1:
            by_image = zip(*(outputs for outputs, _ in draws), strict=True)
            fused = [self.task.fuse(o, r, self.protocol) for o, r in zip(by_image, references, strict=True)]
        return [
            [self._reading(*one) for one in zip(outputs, references, traces, fused, strict=True)]
            for outputs, traces in draws
        ]

    def _reading(self, output: Tensor, reference: Tensor, trace: Trace, fused: Fused) -> Reading:
        reading = self.task.read(output, reference, self.yardstick)
        return replace(reading, nfe=trace.nfe, guide_calls=trace.auxiliary, purify_seconds=trace.seconds, fused=fused)

    def control(
        self, victim: Victim, samples: Sequence[Sample], references: Sequence[Tensor], control: Control
    ) -> list[float]:
        """Mean quality of the victim under random noise of the given size, per image: PSNR in dB, or the score."""
        ids = [s.image_id for s in samples]
        totals = [0.0] * len(samples)
        for draw in range(CONTROL_DRAWS):
            noisy = [self._noisy(s, control.norm, size, draw) for s, size in zip(samples, control.sizes, strict=True)]
            outputs, _ = self.outputs(victim, ids, noisy, self._tape("control", draw))
            for n, (output, reference) in enumerate(zip(outputs, references, strict=True)):
                totals[n] += self.task.noise(output, reference, self.protocol)
        return [total / CONTROL_DRAWS for total in totals]

    def input_quality(self, samples: Sequence[Sample]) -> list[float | None]:
        """Quality of the untouched inputs themselves: PSNR in dB against the truth; None where it is not known."""
        return [self.task.input_quality(s, self.protocol) for s in samples]

    def _noisy(self, sample: Sample, norm: str, size: float, draw: int) -> Tensor:
        tape = Tape(seed=self.seed, image_ids=(sample.image_id,), stream="control", sample=draw)
        noisy: Tensor = control_noise(sample.degraded[None], norm, torch.tensor([size]), tape)[0]
        return noisy

    def _tape(self, stream: str, sample: int) -> Tape:
        return Tape(seed=self.seed, image_ids=(), stream=stream, sample=sample)
