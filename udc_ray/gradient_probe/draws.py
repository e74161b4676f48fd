"""How the randomness of a victim behaves: draws that a gradient needs, noise that is frozen, noise that leaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from udc_ray.attacks.base import GradientAttack, GradientTarget, Problem
from udc_ray.gradient_probe.subject import Subject
from udc_ray.purifiers.base import Trace
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

MOST_DRAWS = 64
"""Draws that the probe takes, unless the attack's own two averages need more."""
FEW = 4
"""Steps of the short attack."""
FROZEN_DRAWS = 4
"""Draws that are frozen, one a row: draws differ more in what they let an attack do than attacks do."""
SAME = 1e-4
"""Distance of two outputs, in units of the image, up to which they are of the same noise."""
_LENGTHS = ("steps", "iterations", "rounds", "search_steps")
"""Parameters that say how long an attack takes."""


def eot_cosines(subject: Subject) -> tuple[tuple[tuple[int, float], ...], Tensor]:
    """Cosines of independent gradients at n, 2n, 4n for every n of the attacks, and the gradient of the first draw."""
    own = sorted({attack.eot for attack in subject.attacks}) if subject.victim.random else []
    levels = sorted({n * m for n in own for m in (1, 2, 4) if 2 * n * m <= MOST_DRAWS} | set(own))
    half = max(levels, default=1)
    draws_KCHW = _gradients(subject, 2 * half if levels else 1)
    cosines = []
    for n in levels:
        one, other = draws_KCHW[:n].mean(dim=0), draws_KCHW[half : half + n].mean(dim=0)
        cosines.append((n, cosine(one, other)))
    return tuple(cosines), draws_KCHW[:1]


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of the angle between two gradients; 0 where one of them vanishes."""
    one, other = one.double().flatten(), other.double().flatten()
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size > 0 else 0.0


def _gradients(subject: Subject, count: int) -> Tensor:
    """Gradients of `count` draws, in full micro-batches."""
    found = []
    for start in range(0, count, subject.slots):
        draws = list(range(start, start + subject.slots))
        batch = subject.x_1CHW.expand(subject.slots, *subject.x_1CHW.shape[1:])
        found.append(subject.gradient(batch, subject.draws(draws)))
    return torch.cat(found)[:count]


def noise_facts(subject: Subject) -> dict[str, Any]:
    """Whether noise repeats, whether evaluation has its own, and how far the gradient's forward pass is off."""
    victim, x, tape = subject.victim, subject.x_1CHW, subject.tape
    first, _ = victim.evaluate(x, tape)
    again, _ = victim.evaluate(x, tape)
    other, _ = victim.evaluate(x, tape.at(stream="eval"))
    with torch.no_grad():
        forward = victim.differentiable(x, tape)
    gap = float((forward - first).abs().max())
    deployed = victim.grad_mode in ("full", "full-no-guide", "bpda")
    repeats = torch.equal(first, again) and (gap <= SAME or not deployed)
    return {
        "forward_gap": gap,
        "repeatable": repeats,
        "own_noise": not torch.equal(first, other) if victim.random else None,
    }


class Frozen(Victim):
    """A victim whose noise is the same whenever it is asked: that of one draw."""

    def evaluate(self, x_BCHW: Tensor, tape: Tape) -> tuple[Tensor, Trace]:
        return super().evaluate(x_BCHW, _held(tape))

    def differentiable(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        return super().differentiable(x_BCHW, _held(tape))

    @property
    def random(self) -> bool:
        """Nothing differs between two evaluations any more."""
        return False


def _held(tape: Tape) -> Tape:
    return replace(tape, stream="control", step=0, sample=0, restart=0, rows=None)


def frozen_and_free(subject: Subject) -> dict[str, float]:
    """Damage on frozen draws: of an attack on each of them, and of the same attack on fresh noise, which saw none.

    Both are scored on the frozen draws, and averaged over them. Nothing where there is no noise, or no attack inside
    a radius.
    """
    attack = _short(subject.attacks)
    if attack is None or not subject.victim.random:
        return {}
    many, victim = _rows(subject, FROZEN_DRAWS), subject.victim
    held = Frozen(
        restorer=victim.restorer, purifier=victim.purifier, prepared=victim.prepared, grad_mode=victim.grad_mode
    )
    frozen, free = (_damage(many, held, _attacked(many, one, attack)) for one in (held, victim))
    return {"frozen": frozen, "free": free}


def _rows(subject: Subject, count: int) -> Subject:
    """The same image in several rows, each with noise of its own."""
    ids = tuple(f"{subject.image_id}/{row}" for row in range(count))
    return replace(
        subject,
        x_1CHW=subject.x_1CHW.expand(count, *subject.x_1CHW.shape[1:]).clone(),
        reference_1=subject.reference_1.expand(count, *subject.reference_1.shape[1:]),
        tape=replace(subject.tape, image_ids=ids),
    )


def _short(attacks: tuple[GradientAttack, ...]) -> GradientAttack | None:
    """The longest attack inside a radius, cut to a few steps, one start and one draw.

    Where the run lists an attack on frozen noise, that one is made at its full length.
    """
    bounded = [attack for attack in attacks if attack.eps is not None]
    listed = next((attack for attack in bounded if attack.frozen_noise), None)
    if listed is not None:
        return listed.model_copy(update={"restarts": 1, "frozen_noise": False})
    if not bounded:
        return None
    attack = max(bounded, key=lambda a: a.passes)
    lengths = {name: min(getattr(attack, name), FEW) for name in _LENGTHS if hasattr(attack, name)}
    return attack.model_copy(update={**lengths, "eot": 1, "select_draws": 1, "restarts": 1})


def _attacked(subject: Subject, victim: Victim, attack: GradientAttack) -> Tensor:
    target = GradientTarget(
        victim,
        subject.objective,
        subject.reference_1,
        subject.tape,
        eot=attack.eot,
        select_draws=attack.select_draws,
    )
    clean_B = subject.score(victim.evaluate(subject.x_1CHW, subject.tape)[0])
    never_B = torch.full_like(clean_B, torch.inf)
    problem = Problem(x_BCHW=subject.x_1CHW, tape=subject.tape, clean_score_B=clean_B, goal_B=never_B)
    return attack.perturb(target, problem).x_adv_BCHW


def _damage(subject: Subject, held: Frozen, x_adv_BCHW: Tensor) -> float:
    """Attacked minus clean score, mean over the frozen draws."""
    attacked, clean = (held.evaluate(x, subject.tape)[0] for x in (x_adv_BCHW, subject.x_1CHW))
    return float((subject.score(attacked) - subject.score(clean)).mean())
