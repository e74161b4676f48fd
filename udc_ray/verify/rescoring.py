"""Saved images scored again on owned targets, with the very code that scored them first."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import torch

from udc_ray.crafted import Crafted
from udc_ray.errors import UserError
from udc_ray.fingerprint import first_difference
from udc_ray.host import Host
from udc_ray.metered.endpoint import is_target
from udc_ray.plan import Cell, Unit
from udc_ray.prepare import Prepared, prepare
from udc_ray.probe import Resolved
from udc_ray.records import VOLATILE, Record
from udc_ray.results import Adversarial
from udc_ray.scoring import CellScores
from udc_ray.spec import canonical_json
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence, Triple, name_of

NOT_SCORED = frozenset(
    {
        *VOLATILE,
        "budget",
        "queries",
        "grad_evals",
        "queries_harness",
        "stop_reason",
        "run_fingerprint",
        "error",
        "label",
        "grad_zero_share",
        "grad_dead_steps",
        "loss_move",
        "lost",
    }
)
"""Columns that scoring does not compute."""
SCORES = tuple(f.name for f in fields(Record) if f.name not in NOT_SCORED)
QUALITIES = tuple(name for name in SCORES if name.startswith(("psnr_", "ssim_", "lpips_", "score_")))


def check_scores(evidence: Evidence, wanted: bool) -> Finding:
    """Scores of saved images, compared to the bit; without `wanted` they are only counted as gaps.

    Args:
        evidence: the run.
        wanted: whether targets may be called.
    """
    audit = Audit("scores")
    reason = "they need the target: give --rescore" if not wanted else _why_not(evidence)
    if reason:
        audit.gap("psnr, ssim, lpips and task scores", _count(evidence, set()), reason)
        return audit.finding()
    try:
        prepared = prepare(evidence.spec)
    except UserError as error:
        audit.gap("psnr, ssim, lpips and task scores", _count(evidence, set()), f"not to be had: {error.what}")
        return audit.finding()
    field = first_difference(evidence.document or {}, json.loads(canonical_json(prepared.document)))
    if field is not None:
        why = f"model, data or device differ from those of the run, in {field}"
        audit.gap("psnr, ssim, lpips and task scores", _count(evidence, set()), why)
        return audit.finding()
    scored = _rescore(audit, evidence, prepared)
    audit.gap("scores of images that were not saved", _count(evidence, scored), "the attack would have to run again")
    return audit.finding()


def _why_not(evidence: Evidence) -> str:
    if is_target(evidence.spec.model.name):
        return "the target is metered, and is asked by campaigns only"
    return "" if evidence.plan is not None else "the plan of the run cannot be made again here"


def _rescore(audit: Audit, evidence: Evidence, prepared: Prepared) -> set[Triple]:
    """Score every saved image through its own cell and the blind cells that borrow it."""
    host = Host(prepared.setup, device=prepared.device, restorer=prepared.restorer)
    values = evidence.run.header.resolved
    if values is not None:
        host.configure(Resolved(**{**values, "notes": tuple(values.get("notes", ()))}))
    saved: dict[tuple[str, int], list[Adversarial]] = {}
    for image in evidence.images():
        saved.setdefault((image.cell, image.restart), []).append(image)
    scored: set[Triple] = set()
    for cell in prepared.setup.plan.cells:
        source = _source(prepared, cell)
        for (owner, restart), images in sorted(saved.items()):
            mine = [i for i in images if owner == source and (cell.id, i.image_id, restart) in evidence.triples]
            if mine:
                scored |= _cell(audit, evidence, host, (cell, mine))
    return scored


def _source(prepared: Prepared, cell: Cell) -> str:
    """The cell under which the images are saved that a cell scores."""
    plan = prepared.setup.plan
    if cell.grad_mode != "blind":
        return cell.id
    same = (c.id for c in plan.cells if c.attack == cell.attack and plan.defences[c.defence].purifier is None)
    return next(same, cell.id)


def _cell(audit: Audit, evidence: Evidence, host: Host, what: tuple[Cell, list[Adversarial]]) -> set[Triple]:
    cell, images = what
    items = [_crafted(image, evidence.triples[(cell.id, image.image_id, image.restart)][0]) for image in images]
    unit = Unit(
        attack=cell.attack,
        victim=cell.defence,
        grad_mode=cell.grad_mode,
        cells=(cell,),
        image_ids=tuple(item.image_id for item in items),
    )
    made = {record.key: record for record in CellScores(host, unit, cell).records(items)}
    for record in evidence.records:
        again = made.get(record.key)
        if again is not None:
            for column in SCORES:
                where = f"{name_of(record.key[:3])}, sample {record.sample}, {column}"
                audit.same(where, getattr(record, column), getattr(again, column), "differs when it is scored again")
    return {(cell.id, item.image_id, item.restart) for item in items}


def _crafted(image: Adversarial, record: Record) -> Crafted:
    return Crafted(
        image_id=image.image_id,
        restart=image.restart,
        x_adv_CHW=torch.from_numpy(image.x_adv),
        queries=record.queries or 0,
        grad_evals=record.grad_evals or 0,
        stop_reason=record.stop_reason,
        seconds=0.0,
    )


def _count(evidence: Evidence, without: set[Triple]) -> int:
    """Scores that the records hold, less those of some triples."""
    rows = [r for triple, rows in evidence.triples.items() if triple not in without for r in rows]
    return sum(_known(getattr(r, name)) for r in rows for name in QUALITIES)


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
