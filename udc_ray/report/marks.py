"""What the checks of a run say at its numbers: which of them failed, and which number is only an upper bound."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from udc_ray.checks.base import CheckResult, scale_of
from udc_ray.metrics.statistics import CellRecords, mean_of
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.spec import RunSpec

UPPER_BOUND = "upper bound on robustness, not converged"
"""What stands at the number of an attack that a longer one may beat."""
EOT, CONVERGED = "09-", "16-"
"""How the names of the checks begin that take the mark away."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Marks of all cells.

    Attributes:
        failures: names of the failed checks, by cell.
        passed: beginnings of the names of `EOT` and `CONVERGED` where they passed, by cell.
        random: names of the defences that draw noise.
        curves: whether the run is a campaign, whose curves show how far its attacks came.
    """

    failures: Mapping[str, tuple[str, ...]]
    passed: Mapping[str, frozenset[str]]
    random: frozenset[str]
    curves: bool

    @classmethod
    def read(cls, checks: Sequence[CheckResult], spec: RunSpec) -> Marks:
        """From the results of the checks; what was not checked has not passed."""
        failures: dict[str, tuple[str, ...]] = defaultdict(tuple)
        verdicts: dict[str, dict[str, bool]] = defaultdict(dict)
        for check in checks:
            if check.cell is None:
                continue
            if check.verdict == "fail":
                failures[check.cell] += (check.check,)
            for kind in (EOT, CONVERGED):
                if check.check.startswith(kind):
                    verdicts[check.cell][kind] = verdicts[check.cell].get(kind, True) and check.verdict == "pass"
        names = {entry.name for entry in spec.defenses if entry.name != "none"}
        return cls(
            failures=dict(failures),
            passed={cell: frozenset(k for k, ok in found.items() if ok) for cell, found in verdicts.items()},
            random=frozenset(name for name in names if PURIFIERS.get(name).random),
            curves=spec.campaign,
        )

    def failed(self, *cells: CellRecords) -> tuple[str, ...]:
        """Names of the checks that failed for one cell, in their order, or for any of several, sorted."""
        found = [name for cell in cells for name in self.failures.get(cell.head.cell, ())]
        return tuple(found) if len(cells) == 1 else tuple(sorted(set(found)))

    def bound(self, cells: Sequence[CellRecords]) -> str:
        """`UPPER_BOUND` where the worst of some cells is what an attack reached that may not have converged.

        The strongest of the cells decides: it is what the number is made of. Blind cells and controls alone are
        no attack on the victim, and no bound on its robustness.
        """
        if self.curves or not any(cell.adaptive and cell.kind != "control" for cell in cells):
            return ""
        known = [(mean_of(values), cell) for cell in cells if (values := cell.per_image(scale_of(cell).attacked))]
        if not known:
            return ""
        return "" if self._converged(min(known, key=lambda pair: pair[0])[1]) else UPPER_BOUND

    def _converged(self, cell: CellRecords) -> bool:
        needed = {CONVERGED}
        if cell.head.defense.split()[0] in self.random:  # else one draw is the mean over all
            needed.add(EOT)
        return cell.adaptive and needed <= self.passed.get(cell.head.cell, frozenset())


NO_MARKS = Marks(failures={}, passed={}, random=frozenset(), curves=True)
"""For numbers that no check is about."""
