from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from record_factory import make_record

from udc_ray.fingerprint import fingerprint_document, hash_document
from udc_ray.records import Record
from udc_ray.results import Adversarial, UnitResult
from udc_ray.rundir import RunDirectory
from udc_ray.spec import RunSpec, parse_spec

SESSION = {"versions": {"udc-ray": "0.1.0", "torch": "2.13.0"}, "start": "2026-01-01T00:00:00Z"}
FILES = {"model": "a" * 64}


def spec(**changes: Any) -> RunSpec:
    return parse_spec({"attacks": [{"name": "square", "budget": 100}], "seed": 3} | changes)


def document(run: RunSpec) -> dict[str, Any]:
    return fingerprint_document(run, FILES, "cpu")


FINGERPRINT = hash_document(document(spec()))


def open_run(out: Path | str, **changes: Any) -> RunDirectory:
    run = spec(**changes)
    return RunDirectory.open(str(out), run, document(run), SESSION)


def record(image: str = "0001", **columns: Any) -> Record:
    return make_record(**({"run_fingerprint": FINGERPRINT, "cell": "c", "image_id": image} | columns))


def image_of(r: Record, size: int = 4) -> Adversarial:
    x = np.full((3, size, size), 0.25, dtype=np.float32)
    return Adversarial(cell=r.cell, image_id=r.image_id, restart=r.restart, x=x, x_adv=x + np.float32(r.psnr_adv or 0))


def unit(*records: Record, **others: Any) -> UnitResult:
    return UnitResult(records=list(records), **others)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}
