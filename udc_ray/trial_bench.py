"""What is done with trial images on a host: they are attacked, purified, looked at, and scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.base import AttackResult, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.objectives import get_objective
from udc_ray.batching import MicroBatch, micro_batches
from udc_ray.data.base import Sample
from udc_ray.features import Layer, Matrix, look
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

if TYPE_CHECKING:
    from udc_ray.host import Host


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial image.

    Attributes:
        sample: the image, and its truth where that is known.
        clean: the restorer's own output on the untouched image, as a reference.
        attacked: the image as it is purified, C x H x W.
    """

    sample: Sample
    clean: Tensor
    attacked: Tensor

    def reference(self, kind: str = "truth") -> Tensor:
        """What outputs are compared with: the truth, or the clean output where it is asked for or all there is."""
        truth = self.sample.truth
        return truth if kind == "truth" and truth is not None else self.clean


class TrialBench:
    """Works on trial images with the models of a host, in its micro-batches."""

    def __init__(self, host: Host) -> None:
        self.host, self.device, self.slots = host, host.device, host.slots
        self.seed = host.setup.spec.seed

    def trials(self, samples: list[Sample]) -> list[Trial]:
        """Trial images that nobody has attacked."""
        found: dict[int, Trial] = {}
        for batch in _batches([sample.degraded for sample in samples], samples, self.slots):
            with torch.no_grad():
                output = self.host.restorer(batch.x_BCHW.to(self.device)).cpu()
            for place, where in enumerate(batch.where):
                clean, sample = self.host.task.clean_reference([output[place]]), samples[where]
                found[where] = Trial(sample=sample, clean=clean, attacked=sample.degraded)
        return [found[n] for n in range(len(samples))]

    def attack(self, trials: list[Trial], attack: GradientAttack, victim: Victim) -> list[Trial]:
        """The images after an attack on a victim, keyed as attacks are; of several restarts the best one counts."""
        samples, attacked = [trial.sample for trial in trials], list(trials)
        for batch in _batches([sample.degraded for sample in samples], samples, self.slots):
            own = [trials[where] for where in batch.where]
            rows = [*own, *(own[0] for _ in range(self.slots - batch.count))]
            results = [self._attack(attack, rows, batch, victim, restart) for restart in range(attack.restarts)]
            for place, where in enumerate(batch.where):
                best = max(results, key=lambda result: float(result.score_B[place]))
                attacked[where] = replace(trials[where], attacked=best.x_adv_BCHW[place].detach().cpu())
        return attacked

    def look(self, trials: list[Trial], victim: Victim, layer: Layer) -> tuple[Matrix, float]:
        """Features of the purified images, N x width, and the mean quality of the restored ones; on stream `select`."""
        rows, quality = np.zeros((len(trials), layer.width), dtype=np.float32), 0.0
        samples = [trial.sample for trial in trials]
        for batch in _batches([trial.attacked for trial in trials], samples, self.slots):
            purified, _ = victim.purified(batch.x_BCHW.to(self.device), self._tape(batch, "select"))
            features, output = look(victim.restorer, layer, purified)
            rows[list(batch.where)] = features[: batch.count].cpu().numpy()
            quality += self._total(trials, batch, output)
        return rows, quality / len(trials)

    def quality(self, trials: list[Trial], victim: Victim) -> float:
        """Mean quality of a victim on the attacked images: PSNR in dB, or the score; on stream `eval`."""
        quality, samples = 0.0, [trial.sample for trial in trials]
        for batch in _batches([trial.attacked for trial in trials], samples, self.slots):
            output, _ = victim.evaluate(batch.x_BCHW.to(self.device), self._tape(batch, "eval"))
            quality += self._total(trials, batch, output)
        return quality / len(trials)

    def _attack(
        self, attack: GradientAttack, rows: list[Trial], batch: MicroBatch, victim: Victim, restart: int
    ) -> AttackResult:
        host = self.host
        objective = get_objective(attack.objective or host.setup.spec.objective)
        references = [trial.reference(objective.reference) for trial in rows]
        protocol, wanted = host.evaluator.protocol, host.setup.spec.success
        goals = [
            host.task.goal(objective, [trial.clean], reference, protocol, wanted)
            for trial, reference in zip(rows, references, strict=True)
        ]
        scores = torch.tensor(goals, dtype=torch.float64).to(self.device)
        tape = replace(self._tape(batch, "attack"), restart=restart)
        target = GradientTarget(
            victim,
            objective,
            torch.stack(references).to(self.device),
            tape,
            eot=attack.eot,
            select_draws=attack.select_draws,
            count=batch.count,
        )
        x_BCHW = batch.x_BCHW.to(self.device)
        return attack.perturb(
            target, Problem(x_BCHW=x_BCHW, tape=tape, clean_score_B=scores[:, 0], goal_B=scores[:, 1])
        )

    def _tape(self, batch: MicroBatch, stream: str) -> Tape:
        return Tape(seed=self.seed, image_ids=batch.image_ids, stream=stream)

    def _total(self, trials: list[Trial], batch: MicroBatch, output_BCHW: Tensor) -> float:
        pairs = zip(batch.where, output_BCHW.cpu(), strict=False)
        protocol = self.host.evaluator.protocol
        return sum(self.host.task.noise(output, trials[where].reference(), protocol) for where, output in pairs)


def _batches(images: list[Tensor], samples: list[Sample], slots: int) -> Iterator[MicroBatch]:
    return micro_batches([sample.image_id for sample in samples], images, slots)
