"""Automatic tests of whether an attack, or a claim about robustness, can be believed.

The numbers in the names are those of the project's checklist of adaptive evaluation (Carlini et
al. 2019, "On evaluating adversarial robustness"; Tramer et al. 2020; and additions for restoration).
"""

from __future__ import annotations

from collections.abc import Iterable

from udc_ray.checks import claims, integrity, probes, strength
from udc_ray.checks.base import CheckResult, Verdict
from udc_ray.errors import SpecError, did_you_mean
from udc_ray.metrics.statistics import group_cells
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.records import Record
from udc_ray.spec import RunSpec

__all__ = ["ON_REQUEST", "CheckResult", "Verdict", "run_checks"]

ON_REQUEST = ("budget", "unbounded")


def run_checks(records: Iterable[Record], spec: RunSpec) -> list[CheckResult]:
    """Make every check that the records allow.

    Args:
        records: the run's records, those of failed units included.
        spec: the run; names the defences and the checks on request.
    """
    for name in spec.checks:
        if name not in ON_REQUEST:
            raise SpecError(f"unknown check {name!r} in checks", change=did_you_mean(name, ON_REQUEST))
    # Sorted: the checks of a run do not depend on the order in which its units ended.
    cells = group_cells(sorted(records, key=lambda r: (r.label, r.key)))
    return [
        *integrity.clean_metrics(cells),
        *integrity.within_budget(cells),
        *integrity.randomness(cells, _random_defences(spec)),
        *strength.iterative(cells),
        *strength.white_box(cells),
        *strength.adaptive(cells),
        *probes.budget(cells, "budget" in spec.checks),
        *integrity.best_iterate(cells),
        *probes.unbounded(cells, "unbounded" in spec.checks),
        *claims.breakable(cells),
        *integrity.sample_size(cells),
        *claims.quality_cost(cells),
    ]


def _random_defences(spec: RunSpec) -> set[str]:
    names = {entry.name for entry in spec.defenses if entry.name != "none"}
    return {name for name in names if PURIFIERS.get(name).random}
