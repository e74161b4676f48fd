"""Saved images: their norms, ball, box and grid, and which of them should be there."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from udc_ray.attacks.threat import l2_norm, linf_norm
from udc_ray.checks.integrity import NORM_TOLERANCE
from udc_ray.errors import RunDirectoryError
from udc_ray.records import Record
from udc_ray.results import Adversarial, Floats
from udc_ray.tasks import task_of
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence, Triple, name_of

L2_TOLERANCE = 1e-9
"""Relative; the sum over pixels may be grouped otherwise with another number of threads."""
GRID_TOLERANCE = 1e-6
"""Distance from a level, in units of the [0, 1] image; a few steps of float32."""


def check_artifacts(evidence: Evidence) -> Finding:
    """Every saved image against its record and its threat, and that all that should be saved is there."""
    audit = Audit("saved adversarial images")
    seen: set[Triple] = set()
    clean: dict[str, NDArray[np.float32]] = {}
    try:
        for image in evidence.images():
            seen.add((image.cell, image.image_id, image.restart))
            record = evidence.triples.get((image.cell, image.image_id, image.restart), [None])[0]
            if record is not None:
                _image(audit, evidence, image, record)
            first = clean.setdefault(image.image_id, image.x)
            audit.holds(
                f"artifacts: {image.image_id}", np.array_equal(first, image.x), "two cells start from different images"
            )
    except RunDirectoryError as error:
        audit.holds("artifacts", False, error.what)
        return audit.finding()
    _completeness(audit, evidence, seen)
    return audit.finding()


def _image(audit: Audit, evidence: Evidence, image: Adversarial, record: Record) -> None:
    where = f"artifacts: {name_of((image.cell, image.image_id, image.restart))}"
    if not audit.holds(where, bool(np.isfinite(image.x_adv).all()), "values that are not finite"):
        return
    delta = (torch.from_numpy(image.x_adv).double() - torch.from_numpy(image.x))[None]
    linf, l2 = float(linf_norm(delta)), float(l2_norm(delta))
    audit.same(f"{where}, linf", record.linf, linf)
    audit.near(f"{where}, l2", math.nan if record.l2 is None else record.l2, l2, L2_TOLERANCE * max(l2, 1e-30))
    if record.eps is not None:
        norm = linf if record.norm == "linf" else l2
        inside = norm - record.eps <= NORM_TOLERANCE * max(1.0, record.eps)
        audit.holds(where, inside, f"{record.norm} norm {norm:.9g} is outside eps {record.eps:.9g}")
    audit.holds(where, bool(((image.x_adv >= 0) & (image.x_adv <= 1)).all()), "values outside the box [0, 1]")
    depth = _depth(evidence, image.cell)
    if isinstance(depth, int):
        off = int((~_on_grid(image.x_adv, image.x, depth)).sum())
        audit.holds(where, off == 0, f"{off} values are off the {depth}-bit grid")


def _on_grid(x_adv_CHW: Floats, x_CHW: Floats, bits: int) -> NDArray[np.bool_]:
    """Values on the grid of a depth; those that were left at an untouched value off the grid may stay."""
    levels, values = 2**bits - 1, x_adv_CHW.astype(np.float64)
    near: NDArray[np.bool_] = np.abs(values - np.rint(values * levels) / levels) <= GRID_TOLERANCE
    kept: NDArray[np.bool_] = near | (x_adv_CHW == x_CHW)
    return kept


def _depth(evidence: Evidence, cell: str) -> object:
    planned = evidence.planned.get(cell)
    return None if planned is None or evidence.plan is None else evidence.plan.attacks[planned.attack].attack.depth


def _completeness(audit: Audit, evidence: Evidence, seen: set[Triple]) -> None:
    """With `save: all` every restart is kept, with `best` the one with the lowest attacked quality."""
    own = {triple: rows for triple, rows in evidence.triples.items() if rows[0].grad_mode != "blind"}
    save = evidence.spec.run.save
    by_image: dict[tuple[str, str], list[Triple]] = {}
    for triple in own:
        by_image.setdefault(triple[:2], []).append(triple)
    # What is saved may be changed by a resume; then only the last wish is known.
    for triples in by_image.values() if not evidence.environment.get("earlier") else ():
        kept = [t for t in triples if t in seen]
        if save == "all":
            for triple in triples:
                audit.holds(f"artifacts: {name_of(triple)}", triple in seen, "was to be saved (save: all) and is not")
        elif save == "best" and audit.holds(
            f"artifacts: {triples[0][1]} of cell {triples[0][0]}", bool(kept), "was to be saved (save: best) and is not"
        ):
            lowest = min(_quality(own[t]) for t in triples)
            best = any(_quality(own[t]) == lowest for t in kept)
            audit.holds(f"artifacts: {name_of(kept[0])}", best, "another restart has the lowest attacked quality")
    unsaved = sum(triple not in seen for triple in own)
    audit.gap("norms of images that were not saved", 2 * unsaved, f"the spec says save: {save}")


def _quality(rows: list[Record]) -> float:
    """Attacked quality by which restarts are compared, mean over samples."""
    column = task_of(rows[0].objective).quality
    known = [value for r in rows if (value := getattr(r, column)) is not None]
    return sum(known) / len(known) if known else math.inf
