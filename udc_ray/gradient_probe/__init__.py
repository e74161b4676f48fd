"""Before a run: do gradients pass its victims as their modes promise? Measured on a small crop of one keyed image.

The readings are judged by `udc_ray.checks`; nothing that is measured here enters a number of the run.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from udc_ray.attacks.base import GradientAttack
from udc_ray.checks.readings import Reading
from udc_ray.errors import Interrupted
from udc_ray.gradient_probe import differences, draws, facts
from udc_ray.gradient_probe.double import NoDouble, in_double
from udc_ray.gradient_probe.subject import SIDES, CutGraph, Subject, subject_of
from udc_ray.gradient_probe.subject import met_by_gradients as met_by_gradients
from udc_ray.purifiers.gradients import RecomputeError
from udc_ray.purifiers.victim import Victim

if TYPE_CHECKING:
    from udc_ray.host import Host

EXACT, INCOMPLETE = "full", "full-no-guide"


@runtime_checkable
class Prober(Protocol):
    """A pool whose hosts can take gradients."""

    def probe_gradients(self) -> list[Reading]:
        """Readings of every victim that a gradient attack of the run meets; see `probe_host`."""
        ...


def probe_host(host: Host) -> list[Reading]:
    """Probe every victim and mode that a gradient attack of the run works on, on a host."""
    found = []
    for defence, mode, attacks in met_by_gradients(host.setup.plan):
        started = time.perf_counter()
        reading = _first_that_works(host, defence, mode, attacks)
        found.append(replace(reading, seconds=round(time.perf_counter() - started, 2)))
    return found


def _first_that_works(host: Host, defence: int, mode: str, attacks: tuple[GradientAttack, ...]) -> Reading:
    """A reading of the smallest crop that the victim can be asked with; why there is none, where all fail."""
    failures = []
    for side in SIDES:
        try:
            return probe(subject_of(host, defence, mode, attacks, side))
        except Interrupted:
            raise
        except Exception as error:  # a probe that fails must not end a run: the check says that it was not made
            failures.append(_first_line(error))
    label = next((c.defence_label for c in host.setup.plan.cells if c.defence == defence), "none")
    return Reading(defense=label, grad_mode=mode, failure=failures[-1])


def probe(subject: Subject) -> Reading:
    """Probe one victim in one mode."""
    reading = Reading(
        defense=subject.label,
        grad_mode=subject.mode,
        image_id=subject.image_id,
        side=subject.x_1CHW.shape[-1],
        inner_gradients=facts.inner_gradients(subject),
        **facts.plans(subject),
        **facts.precision(subject.victim),
        **draws.noise_facts(subject),
    )
    try:
        cosines, gradient = draws.eot_cosines(subject)
    except CutGraph:
        return replace(reading, cut=True)
    except RecomputeError as error:
        return replace(reading, recomputed=False, failure=_first_line(error))
    recomputes = hasattr(subject.victim.purifier, "segments") and subject.mode not in ("bpda", "forward-noise")
    reading = replace(
        reading,
        eot=cosines,
        finite=bool(gradient.isfinite().all()),
        zero_share=float((gradient == 0).double().mean()),
        recomputed=True if recomputes else None,
    )
    if not reading.finite:
        return reading
    found = _slopes(subject, guided=bool(reading.inner_gradients))
    if subject.victim.random and reading.repeatable:
        found |= draws.frozen_and_free(subject)
    return replace(reading, **found)


def _slopes(subject: Subject, guided: bool) -> dict[str, Any]:
    """The gradient against differences where it is exact, else against the exact one; and the share of a guide."""
    if subject.mode == EXACT:
        try:
            doubled = in_double(subject.victim, subject.x_1CHW, subject.tape)
        except NoDouble as error:
            return {"no_double": str(error), **(_guided(subject) if guided else {})}
        share = _guided(_doubled(subject, doubled)) if guided else {}
        return {**_compared(subject, doubled), **share}
    exact = _gradient_in(subject, EXACT)
    if exact is None:
        return {}
    own = subject.gradient(subject.x_1CHW, subject.tape)
    gap = {"guide_gap": _guide_gap(subject, exact, own)} if guided and subject.mode == INCOMPLETE else {}
    return {"cosine": draws.cosine(own, exact), **gap}


def _doubled(subject: Subject, victim: Victim) -> Subject:
    return replace(subject, victim=victim, x_1CHW=subject.x_1CHW.double())


def _gradient_in(subject: Subject, mode: str) -> torch.Tensor | None:
    """The gradient in another mode; None where the purifier does not offer it."""
    purifier = subject.victim.purifier
    if purifier is None or not purifier.offers(mode):
        return None
    return subject.gradient(subject.x_1CHW.clone(), subject.tape, replace(subject.victim, grad_mode=mode))


def _guided(subject: Subject) -> dict[str, Any]:
    """The share of a guide in the exact gradient, where there is a guide."""
    without = _gradient_in(subject, INCOMPLETE)
    if without is None:
        return {}
    return {"guide_gap": _guide_gap(subject, subject.gradient(subject.x_1CHW, subject.tape), without)}


def _guide_gap(subject: Subject, whole: torch.Tensor, without: torch.Tensor) -> float:
    directions = differences.unit_directions(subject.x_1CHW, subject.tape.seed)
    return differences.directional_gap(whole, without, directions)


def _compared(subject: Subject, doubled: Victim) -> dict[str, Any]:
    """Central differences of the exact mode's own forward pass, and the score in both precisions."""
    x_1CHW = subject.x_1CHW.double()
    directions = differences.unit_directions(x_1CHW, subject.tape.seed)

    def value(x_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return subject.loss(doubled.differentiable(x_BCHW, subject.draws([0] * len(x_BCHW))))

    gradient = subject.gradient(x_1CHW, subject.draws([0]), doubled)
    compared = differences.compare(value, x_1CHW, gradient, directions)
    return {
        "directions": len(directions),
        "agreeing": compared.agreeing,
        "kinks": compared.kinks,
        "gap": compared.gap,
        "parity": _parity(subject, doubled),
    }


def _parity(subject: Subject, doubled: Victim) -> float | None:
    """Distance in dB between the scores of the deployed victim and of its copy in float64."""
    if subject.objective.task != "restoration":
        return None
    scores = [
        v.evaluate(x, subject.tape)[0]
        for v, x in ((subject.victim, subject.x_1CHW), (doubled, subject.x_1CHW.double()))
    ]
    deployed, reference = (subject.score(output) for output in scores)
    if float(deployed) <= 0 or float(reference) <= 0:
        return None
    return abs(float(10 * torch.log10(deployed / reference)))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
