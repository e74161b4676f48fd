"""The plan of a run from its files alone: no model is loaded, no image is read."""

from __future__ import annotations

from typing import Any

from udc_ray.errors import RunDirectoryError
from udc_ray.fingerprint import cells_key
from udc_ray.plan import Plan, make_plan
from udc_ray.rundir import DOCUMENT, ENVIRONMENT, RunDirectory
from udc_ray.tasks import task_of


def recorded_document(run: RunDirectory) -> dict[str, Any]:
    """What the fingerprint is the hash of, as the run keeps it."""
    document = run.read_json(DOCUMENT)
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise RunDirectoryError(f"{run.storage}/{DOCUMENT} is missing or no document", "it was removed or changed")
    return document


def recorded_plan(run: RunDirectory) -> Plan:
    """Attacks, defences and cells of a run, with the cell ids that its records hold.

    Raises:
        UserError: a file of the run, or a weight file of a defence, cannot be read.
    """
    spec = run.header.spec
    return make_plan(spec, cells_key(recorded_document(run)), task_of(spec.objective).name)


def recorded_images(run: RunDirectory) -> int:
    """How many images a run has, as it noted; else as many as image files were hashed for it."""
    environment = run.read_json(ENVIRONMENT)
    noted = environment.get("images") if isinstance(environment, dict) else None
    if isinstance(noted, int):
        return noted
    names = [key.removeprefix("data:") for key in recorded_document(run)["files"] if key.startswith("data:")]
    return sum(not name.endswith(":truth") and not name.startswith(("psf:", "display:")) for name in names)
