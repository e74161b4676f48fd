"""Rows of units that failed: one per image, with the error and null scores."""

from __future__ import annotations

from typing import Any

from udc_ray.attacks.query import QueryAttack
from udc_ray.plan import Cell, Unit
from udc_ray.records import Record
from udc_ray.setup import HostSetup
from udc_ray.tasks import get_task


def cell_columns(setup: HostSetup, cell: Cell) -> dict[str, Any]:
    """Columns that all records of a cell share."""
    entry = setup.plan.attacks[cell.attack]
    return {
        "run_fingerprint": setup.fingerprint,
        "cell": cell.id,
        "label": cell.label,
        "model": setup.model_name,
        "data": setup.dataset.name,
        "attack": entry.name,
        "norm": entry.attack.norm,
        "eps": entry.attack.eps,
        "budget": entry.attack.budget if isinstance(entry.attack, QueryAttack) else None,
        "defense": cell.defence_label,
        "grad_mode": cell.grad_mode,
        "eot": getattr(entry.attack, "eot", 1),
        "seed": setup.spec.seed,
        "objective": entry.attack.objective or setup.spec.objective,
        **get_task(setup.plan.task).measured_by(setup.spec),
    }


def failed_records(setup: HostSetup, unit: Unit, error: str, host: str, retries: int) -> list[Record]:
    """One row for every record that the unit owed."""
    return [
        Record(
            **cell_columns(setup, cell),
            image_id=image_id,
            restart=restart,
            sample=sample,
            stop_reason="error",
            host=host,
            retries=retries,
            error=error,
        )
        for cell in unit.cells
        for image_id in unit.image_ids
        for _, _, restart, sample in setup.plan.keys(cell, image_id)
    ]
