"""The library in a few calls: load, take samples, perturb, purify, measure; no Ray, no run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udc_ray.attacks.base import Best, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.batcher import Batcher
from udc_ray.attacks.driver import drive, run_here, start_chains
from udc_ray.attacks.noise import Noise
from udc_ray.attacks.objectives import Objective
from udc_ray.attacks.oracle import Oracle, Row, ScoreRequest
from udc_ray.attacks.query import Answer, QueryAttack, QueryProblem
from udc_ray.attacks.reduction import reduce_rows
from udc_ray.attacks.registry import ATTACKS
from udc_ray.attacks.threat import l2_norm
from udc_ray.batching import MicroBatch, micro_batches, stack
from udc_ray.data.base import Sample
from udc_ray.data.open import open_dataset
from udc_ray.errors import DataError
from udc_ray.metrics.protocols import get_protocol
from udc_ray.models.base import Restorer
from udc_ray.models.loading import load_restorer
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.purifiers.victim import Victim
from udc_ray.spec import Entry
from udc_ray.tape import Tape
from udc_ray.tasks import get_task
from udc_ray.tasks.base import objective_for
from udc_ray.tasks.classification import MISSED

SLOTS = 4


def load(name: str = "default", weights: str | Path | None = None) -> Restorer:
    """Load a restorer or a classifier: a name, a weights file, or ``package.module:factory``."""
    params = {} if weights is None else {"weights": str(weights)}
    return load_restorer(Entry(name=name, params=params))


def samples(data: str = "shipped", *, limit: int | None = None, **params: Any) -> list[Sample]:
    """Read images: degraded inputs with their truth, C x H x W in [0, 1]; labelled images with their class.

    Args:
        data: ``shipped`` or a path, as in a spec.
        limit: at most so many images.
        params: further keys of the spec's data entry, such as ``display`` and ``size``.
    """
    dataset = open_dataset(Entry(name=data, params=params), limit)
    return [dataset.load(image_id) for image_id in dataset.image_ids]


def perturb(
    restorer: Restorer, images: Sequence[Sample], attack: str = "pgd", *, seed: int = 0, **params: Any
) -> list[Sample]:
    """Attack the inputs of a model: MSE to the truth grows, or the margin by which a classifier misses the class.

    Args:
        restorer: the model, undefended.
        images: samples with truth.
        attack: registry name.
        seed: seed of the keyed randomness.
        params: parameters of the attack.

    Returns:
        The samples with attacked inputs.
    """
    task = get_task(restorer.descriptor.task)
    kind = ATTACKS.get(attack)
    built = kind.build("attack", ({"stop": task.stop} if issubclass(kind, QueryAttack) else {}) | params)
    victim, found = Victim(restorer=restorer), list(images)
    for batch in micro_batches([s.image_id for s in images], [s.degraded for s in images], SLOTS):
        truth_BCHW = stack([_truth(images[p], restorer) for p in batch.where], SLOTS)
        x_adv_BCHW = _attack_batch(built, victim, batch, truth_BCHW, seed)
        for b, position in enumerate(batch.where):
            found[position] = replace(images[position], degraded=x_adv_BCHW[b].detach().cpu())
    return found


def purify(images: Sequence[Sample], defense: str = "ddim", *, seed: int = 0, **params: Any) -> list[Sample]:
    """Purify the inputs; returns the samples with purified inputs."""
    purifier = PURIFIERS.get(defense).build("defence", params)
    prepared, found = purifier.prepare("cpu"), list(images)
    for batch in micro_batches([s.image_id for s in images], [s.degraded for s in images], SLOTS):
        tape = Tape(seed=seed, image_ids=batch.image_ids, stream="eval")
        with torch.no_grad():
            purified, _ = purifier.purify(batch.x_BCHW, tape, prepared)
        for b, position in enumerate(batch.where):
            found[position] = replace(images[position], degraded=purified[b])
    return found


def measure(restorer: Restorer, images: Sequence[Sample], protocol: str = "strict") -> float:
    """Mean PSNR in dB of the restored images against the truth; of a classifier the accuracy, from 0 to 1."""
    if not images:
        raise DataError("there are no images to measure", "an empty list", "take samples first")
    scorer, task, total = get_protocol(protocol), get_task(restorer.descriptor.task), 0.0
    for batch in micro_batches([s.image_id for s in images], [s.degraded for s in images], SLOTS):
        with torch.no_grad():
            output = restorer(batch.x_BCHW)
        total += sum([task.noise(output[b], _truth(images[p], restorer), scorer) for b, p in enumerate(batch.where)])
    return total / len(images)


def _truth(sample: Sample, restorer: Restorer) -> Tensor:
    get_task(restorer.descriptor.task).check_sample(sample, restorer.descriptor)
    if sample.truth is None:
        raise DataError(f"image {sample.image_id} has no truth", change="use data with truth, or a run with mse-clean")
    return sample.truth


def _attack_batch(attack: Any, victim: Victim, batch: MicroBatch, truth_BCHW: Tensor, seed: int) -> Tensor:
    tape = Tape(seed=seed, image_ids=batch.image_ids, stream="attack")
    if isinstance(attack, Noise):
        return attack.perturb(batch.x_BCHW, tape)
    task = get_task(victim.restorer.descriptor.task)
    objective = objective_for(task, attack.name, attack.objective)
    output, _ = victim.evaluate(batch.x_BCHW, tape)
    reference_BCHW = truth_BCHW if objective.reference == "truth" else output.clamp(0, 1)
    clean_B = objective.score(output, reference_BCHW)
    problem = Problem(x_BCHW=batch.x_BCHW, tape=tape, clean_score_B=clean_B, goal_B=_goals(objective, clean_B))
    if isinstance(attack, GradientAttack):
        return _gradient_batch(attack, victim, problem, (objective, reference_BCHW))
    seen = {"reference": reference_BCHW, "clean": output if objective.task != "restoration" else output.clamp(0, 1)}
    return _query_batch(attack, victim, problem, (objective, seen), batch.count)


def _goals(objective: Objective, clean_B: Tensor) -> Tensor:
    """A drop of 3 dB where PSNR follows from the score; a class that is missed."""
    return torch.full_like(clean_B, MISSED) if objective.task == "classification" else clean_B * 10**0.3


def _gradient_batch(
    attack: GradientAttack, victim: Victim, problem: Problem, judge: tuple[Objective, Tensor]
) -> Tensor:
    """The best of all restarts: the smallest success of a minimum-norm attack, else the highest score."""
    found: Best | None = None
    for restart in range(attack.restarts):
        tape = replace(problem.tape, restart=restart)
        target = GradientTarget(
            victim, *judge, tape, eot=attack.eot, select_draws=attack.select_draws, frozen=attack.frozen_noise
        )
        result = attack.perturb(target, replace(problem, tape=tape))
        value_B = result.score_B.double()
        if attack.minimum_norm:
            # any success outranks a failure, whose score is at most 2.7 (ST-LPIPS; 1 - SSIM is at most 2; a margin 0)
            size_B = l2_norm(result.x_adv_BCHW - problem.x_BCHW)
            value_B = torch.where(value_B >= problem.goal_B, 3 + 1 / (1 + size_B), value_B)
        if found is None:
            found = Best(result.x_adv_BCHW, value_B)
        found.offer(result.x_adv_BCHW, value_B)
    return problem.x_BCHW if found is None else found.x_BCHW


def _query_batch(
    attack: QueryAttack, victim: Victim, problem: Problem, judge: tuple[Objective, dict[str, Tensor]], count: int
) -> Tensor:
    """The best of all restarts, of the first `count` images; the others are padding.

    The judge is the objective, and what outputs are compared with: its reference, and the clean outputs.
    """
    objective, seen = judge
    where = {image_id: b for b, image_id in enumerate(problem.tape.image_ids[:count])}

    async def score(request: ScoreRequest) -> list[Answer]:
        rows = (*request.rows, *(request.rows[0] for _ in range(SLOTS - len(request.rows))))
        tape = replace(
            problem.tape, image_ids=tuple(r.image_id for r in rows), rows=tuple((r.restart, r.step) for r in rows)
        )
        output, _ = victim.evaluate(stack(list(request.x_NCHW), SLOTS), tape)
        references = [seen[row.wanted.against][where[row.image_id]] for row in rows]
        return reduce_rows(output, request.rows, references, {objective.name: objective})

    problems = [
        QueryProblem(
            x_CHW=problem.x_BCHW[b],
            tape=replace(problem.tape, image_ids=(image_id,), restart=restart),
            goal=float(problem.goal_B[b]),
            random=victim.random,
            additive=objective.additive,
        )
        for image_id, b in where.items()
        for restart in range(attack.restarts)
    ]
    chains = start_chains(attack, problems)
    batcher = Batcher(score, SLOTS, in_flight=1)
    like = Row(image_id="", objective=objective.name)
    run_here(drive(chains, Oracle(batcher.send, 0, like, attack.budget), batcher))
    x_adv_BCHW = problem.x_BCHW.clone()
    for image_id, b in where.items():
        found = [chain.machine.best() for chain in chains if chain.key[0] == image_id]
        x_adv_BCHW[b] = (min if attack.minimum_norm else max)(found, key=lambda best: best[1])[0]
    return x_adv_BCHW
