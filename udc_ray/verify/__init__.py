"""An audit of a run: every published number that its files allow is recomputed, and the others are named.

Nothing is written and no target is called, unless rescoring is asked for.
"""

from __future__ import annotations

from udc_ray.rundir import RunDirectory
from udc_ray.verify.accounts import check_accounts
from udc_ray.verify.artifacts import check_artifacts
from udc_ray.verify.base import Verification
from udc_ray.verify.budgets import check_budgets
from udc_ray.verify.curves import check_curves
from udc_ray.verify.evidence import read_evidence
from udc_ray.verify.fingerprints import check_fingerprints
from udc_ray.verify.parts import check_parts
from udc_ray.verify.published import check_published
from udc_ray.verify.rescoring import check_scores
from udc_ray.verify.states import check_states

__all__ = ["verify"]


def verify(run: RunDirectory, *, rescore: bool = False) -> Verification:
    """Recompute every published number of a run from its files.

    Args:
        run: opened with `RunDirectory.read`.
        rescore: also score saved images again, on owned targets.
    """
    evidence = read_evidence(run)
    findings = [
        check_parts(evidence),
        check_published(evidence),
        check_fingerprints(evidence),
        check_budgets(evidence),
        check_curves(evidence),
        check_states(evidence),
        check_accounts(evidence),
        check_artifacts(evidence),
        check_scores(evidence, rescore),
    ]
    return Verification(run=run.storage.name, findings=tuple(f for f in findings if f is not None))
