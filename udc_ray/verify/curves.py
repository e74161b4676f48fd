"""Curves of query attacks against the counts and the qualities of their records."""

from __future__ import annotations

import math

from udc_ray.checks.integrity import NORM_TOLERANCE
from udc_ray.errors import RunDirectoryError
from udc_ray.records import Record
from udc_ray.report.curves import Curve, Meaning, meaning_of, psnr
from udc_ray.tasks.classification import MISSED
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence, Triple, name_of

END_DB = 1e-4
"""Difference allowed between the end of a curve and the evaluation of the same image on the same victim."""
DISTANCE = 1e-6
"""Relative difference allowed between the end of a curve of distances and the record's norm."""


def check_curves(evidence: Evidence) -> Finding:
    """Curves improve at every point, end within what was asked, and end where the record says."""
    audit = Audit("curves")
    try:
        curves = evidence.curves
    except RunDirectoryError as error:
        audit.holds("state", False, error.what)
        return audit.finding()
    points = 0
    meanings = {cell: meaning_of(records, evidence.spec) for cell, records in evidence.cells.items()}
    for triple, rows in evidence.triples.items():
        if rows[0].budget is None or rows[0].grad_mode == "blind":
            continue
        curve = curves.get("/".join(map(str, triple)))
        if curve is None:
            _missing(audit, triple, rows[0], meanings[triple[0]])
            continue
        points += len(curve)
        meaning = meanings[triple[0]]
        if _shape(audit, triple, rows[0], curve, falling=meaning.unit == "distance"):
            _end(audit, triple, rows, curve, meaning)
    audit.gap("points of the curves", points, "the attack would have to ask again; only their order and ends are held")
    return audit.finding()


def _missing(audit: Audit, triple: Triple, record: Record, meaning: Meaning) -> None:
    """A search on PSNR that found something has a curve; one that found no success may have none."""
    harmed = record.psnr_adv is not None and record.psnr_clean is not None and record.psnr_adv < record.psnr_clean
    if meaning.metric == "psnr_adv" and meaning.anchored:
        audit.holds(f"curve: {name_of(triple)}", not (record.queries and harmed), "the curve is missing")
    else:
        audit.gap("searches without a curve", 1, "they may have found nothing")


def _shape(audit: Audit, triple: Triple, record: Record, curve: Curve, *, falling: bool) -> bool:
    where = f"curve: {name_of(triple)}"
    asked, values = [q for q, _ in curve], [-v if falling else v for _, v in curve]
    sound = audit.holds(where, bool(curve), "it is empty")
    sound &= audit.holds(where, all(math.isfinite(v) for v in values), "values that are not finite")
    sound &= audit.holds(where, all(a < b for a, b in zip(asked, asked[1:], strict=False)), "queries do not grow")
    rising = all(a < b for a, b in zip(values, values[1:], strict=False))
    sound &= audit.holds(where, rising, "the best value does not improve at every point")
    audit.numbers += 2 * max(len(curve) - 1, 0)
    if sound:
        within = asked[0] >= 1 and asked[-1] <= (record.queries or 0)
        sound = audit.holds(where, within, f"points lie outside the {record.queries} queries that were asked")
    return sound


def _end(audit: Audit, triple: Triple, rows: list[Record], curve: Curve, meaning: Meaning) -> None:
    """The last point is the image that was kept; on a random victim it is another draw."""
    where = f"end of the curve: {name_of(triple)}"
    last, attacked = curve[-1][1], rows[0].psnr_adv
    if meaning.unit == "distance":
        norm = rows[0].linf if rows[0].norm == "linf" else rows[0].l2
        norm, slack = math.nan if norm is None else norm, DISTANCE * max(last, 1e-9)
        if meaning.metric == "eps":
            audit.holds(
                where, norm <= last + NORM_TOLERANCE, f"the image's norm {norm:.9g} is above the eps {last:.9g} found"
            )
        else:
            audit.near(where, norm, last, slack)
    elif meaning.metric == "score_adv" and rows[0].score_adv is not None:
        audit.same(where, rows[0].score_adv, float(last < MISSED), "the margin that the attack saw says otherwise")
    elif meaning.metric == "psnr_adv" and attacked is not None:
        audit.near(where, attacked, psnr(last), END_DB)
    else:
        audit.gap("ends of curves", 1, meaning.note or "the score is no published number")
