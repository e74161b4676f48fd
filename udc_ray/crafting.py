"""Making attacked images by gradients, whole on a host."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from udc_ray import memory
from udc_ray.attacks.base import AttackResult, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.noise import Noise
from udc_ray.attacks.objectives import get_objective
from udc_ray.batching import MicroBatch, micro_batches
from udc_ray.crafted import Crafted
from udc_ray.plan import Unit
from udc_ray.tape import Tape

if TYPE_CHECKING:
    from udc_ray.host import Host

Goals = dict[str, tuple[float, float]]
"""Clean score, and the score that declares success, by image id."""


def craft_by_gradients(host: Host, unit: Unit) -> list[Crafted]:
    """Attack the images of a gradient or control unit, all restarts, on a host."""
    attack = host.setup.plan.attacks[unit.attack].attack
    goals = host.goals(unit)
    crafted = []
    for batch in micro_batches(unit.image_ids, [host.sample(i).degraded for i in unit.image_ids], host.slots):
        with memory.explained(partial(host.trial, batch.x_BCHW), host.slots, attack.name):
            for restart in range(attack.restarts):
                crafted += _craft_batch(host, unit, batch, goals, restart)
    return crafted


def _craft_batch(host: Host, unit: Unit, batch: MicroBatch, goals: Goals, restart: int) -> list[Crafted]:
    started = time.monotonic()
    tape = Tape(seed=host.setup.spec.seed, image_ids=batch.image_ids, stream="attack", restart=restart)
    attack = host.setup.plan.attacks[unit.attack].attack
    if isinstance(attack, Noise):
        result = _add_noise(attack, batch, tape)
    elif isinstance(attack, GradientAttack):
        result = _follow_gradients(host, unit, attack, _problem(host, batch, tape, goals), batch.count)
    else:
        raise TypeError(f"{attack.name} is no gradient attack")
    seconds = (time.monotonic() - started) / batch.count
    return [
        Crafted(
            image_id=batch.image_ids[b],
            restart=restart,
            x_adv_CHW=result.x_adv_BCHW[b].detach().cpu(),
            queries=result.queries[b],
            grad_evals=result.grad_evals[b],
            stop_reason=result.stop_reasons[b],
            seconds=seconds,
            diagnostics=result.diagnostics[b] if result.diagnostics else None,
        )
        for b in range(batch.count)
    ]


def _add_noise(attack: Noise, batch: MicroBatch, tape: Tape) -> AttackResult:
    slots = len(batch.image_ids)
    return AttackResult(
        x_adv_BCHW=attack.perturb(batch.x_BCHW, tape),
        score_B=torch.zeros(slots),
        queries=[0] * slots,
        grad_evals=[0] * slots,
        stop_reasons=["iterations"] * slots,
    )


def _problem(host: Host, batch: MicroBatch, tape: Tape, goals: Goals) -> Problem:
    scores = torch.tensor([goals[i] for i in batch.image_ids], dtype=torch.float64).to(host.device)
    x_BCHW = batch.x_BCHW.to(host.device)
    return Problem(x_BCHW=x_BCHW, tape=tape, clean_score_B=scores[:, 0], goal_B=scores[:, 1])


def _follow_gradients(host: Host, unit: Unit, attack: GradientAttack, problem: Problem, count: int) -> AttackResult:
    objective = get_objective(host.objective_name(unit))
    references = [host.reference(unit.victim, i, objective.reference) for i in problem.tape.image_ids]
    target = GradientTarget(
        host.victim(unit.victim, unit.grad_mode),
        objective,
        torch.stack(references).to(host.device),
        problem.tape,
        eot=attack.eot,
        select_draws=attack.select_draws,
        count=count,
        frozen=attack.frozen_noise,
    )
    return attack.perturb(target, problem)
