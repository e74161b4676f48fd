"""The fingerprint, what it is the hash of, and the files and cells that it names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from udc_ray.data.open import open_dataset
from udc_ray.errors import UserError, WeightsError
from udc_ray.fingerprint import fingerprint_document, first_difference, hash_document
from udc_ray.hashing import file_sha256
from udc_ray.location import place
from udc_ray.metered.endpoint import is_target
from udc_ray.metrics.perceptual import get_perceptual
from udc_ray.models.zoo import DEFAULT_WEIGHTS
from udc_ray.plan import read_attack, read_defence
from udc_ray.rundir import DOCUMENT
from udc_ray.spec import RunSpec, canonical_json
from udc_ray.tasks import get_task
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence


def check_fingerprints(evidence: Evidence) -> Finding:
    """spec.yaml, fingerprint.json, the rows of all parts, the cells' ids, and the files that can be reached."""
    audit = Audit("fingerprints, cells and hashes of files")
    if not audit.holds(DOCUMENT, evidence.document is not None, "it is missing or no document"):
        return audit.finding()
    document = evidence.document or {}
    fingerprint = evidence.run.header.fingerprint
    audit.same("spec.yaml, fingerprint", fingerprint, hash_document(document), f"is not the hash of {DOCUMENT}")
    _document(audit, evidence)
    for record in evidence.records:
        audit.same(f"parts: {record.image_id} of cell {record.cell}", record.run_fingerprint, fingerprint)
    _cells(audit, evidence)
    _files(audit, evidence.spec, document["files"], _channels(evidence))
    return audit.finding()


def _document(audit: Audit, evidence: Evidence) -> None:
    """fingerprint.json follows from spec.yaml; budgets and what does not decide numbers may differ."""
    kept = evidence.document or {}
    try:
        made = fingerprint_document(evidence.spec, kept["files"], str(kept.get("device_type")))
    except UserError as error:
        audit.gap(DOCUMENT, 1, f"the spec cannot be read any more: {error.what}")
        return
    field = first_difference(kept, json.loads(canonical_json(made)))
    if field is not None and not evidence.same_version:
        audit.gap(DOCUMENT, 1, "the run was made by another version of udc-ray")
        return
    audit.holds(DOCUMENT, field is None, f"spec.yaml says otherwise in {field}")


def _cells(audit: Audit, evidence: Evidence) -> None:
    """Every record belongs to a cell of the plan, and names its attack and defence as the spec does."""
    if evidence.plan is None or not evidence.same_version:
        audit.gap("cell ids", len(evidence.cells), "the plan cannot be made again here")
        return
    for cell, records in evidence.cells.items():
        planned = evidence.planned.get(cell)
        if not audit.holds(f"cell {cell}", planned is not None, "the spec has no such cell") or planned is None:
            continue
        entry, seed = evidence.plan.attacks[planned.attack], evidence.spec.seed
        wanted = {
            "attack": entry.name,
            "norm": entry.attack.norm,
            "eps": entry.attack.eps,
            "defense": planned.defence_label,
            "grad_mode": planned.grad_mode,
            "seed": seed,
            "objective": entry.attack.objective or evidence.spec.objective,
            "protocol": get_task(evidence.plan.task).measured_by(evidence.spec)["protocol"],
        }
        for record in records.records:
            for column, value in wanted.items():
                where = f"{record.image_id} restart {record.restart} of cell {cell}, {column}"
                audit.same(where, getattr(record, column), value)


def _files(audit: Audit, spec: RunSpec, recorded: Mapping[str, str], channels: int | None) -> None:
    """Hashes of weights and images, of the files that are still where the spec says."""
    sources: dict[str, Callable[[], Mapping[str, str]]] = {
        "data:": lambda: open_dataset(spec.data, spec.limit, spec.seed, channels=channels or 3).file_hashes(),
        "model": lambda: _model(spec),
        "perceptual:": lambda: _perceptual(spec),
        "defense:": lambda: _defences(spec),
        "attack:": lambda: _attacks(spec),
    }
    for prefix, read in sources.items():
        names = [name for name in recorded if name.startswith(prefix)]
        try:
            found = {f"{prefix}{name}": value for name, value in read().items()} if names else {}
        except (UserError, OSError) as error:
            audit.gap(f"hashes of {prefix.rstrip(':')} files", len(names), str(error).splitlines()[0])
            continue
        for name in names:
            if name in found:
                audit.same(f"file {name}", recorded[name], found[name], "the file has changed since")
            else:
                audit.gap(f"hash of {name}", 1, "no file of that name; values of a network need it loaded")


def _model(spec: RunSpec) -> dict[str, str]:
    """The hash of the model's weights file, by an empty name; a model is not loaded for it, as loading asks it."""
    if is_target(spec.model.name):
        return {}
    weights = spec.model.params.get("weights")
    if weights is None and spec.model.name == "default":
        return {"": file_sha256(DEFAULT_WEIGHTS)}
    named = weights if weights is not None else spec.model.name if Path(spec.model.name).is_file() else None
    return {} if named is None else {"": file_sha256(place(str(named), WeightsError))}


def _perceptual(spec: RunSpec) -> dict[str, str]:
    perceptual = get_perceptual(spec.perceptual)
    return {} if perceptual is None else perceptual.weight_hashes()


def _defences(spec: RunSpec) -> dict[str, str]:
    found = {}
    for number, entry in enumerate(spec.defenses):
        purifier = read_defence(entry).purifier
        for name, value in purifier.weight_hashes().items() if purifier is not None else ():
            found[f"{number}:{entry.name}:{name}"] = value
    return found


def _attacks(spec: RunSpec) -> dict[str, str]:
    found = {}
    for number, entry in enumerate(spec.attacks):
        for name, value in read_attack(entry).attack.weight_hashes().items():
            found[f"{number}:{entry.name}:{name}"] = value
    return found


def _channels(evidence: Evidence) -> int | None:
    """Colour channels of the images, as a saved one has them."""
    return next((image.x.shape[0] for image in evidence.images()), None)
