"""A host keeps one restorer and its purifiers on a device and works on units, one call at a time.

It knows nothing of Ray: the in-process pool calls it directly, a Ray actor wraps it. White-box
units run whole on it; for query attacks it answers scores, because it keeps the references.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from udc_ray import memory, probe
from udc_ray.attacks.objectives import Objective, get_objective
from udc_ray.attacks.oracle import Row, ScoreRequest
from udc_ray.attacks.query import Answer
from udc_ray.attacks.reduction import reduce_rows
from udc_ray.baselines import Baselines
from udc_ray.batching import micro_batches, stack
from udc_ray.checks.readings import Reading
from udc_ray.crafted import Crafted
from udc_ray.crafting import Goals, craft_by_gradients
from udc_ray.errors import DeviceMemoryError, SpecError, UserError, WeightsError
from udc_ray.evaluation import Evaluator
from udc_ray.gradient_probe import probe_host
from udc_ray.meter import Counted, Meter, count_networks
from udc_ray.metrics.perceptual import get_perceptual
from udc_ray.metrics.protocols import get_protocol
from udc_ray.models.base import Restorer
from udc_ray.models.loading import load_restorer
from udc_ray.plan import Unit
from udc_ray.probe import Resolved
from udc_ray.purifiers.victim import Victim
from udc_ray.results import UnitResult
from udc_ray.scoring import score_unit
from udc_ray.selection import select_levels
from udc_ray.setup import HostSetup
from udc_ray.tape import Tape
from udc_ray.tasks import get_task
from udc_ray.views import View

PROBED_IMAGES = 64
"""Images among which the largest is looked for, to measure on."""


class Host:
    """Holds the models of a run.

    Args:
        setup: the run.
        device: ``cpu`` or ``cuda``.
        name: name in the records.
        restorer: an already loaded restorer, for tests and the library.
    """

    def __init__(
        self, setup: HostSetup, *, device: str = "cpu", name: str = "local", restorer: Restorer | None = None
    ) -> None:
        self.setup, self.device, self.name = setup, device, name
        self.task = get_task(setup.plan.task)
        torch.set_num_threads(setup.resolved.threads)
        memory.keep_freed_memory()
        self.meter = Meter()
        self.restorer = Counted((restorer or load_restorer(setup.spec.model)).to(device), self.meter)
        self._prepared: dict[int, Any] = {}
        self._goals: dict[tuple[int, str, str], tuple[float, float]] = {}
        self.sample = lru_cache(maxsize=256)(setup.dataset.load)
        self.clean_references = lru_cache(maxsize=256)(self._clean_reference)
        self._make_evaluator()

    def configure(self, resolved: Resolved) -> None:
        """Adopt what the probes settled."""
        self.setup = replace(self.setup, resolved=resolved)
        torch.set_num_threads(resolved.threads)
        self._goals.clear()  # another micro-batch has other last bits
        self._make_evaluator()

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """Probe position invariance for the shapes of the run's images; then choose levels that are to be chosen."""
        asked = replace(self.setup.resolved, device_type=torch.device(self.device).type)
        if self.setup.spec.run.micro_batch == "auto":
            asked = replace(asked, micro_batch=self._largest_micro_batch(max(shapes, key=math.prod)))
        networks: list[probe.Network] = [self.restorer]
        for defence, entry in enumerate(self.setup.plan.defences):
            if entry.purifier is not None:
                networks += entry.purifier.networks(self.victim(defence).prepared)
        networks += self.task.networks([get_objective(name) for name in self._objective_names()])
        largest = torch.zeros(asked.micro_batch, *max(shapes, key=math.prod))
        try:
            with memory.explained(partial(self.trial, largest), asked.micro_batch, "the probe of the models"):
                resolved = probe.settle(networks, list(shapes), asked, self.device)
        except DeviceMemoryError as error:
            raise SpecError(str(error), "images, model or micro_batch are too large for the device") from error
        except UserError:
            raise
        except Exception as error:  # a user's model may raise anything
            reason = str(error).splitlines()[0] if str(error) else ""
            raise WeightsError(
                f"the model {self.restorer.descriptor.name} fails on images of {shapes[0]}: "
                f"{type(error).__name__}: {reason}",
                "it wants a multiple of some size, or breaks the gradient (numpy, detach)",
                "pad inside the model; without gradients list query attacks only",
            ) from error
        return select_levels(self, resolved)

    def victim(self, defence: int, grad_mode: str = "full") -> Victim:
        """The model that an attack on this defence sees; purifiers are prepared once."""
        purifier = self.setup.plan.defences[defence].purifier
        if purifier is None:
            return Victim(restorer=self.restorer)
        if defence not in self._prepared:
            self._prepared[defence] = purifier.prepare(self.device)
            count_networks(self._prepared[defence], self.meter)
        level = self.setup.resolved.levels.get(str(defence))
        if level is not None:
            leveled: Any = purifier  # only purifiers with levels have any chosen
            purifier = leveled.with_level(level)
        mode: Any = grad_mode
        return Victim(restorer=self.restorer, purifier=purifier, prepared=self._prepared[defence], grad_mode=mode)

    def keep(self, defences: Collection[int]) -> None:
        """Let go of the purifiers of other defences; they are loaded anew when they are needed."""
        self._prepared = {d: prepared for d, prepared in self._prepared.items() if d in defences}

    def run(self, unit: Unit) -> UnitResult:
        """Attack and score a unit of gradients or controls on this host; query units are stepped from outside."""
        with self.meter.work(unit.key, self._useful_share(unit)):
            return self.finish(unit, craft_by_gradients(self, unit))

    def goals(self, unit: Unit) -> Goals:
        """Clean score, and the score that declares success, per image (harness work, not charged)."""
        objective = get_objective(self.objective_name(unit))
        keys = {i: (unit.victim, objective.name, i) for i in unit.image_ids}
        todo = [i for i, key in keys.items() if key not in self._goals]
        if todo:
            with self.meter.work(unit.key, self._useful_share(unit)), self._explained(unit, "the clean images"):
                images = [self.sample(i).degraded for i in todo]
                draws = self.evaluator.samples(self.victim(unit.victim), todo, images)
                for n, i in enumerate(todo):
                    reference = self.reference(unit.victim, i, objective.reference)
                    self._goals[keys[i]] = self._goal(objective, [outputs[n] for outputs in draws], reference)
        return {i: self._goals[key] for i, key in keys.items()}

    def score(self, request: ScoreRequest) -> list[Answer]:
        """Judge the candidates of query attacks, and reduce what comes back to what each wanted."""
        victim, rows = self.victim(request.victim), request.rows
        count = len(rows)
        padded = (*rows, *(rows[0] for _ in range(self.slots - count)))
        objectives = {row.objective: get_objective(row.objective) for row in rows}
        x = stack(list(request.x_NCHW), self.slots).to(self.device)
        references = [self._compared_with(request.victim, row, objectives[row.objective]) for row in padded]
        tape = Tape(
            seed=self.setup.spec.seed,
            image_ids=tuple(row.image_id for row in padded),
            stream="attack",
            rows=tuple((row.restart, row.step) for row in padded),
        )
        with (
            self.meter.work(share=count / self.slots),
            memory.explained(partial(self.trial, x), self.slots, "scoring"),
        ):
            output, _ = victim.evaluate(x, tape)
        return reduce_rows(output, rows, references, objectives)

    def finish(self, unit: Unit, crafted: list[Crafted]) -> UnitResult:
        """Score attacked images through every cell of the unit."""
        with self.meter.work(unit.key, self._useful_share(unit)), self._explained(unit, "the scores"):
            return score_unit(self, unit, crafted)

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """The pictures of some images in one cell, for the report, by image id."""
        victim, found = self.victim(self.setup.plan.cells[cell].defence), {}
        for batch in micro_batches(list(x_adv), list(x_adv.values()), self.slots):
            tape = Tape(seed=self.setup.spec.seed, image_ids=batch.image_ids, stream="eval")
            samples = [self.sample(i) for i in batch.image_ids]
            restored, _ = victim.evaluate(torch.stack([s.degraded for s in samples]).to(self.device), tape)
            purified, _ = victim.purified(batch.x_BCHW.to(self.device), tape)
            with torch.no_grad():
                attacked = self.restorer(purified)
            for b in range(batch.count):
                sample = samples[b]
                found[sample.image_id] = View(
                    degraded=sample.degraded.numpy(),
                    restored=restored[b].cpu().numpy(),
                    attacked=batch.x_BCHW[b].numpy(),
                    attacked_output=attacked[b].cpu().numpy(),
                    purified=purified[b].cpu().numpy() if victim.purifier is not None else None,
                    truth=None if sample.truth is None else sample.truth.numpy(),
                )
        return found

    def speeds(self, victims: Sequence[int], seconds: float) -> dict[int, float]:
        """Seconds of one full batch of each victim, on the largest image, measured for so long in all."""
        ids = self.setup.dataset.image_ids
        image_id = max(ids[:PROBED_IMAGES], key=lambda i: self.sample(i).degraded.numel())
        x = stack([self.sample(image_id).degraded], self.slots).to(self.device)
        tape = Tape(seed=self.setup.spec.seed, image_ids=(image_id,) * self.slots, stream="control")
        found = {}
        for defence in victims:
            victim = self.victim(defence)
            victim.evaluate(x, tape)  # warms up
            begun, batches = time.perf_counter(), 0
            while not batches or time.perf_counter() - begun < seconds / len(victims):
                victim.evaluate(x, tape)
                self._wait()
                batches += 1
            found[defence] = (time.perf_counter() - begun) / batches
        return found

    def probe_gradients(self) -> list[Reading]:
        """How gradients pass the victims that the run's gradient attacks work on; see `udc_ray.gradient_probe`."""
        return probe_host(self)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def describe(self) -> dict[str, object]:
        """What this host is, for environment.json."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else platform.processor() or platform.machine()
        return {
            "device": self.device,
            "device_name": name,
            "threads": torch.get_num_threads(),
            "pid": os.getpid(),
            "executed": dict(self.evaluator.executed),
            "purified": self.evaluator.clock.to_json(),
        }

    def close(self) -> None:
        """Let go of what outlives the process; our own models hold nothing such."""

    @property
    def slots(self) -> int:
        """Images per forward pass."""
        return self.setup.resolved.micro_batch

    def objective_name(self, unit: Unit) -> str:
        """Objective of a unit: the attack's own, or the run's."""
        return self.setup.plan.attacks[unit.attack].attack.objective or self.setup.spec.objective

    def _objective_names(self) -> list[str]:
        """Every objective of the run, once."""
        own = [entry.attack.objective for entry in self.setup.plan.attacks]
        return list(dict.fromkeys(name or self.setup.spec.objective for name in own))

    def reference(self, defence: int, image_id: str, kind: str) -> Tensor:
        """What an output is compared with: the truth, or the victim's own clean output."""
        truth = self.sample(image_id).truth
        if kind == "truth" and truth is not None:
            return truth
        return self.clean_references(defence, image_id)

    def _compared_with(self, defence: int, row: Row, objective: Objective) -> Tensor:
        kind = "clean" if row.wanted.against == "clean" else objective.reference
        return self.reference(defence, row.image_id, kind)

    def _clean_reference(self, defence: int, image_id: str) -> Tensor:
        """The victim's own output on the untouched image, mean over the evaluation draws."""
        images = [self.sample(image_id).degraded]
        draws = self.evaluator.samples(self.victim(defence), [image_id], images)
        return self.task.clean_reference([outputs[0] for outputs in draws])

    def _goal(self, objective: Objective, outputs: Sequence[Tensor], reference: Tensor) -> tuple[float, float]:
        return self.task.goal(objective, outputs, reference, self.evaluator.protocol, self.setup.spec.success)

    def _explained(self, unit: Unit, what: str) -> AbstractContextManager[None]:
        """Say which micro-batch fits where the images of a unit do not."""
        largest = max((self.sample(i).degraded for i in unit.image_ids), key=lambda x_CHW: x_CHW.numel())
        return memory.explained(partial(self.trial, stack([largest], self.slots)), self.slots, what)

    def _useful_share(self, unit: Unit) -> float:
        """Share of the batch slots that the images of a unit fill, each in batches of its own size."""
        sizes = Counter(self.sample(i).degraded.shape for i in unit.image_ids)
        return len(unit.image_ids) / (self.slots * sum(-(-count // self.slots) for count in sizes.values()))

    def _make_evaluator(self) -> None:
        protocol = get_protocol(self.setup.spec.protocol)
        perceptual = get_perceptual(self.setup.spec.perceptual)
        self.evaluator = Evaluator(protocol, self.slots, self.device, self.setup.spec.seed, perceptual, self.task)
        self.baselines = Baselines(self.evaluator)

    def trial(self, x_BCHW: Tensor, slots: int) -> None:
        """One forward and backward pass with `slots` images, to see whether they fit."""
        probe.output_and_gradient(self.restorer, x_BCHW[:slots].to(self.device))

    def _largest_micro_batch(self, shape: tuple[int, int, int], cap: int = 64) -> int:
        best = 1
        for slots in (2**n for n in range(cap.bit_length())):
            try:
                self.trial(torch.zeros(slots, *shape), slots)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                break
            best = slots
        return best
