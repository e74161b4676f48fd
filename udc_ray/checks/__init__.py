"""Automatic tests of whether an attack, or a claim about robustness, can be believed.

The numbers in the names are those of the project's checklist of adaptive evaluation (Carlini et
al. 2019, "On evaluating adversarial robustness"; Tramer et al. 2020; and additions for restoration).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from udc_ray.checks import (
    claims,
    control,
    draws,
    effort,
    gradients,
    integrity,
    probes,
    selection,
    strength,
    threats,
)
from udc_ray.checks.base import CheckResult, Verdict, follows_fresh_noise
from udc_ray.checks.readings import NOTHING, Measured, measured
from udc_ray.errors import SpecError, did_you_mean
from udc_ray.metrics.statistics import CellRecords, group_cells
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.records import Record
from udc_ray.spec import RunSpec

__all__ = ["ON_REQUEST", "CheckResult", "Measured", "Verdict", "measured", "run_checks"]

ON_REQUEST = ("budget", "unbounded")


def run_checks(records: Iterable[Record], spec: RunSpec, beside: Measured = NOTHING) -> list[CheckResult]:
    """Make every check that the records and what was measured beside them allow.

    Args:
        records: the run's records, those of failed units included.
        spec: the run; names the defences and the checks on request.
        beside: what the probes of the run found; `measured` reads it from environment.json.

    Returns:
        The results in the order of their numbers.
    """
    for name in spec.checks:
        if name not in ON_REQUEST:
            raise SpecError(f"unknown check {name!r} in checks", change=did_you_mean(name, ON_REQUEST))
    # Sorted: the checks of a run do not depend on the order in which its units ended.
    cells = group_cells(sorted(records, key=lambda r: (r.label, r.key)))
    random = _random_defences(spec)
    found = [
        *_of_records(cells, spec, random),
        *gradients.available(cells, beside),
        *gradients.vanishing(cells, beside, random),
        *gradients.recomputed(cells, beside),
        *gradients.guide_complete(cells, beside),
        *draws.enough_draws(cells, beside),
        *draws.frozen_noise(cells, beside),
        *threats.same_target(cells, beside),
        *threats.surrogate_gap(cells, beside),
        *gradients.parity(cells, beside),
        *selection.exposed(cells, spec, beside),
        *gradients.inner_gradients(cells, beside),
    ]
    found += control.known_broken(cells, found)
    return sorted(found, key=lambda one: int(one.check[:2]))


def _of_records(cells: Sequence[CellRecords], spec: RunSpec, random: Collection[str]) -> list[CheckResult]:
    """The checks that records and spec suffice for."""
    earnest = [c for c in cells if follows_fresh_noise(c)]
    return [
        *threats.threat_complete(cells, random),
        *integrity.clean_metrics(cells),
        *integrity.within_budget(cells),
        *integrity.randomness(cells, random),
        *strength.iterative(earnest),
        *strength.white_box(cells),
        *strength.adaptive(earnest),
        *probes.budget(cells, "budget" in spec.checks),
        *effort.converged(earnest),
        *integrity.best_iterate(cells),
        *probes.unbounded(cells, "unbounded" in spec.checks),
        *effort.restarts(cells),
        *effort.losses(cells),
        *claims.breakable(cells),
        *draws.enough_evaluations(cells, spec.run.resubmissions, random),
        *integrity.sample_size(cells),
        *effort.beyond_lp(cells),
        *claims.quality_cost(cells),
    ]


def _random_defences(spec: RunSpec) -> set[str]:
    names = {entry.name for entry in spec.defenses if entry.name != "none"}
    return {name for name in names if PURIFIERS.get(name).random}
