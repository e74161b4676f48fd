"""All that an audit looks at, read once from the files of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from udc_ray import partfiles
from udc_ray.compaction import compact
from udc_ray.environment import versions
from udc_ray.errors import RunDirectoryError, UserError
from udc_ray.metrics.statistics import CellRecords, group_cells
from udc_ray.plan import Cell, Plan, RecordKey
from udc_ray.recorded import recorded_document, recorded_plan
from udc_ray.records import Record
from udc_ray.results import Adversarial
from udc_ray.rundir import ENVIRONMENT, RunDirectory
from udc_ray.spec import RunSpec

Triple = tuple[str, str, int]
"""Cell, image and restart: what queries are counted for."""


@dataclass(frozen=True)
class Evidence:
    """The files of a run.

    Attributes:
        run: opened with `RunDirectory.read`.
        parts: records by part.
        damaged: parts that cannot be read or belong elsewhere, with the reason.
        records: one a key, as compaction keeps them; empty where parts contradict one another.
        clash: the contradiction, if any.
    """

    run: RunDirectory
    parts: Mapping[str, list[Record]]
    damaged: Mapping[str, str]
    records: list[Record]
    clash: str = ""

    @property
    def spec(self) -> RunSpec:
        """The run's spec."""
        return self.run.header.spec

    @cached_property
    def owners(self) -> dict[RecordKey, str]:
        """The part of every record that counts."""
        owner = {id(r): part for part, records in self.parts.items() for r in records}
        return {r.key: owner[id(r)] for r in self.records}

    @cached_property
    def triples(self) -> dict[Triple, list[Record]]:
        """The samples of every cell, image and restart that did not fail."""
        found: dict[Triple, list[Record]] = {}
        for record in self.records:
            if record.error is None and record.stop_reason != "error":
                found.setdefault(record.key[:3], []).append(record)
        return found

    @cached_property
    def cells(self) -> dict[str, CellRecords]:
        """Records by cell id."""
        return {cell.head.cell: cell for cell in group_cells(self.records)}

    @cached_property
    def document(self) -> dict[str, Any] | None:
        """What the fingerprint is the hash of."""
        try:
            return recorded_document(self.run)
        except RunDirectoryError:
            return None

    @cached_property
    def plan(self) -> Plan | None:
        """The plan; None where the spec or a weight file of a defence cannot be read any more."""
        try:
            return recorded_plan(self.run)
        except UserError:
            return None

    @cached_property
    def planned(self) -> dict[str, Cell]:
        """Cells of the plan by id."""
        return {cell.id: cell for cell in self.plan.cells} if self.plan is not None else {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json, or nothing."""
        found = self.run.read_json(ENVIRONMENT)
        return found if isinstance(found, dict) else {}

    @property
    def same_version(self) -> bool:
        """Whether this udc-ray made the run."""
        made = self.environment.get("versions", {})
        return bool(made.get("udc-ray") == versions().get("udc-ray"))

    @cached_property
    def curves(self) -> partfiles.Curves:
        """``cell/image/restart`` to curve, of the records that count."""
        owners = {f"{cell}/{image}/{restart}": part for (cell, image, restart, _), part in self.owners.items()}
        found = partfiles.read_curves(self.run.storage, dict.fromkeys(owners.values()))
        return {name: found[part][name] for name, part in owners.items() if name in found.get(part, ())}

    def images(self) -> Iterator[Adversarial]:
        """Saved images of the records that count, a file at a time."""
        keys = {(*key[:3], part) for key, part in self.owners.items()}
        parts = dict.fromkeys(self.owners.values())
        for part, images in partfiles.read_images(self.run.storage, parts):
            yield from (i for i in images if (i.cell, i.image_id, i.restart, part) in keys)


def read_evidence(run: RunDirectory) -> Evidence:
    """Read the parts of a run."""
    parts, damaged = partfiles.read_all(run.storage, run.header.fingerprint, {})
    try:
        records, clash = compact(r for records in parts.values() for r in records), ""
    except RunDirectoryError as error:
        records, clash = [], error.what
    return Evidence(run, parts, damaged, records, clash)


def name_of(triple: Triple) -> str:
    """Cell, image and restart for people."""
    cell, image, restart = triple
    return f"{image} restart {restart} of cell {cell}"
