"""summary.json and checks.json, made again from the parts and compared value by value."""

from __future__ import annotations

import json
from typing import Any

from udc_ray.checks import measured, run_checks
from udc_ray.errors import UserError
from udc_ray.report.build import summarise
from udc_ray.rundir import ENVIRONMENT, SELECTION
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence

SUMMARY, CHECKS = "summary.json", "checks.json"


def check_published(evidence: Evidence) -> Finding:
    """Every mean, interval, rate, note and verdict that was printed."""
    audit = Audit("summary.json and checks.json")
    if not evidence.records:
        audit.gap(f"{SUMMARY}, {CHECKS}", 1, "no records that could be summarised")
        return audit.finding()
    try:
        run = evidence.run
        beside = measured(run.read_json(ENVIRONMENT), run.read_json(SELECTION))
        checks = run_checks(evidence.records, evidence.spec, beside)
        summary = summarise(evidence.run, evidence.records, checks).to_json()
    except UserError as error:
        audit.holds(SUMMARY, False, f"cannot be made again: {error.what}")
        return audit.finding()
    _compare(audit, evidence, SUMMARY, summary)
    _compare(audit, evidence, CHECKS, [check.to_json() for check in checks])
    return audit.finding()


def _compare(audit: Audit, evidence: Evidence, name: str, made: Any) -> None:
    published = evidence.run.read_json(name)
    if published is None:
        audit.gap(name, 1, "the run has not come to its end")
        return
    # Through JSON on both sides, so that tuples equal lists.
    _walk(audit, name, published, json.loads(json.dumps(made, allow_nan=False)))


def _walk(audit: Audit, where: str, published: Any, made: Any) -> None:
    """Compare two JSON values leaf by leaf."""
    if isinstance(published, dict) and isinstance(made, dict):
        if audit.same(f"{where}: keys", sorted(published), sorted(made)):
            for key in made:
                _walk(audit, f"{where}.{key}", published[key], made[key])
    elif isinstance(published, list) and isinstance(made, list):
        if audit.same(f"{where}: length", len(published), len(made)):
            for number, (one, other) in enumerate(zip(published, made, strict=True)):
                _walk(audit, f"{where}[{number}]{_label(other)}", one, other)
    else:
        audit.same(where, published, made)


def _label(value: Any) -> str:
    """What a row is about, for the place of a mismatch."""
    if not isinstance(value, dict):
        return ""
    words = [str(value[key]) for key in ("label", "check", "metric") if value.get(key)]
    return f" ({', '.join(words)})" if words else ""
