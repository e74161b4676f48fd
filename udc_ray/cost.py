"""What a run costs, known before it starts: units, queries, gradients, device hours and bytes.

A gradient through a purifier is counted in forward passes of its denoiser: iterations x EOT x NFE x c, where c says
how the gradient passes (`gradient_price`). A probe of some seconds turns forward passes into time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from udc_ray.attacks.base import Attack, GradientAttack
from udc_ray.attacks.query import QueryAttack
from udc_ray.evaluation import CONTROL_DRAWS
from udc_ray.plan import DENOISER_PASSES, Cell, Plan, Unit
from udc_ray.purifiers.base import SURROGATE, Purifier, is_surrogate
from udc_ray.setup import HostSetup

PROBE_SECONDS = 10.0
"""How long a host is measured for an estimate, over all victims."""
LONG = 100_000
"""Forward passes of the restorer from which on a run says what it costs before it begins: half an hour, about."""
RECORD_BYTES = 400
"""A record in parquet, about."""
PLAIN, RECOMPUTED, SECOND_ORDER = 3.0, 4.0, 7.0
"""Forward passes of a network that one gradient through it takes: with everything stored; with every step done
again from its stored state; and that through a guide, whose own gradient is differentiated (six to eight)."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An estimate; queries and bytes are upper bounds, as successes may end attacks early.

    Attributes:
        units, images: what is dispatched, and the images in it, counted once a cell.
        queries: that attacks ask at most.
        harness: evaluations for clean images, noise controls and final scores.
        gradients: gradients of single images that attacks take, every draw of a random victim counted.
        restorer, denoiser: forward passes of single images that all of it comes to, empty slots included.
        device_hours: of one host; None where the target was not probed.
        kept_bytes: records, attacked images and states.
    """

    units: int
    images: int
    queries: int
    harness: int
    gradients: int
    restorer: int
    denoiser: int
    device_hours: float | None
    kept_bytes: int

    def lines(self) -> list[str]:
        """The estimate in words."""
        time = "time unknown: a metered target is not probed"
        if self.device_hours is not None:
            time = f"about {describe_hours(self.device_hours)} of one host"
        return [
            f"to do: {self.units:,} units, {self.images:,} attacked images; {self.gradients:,} gradients, "
            f"at most {self.queries:,} queries and {self.harness:,} evaluations of the harness",
            f"in forward passes of one image: {self.restorer:,} of the restorer and {self.denoiser:,} of denoisers "
            "(a gradient counts for 3, 4 with recompute, 7 through a guide)",
            f"cost: {time}; at most {describe_bytes(self.kept_bytes)} on disk",
        ]


@dataclass
class _Work:
    """Forward passes of full micro-batches: of the restorer, and whole purifications by defence."""

    restorer: float = 0.0
    purified: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def evaluate(self, defence: int, batches: float) -> None:
        """So many batches through the victim, without gradient."""
        self.restorer += batches
        self.purified[defence] += batches

    def differentiate(self, defence: int, batches: float, price: float) -> None:
        """So many batches through the victim, with a gradient."""
        self.restorer += PLAIN * batches
        self.purified[defence] += price * batches


def gradient_price(purifier: Purifier | None, mode: str) -> float:
    """c: what one gradient takes of the purifier, in purifications without a gradient.

    1 where the purifier only runs forward (``bpda``), 4 where every step is done again in backward, 7 where the
    gradient of a guide is differentiated too; ``surrogate-k`` in proportion to its steps. Nothing for the
    undefended model, and for ``forward-noise``, which calls no network.
    """
    if purifier is None or mode == "forward-noise":
        return 0.0
    if mode == "bpda":
        return 1.0
    guided = purifier.offers("full-no-guide") and mode != "full-no-guide"
    price = SECOND_ORDER if guided else RECOMPUTED
    if not is_surrogate(mode):
        return price
    steps = getattr(purifier, "steps", None) or purifier.calls or 1
    return price * min(1.0, int(mode.removeprefix(SURROGATE)) / steps)


def attacked_victims(units: Iterable[Unit]) -> list[int]:
    """Victims whose speed matters: those that are attacked, and those that are scored."""
    return sorted({d for unit in units for d in (unit.victim, *(cell.defence for cell in unit.cells))})


def is_long(setup: HostSetup, units: Sequence[Unit]) -> bool:
    """Whether a run is so long that its cost should be known before it begins; nothing is measured for it."""
    work = _work(setup.plan, units, setup.resolved.micro_batch)
    passes = work.restorer + DENOISER_PASSES * _denoiser_calls(setup.plan, work)
    return passes * setup.resolved.micro_batch > LONG


def estimate(setup: HostSetup, units: Sequence[Unit], seconds: Mapping[int, float] | None) -> Cost:
    """Cost of what is to be done.

    Args:
        setup: the run, with what was resolved.
        units: what is to be done, with their caps.
        seconds: of one full batch, for the victims of `attacked_victims`; None where nothing was probed.
    """
    plan, slots = setup.plan, setup.resolved.micro_batch
    work = _work(plan, units, slots)
    hours = None
    if seconds is not None:
        # Where the undefended model has nothing to do, the restorer's share is counted with the purifier's.
        bare = seconds.get(_undefended(plan), 0.0)
        purified = sum(count * max(0.0, seconds[d] - bare) for d, count in work.purified.items())
        hours = (work.restorer * bare + purified) / 3600
    return Cost(
        units=len(units),
        images=sum(len(unit.image_ids) for unit in units),
        queries=sum(unit_queries(plan, unit) for unit in units),
        harness=sum(len(unit.image_ids) * _scoring(plan, cell.defence) for unit in units for cell in unit.cells),
        gradients=sum(unit_gradients(plan, unit) for unit in units),
        restorer=round(work.restorer * slots),
        denoiser=round(_denoiser_calls(plan, work) * slots),
        device_hours=hours,
        kept_bytes=_kept_bytes(setup, units),
    )


def unit_queries(plan: Plan, unit: Unit) -> int:
    """Queries that the attack of a unit asks at most."""
    attack = plan.attacks[unit.attack].attack
    if not isinstance(attack, QueryAttack):
        return 0
    return sum(unit.caps) if unit.caps else len(unit.image_ids) * attack.restarts * attack.budget


def unit_gradients(plan: Plan, unit: Unit) -> int:
    """Gradients of single images that the attack of a unit takes, every draw of a random victim counted."""
    attack = plan.attacks[unit.attack].attack
    draws = attack.eot if isinstance(attack, GradientAttack) and _is_random(plan, unit.victim) else 1
    return len(unit.image_ids) * _iterations(attack) * draws


def _iterations(attack: Attack) -> int:
    """Gradient steps over all restarts; an attack tells three passes a step."""
    if not isinstance(attack, GradientAttack):
        return 0
    return attack.model_copy(update={"eot": 1}).passes // 3


def _work(plan: Plan, units: Sequence[Unit], slots: int) -> _Work:
    work, known = _Work(), set[tuple[object, ...]]()
    for unit in units:
        _add_attack(work, plan, unit, slots)
        batches = plan.attacks[unit.attack].attack.restarts * math.ceil(len(unit.image_ids) / slots)
        for cell in unit.cells:
            work.evaluate(cell.defence, _draws(plan, cell.defence) * batches)
            for what, draws in _remembered(plan, cell):
                fresh = [i for i in unit.image_ids if (what, cell.defence, i) not in known]
                known |= {(what, cell.defence, i) for i in fresh}
                work.evaluate(cell.defence, draws * math.ceil(len(fresh) / slots))
    return work


def _add_attack(work: _Work, plan: Plan, unit: Unit, slots: int) -> None:
    attack, purifier = plan.attacks[unit.attack].attack, plan.defences[unit.victim].purifier
    if isinstance(attack, QueryAttack):
        work.evaluate(unit.victim, unit_queries(plan, unit) / slots)  # freed slots are filled again
    if not isinstance(attack, GradientAttack):
        return
    random, steps = _is_random(plan, unit.victim), _iterations(attack)
    draws = attack.eot if random else 1
    batches = steps * math.ceil(len(unit.image_ids) * draws / slots)
    work.differentiate(unit.victim, batches, gradient_price(purifier, unit.grad_mode))
    if random:  # iterates are compared on draws of their own, or on the frozen ones
        compared = attack.eot if attack.frozen_noise else attack.select_draws
        work.evaluate(unit.victim, steps * math.ceil(len(unit.image_ids) * compared / slots))


def _remembered(plan: Plan, cell: Cell) -> list[tuple[object, int]]:
    """What a host evaluates once a defence and image, and how often: clean images, and noise of one size."""
    attack = plan.attacks[cell.attack].attack
    size: object = ("noise", attack.norm, attack.eps) if attack.eps is not None else ("noise", cell.id)
    return [("clean", _draws(plan, cell.defence)), (size, CONTROL_DRAWS)]


def _denoiser_calls(plan: Plan, work: _Work) -> float:
    calls = {d: purifier.calls for d in work.purified if (purifier := plan.defences[d].purifier) is not None}
    return sum(count * calls.get(d, 0) for d, count in work.purified.items())


def _undefended(plan: Plan) -> int:
    return next(d for d, defence in enumerate(plan.defences) if defence.purifier is None)


def _is_random(plan: Plan, defence: int) -> bool:
    purifier = plan.defences[defence].purifier
    return purifier is not None and purifier.random


def _draws(plan: Plan, defence: int) -> int:
    """Evaluation draws of an image."""
    purifier = plan.defences[defence].purifier
    return purifier.samples if purifier is not None and purifier.random else 1


def _scoring(plan: Plan, defence: int) -> int:
    """Evaluations of the harness for one image of a cell, as if each cell ran alone."""
    return 2 * _draws(plan, defence) + CONTROL_DRAWS


def _kept_bytes(setup: HostSetup, units: Sequence[Unit]) -> int:
    sizes: dict[str, int] = {}
    total = 0
    for unit in units:
        for image_id in unit.image_ids:
            if image_id not in sizes:
                sizes[image_id] = 4 * math.prod(setup.dataset.load(image_id).degraded.shape)
            pictures = 0 if setup.spec.run.save == "none" else 2
            states = isinstance(setup.plan.attacks[unit.attack].attack, QueryAttack)
            total += (pictures + states) * sizes[image_id] + RECORD_BYTES * len(unit.cells)
    return total


def describe_hours(hours: float) -> str:
    """Hours, minutes or seconds, whichever reads best."""
    seconds = hours * 3600
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{hours:,.1f} h"


def describe_bytes(count: int) -> str:
    """Bytes in a unit that reads well."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
