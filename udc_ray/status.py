"""What a run has done so far, read from its directory while another process writes it; no lock is taken."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from udc_ray.attacks.query import QueryAttack
from udc_ray.compaction import compact, done_keys, failed
from udc_ray.errors import UserError
from udc_ray.lock import LOCK, STALE_SECONDS
from udc_ray.metered.account import Account
from udc_ray.metered.leases import Leases, recorded_targets
from udc_ray.metrics.statistics import CellRecords, group_cells
from udc_ray.partfiles import PARTS, read_all
from udc_ray.plan import Cell, Plan
from udc_ray.recorded import recorded_images, recorded_plan
from udc_ray.records import SCHEMA_VERSION, Record
from udc_ray.rundir import ENVIRONMENT, RunDirectory
from udc_ray.states import FOLDER, decode_state, state_file
from udc_ray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who holds the lock.

    Attributes:
        owner: host and process id.
        job: id of the cluster job, if it is one.
        silent_s: seconds since its last sign of life, by the clocks of writer and reader.
        alive: whether that is recent enough for a writer at work.
    """

    owner: str
    job: str | None
    silent_s: float
    alive: bool


@dataclass(frozen=True, kw_only=True)
class CellStatus:
    """Progress of one cell.

    Attributes:
        label: for people.
        done: images with all restarts and samples there, at the spec's budget or ended by themselves.
        failed: images whose unit failed.
        cut: images that were cut short; a resume goes on with them.
        images: of the run.
        queries: asked by its attack, blind cells none.
        budget: queries an image and restart may ask; None for attacks that ask nothing.
    """

    label: str
    done: int
    failed: int
    cut: int
    images: int
    queries: int
    budget: int | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a run has done so far.

    Attributes:
        where: the run directory.
        fingerprint: of the run.
        ended: it came to its report, and nobody writes.
        cells: of the plan.
        done, owed: pairs of cell and image.
        queries: asked in all, chains under way as far as their states were kept.
        under_way: part of `queries` in chains whose image is not done yet.
        largest: what the attacks may ask in all by the spec's budgets.
        rate: queries a second of this session; None before its first part.
        left_s: seconds that are left at this rate, all chains going to their budget; None where unknown.
        accounts: what was spent on metered targets, as the run's storage knows it.
        writer: who holds the lock, if anybody does.
        job: the cluster job as RUN/job.json names it.
        damaged: parts that cannot be read.
    """

    where: str
    fingerprint: str
    ended: bool
    cells: tuple[CellStatus, ...]
    done: int
    owed: int
    queries: int
    under_way: int
    largest: int
    rate: float | None
    left_s: float | None
    accounts: tuple[Account, ...]
    writer: Writer | None
    job: Mapping[str, Any] | None
    damaged: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "schema_version": SCHEMA_VERSION,
            **plain,
            "cells": [asdict(cell) for cell in self.cells],
            "accounts": [account.document() for account in self.accounts],
            "writer": None if self.writer is None else asdict(self.writer),
            "damaged": list(self.damaged),
        }


def read_status(run: RunDirectory, now: float | None = None) -> Status:
    """Read what a run has done so far.

    Args:
        run: opened with `RunDirectory.read`.
        now: seconds since 1970; the clock's unless given.
    """
    now = time.time() if now is None else now
    parts, damaged = read_all(run.storage, run.header.fingerprint, {})
    records, plan = compact(r for rows in parts.values() for r in rows), recorded_plan(run)
    images = max(recorded_images(run), len({r.image_id for r in records}))
    rows = {cell.cell: cell for cell in map(_rows, group_cells(records))}
    cells = tuple(_status(plan, cell, rows.get(cell.id), images) for cell in plan.cells)
    under_way, writer = _under_way(run.storage, records), _writer(run.storage, now)
    asked = sum(cell.queries for cell in cells) + under_way
    largest = sum(_largest(plan, cell) for cell in plan.cells) * images
    ended_early = sum(cell.spared for cell in rows.values())
    rate = _rate(run, parts, under_way, now if writer is not None and writer.alive else None)
    job = run.read_json("job.json")
    return Status(
        where=run.storage.name,
        fingerprint=run.header.fingerprint,
        ended=writer is None and run.storage.exists("summary.json"),
        cells=cells,
        done=sum(cell.done for cell in cells),
        owed=len(cells) * images,
        queries=asked,
        under_way=under_way,
        largest=largest,
        rate=rate,
        left_s=max(largest - ended_early - asked, 0) / rate if rate else None,
        accounts=tuple(read_accounts(run.storage)),
        writer=writer,
        job=job if isinstance(job, dict) else None,
        damaged=tuple(damaged),
    )


def read_accounts(storage: Storage) -> list[Account]:
    """What was spent on metered targets, as far as the run's storage knows; none for owned targets."""
    found = (Leases(storage, target).account() for target in recorded_targets(storage))
    return [account for account in found if account is not None]


@dataclass(frozen=True)
class _Rows:
    """The records of one cell.

    Attributes:
        cell: its id.
        by_image: records by image.
        queries: asked, 0 for a blind cell.
        spared: queries that chains which ended by themselves left over.
    """

    cell: str
    by_image: dict[str, list[Record]]
    queries: int
    spared: int


def _rows(cell: CellRecords) -> _Rows:
    by_image: dict[str, list[Record]] = {}
    for record in cell.records:
        by_image.setdefault(record.image_id, []).append(record)
    once = {r.key[:3]: r for r in cell.measured} if cell.adaptive else {}
    ended = [r for r in once.values() if r.stop_reason not in {"budget", "error"}]
    return _Rows(
        cell=cell.head.cell,
        by_image=by_image,
        queries=sum(r.queries or 0 for r in once.values()),
        spared=sum(max((r.budget or 0) - (r.queries or 0), 0) for r in ended),
    )


def _status(plan: Plan, cell: Cell, rows: _Rows | None, images: int) -> CellStatus:
    """Progress of one cell; an image is done when all its records are there and need no more work."""
    attack = plan.attacks[cell.attack].attack
    budget = attack.budget if isinstance(attack, QueryAttack) else None
    done = broken = cut = 0
    for image_id, records in (rows.by_image if rows is not None else {}).items():
        kept = done_keys(records, {cell.id: budget})
        complete = kept >= set(plan.keys(cell, image_id))
        done += complete
        broken += any(failed(r) for r in records)
        cut += not complete and all(r.stop_reason == "budget" for r in records)
    return CellStatus(
        label=cell.label,
        done=done,
        failed=broken,
        cut=cut,
        images=images,
        queries=rows.queries if rows is not None else 0,
        budget=budget,
    )


def _largest(plan: Plan, cell: Cell) -> int:
    """Queries that a cell may ask for one image."""
    attack = plan.attacks[cell.attack].attack
    return attack.restarts * attack.budget if isinstance(attack, QueryAttack) and cell.grad_mode != "blind" else 0


def _under_way(storage: Storage, records: list[Record]) -> int:
    """Queries of chains without a record, as their states say; a state that is being replaced is left out."""
    recorded = {state_file(r.cell, (r.image_id, r.restart)) for r in records}
    names = [f"{FOLDER}/{name}" for name in storage.names(FOLDER) if name.startswith("chain-")]
    waiting = [name for name in names if name not in recorded]
    return sum(storage.each(lambda name: _asked(storage, name), waiting))


def _asked(storage: Storage, name: str) -> int:
    with suppress(UserError, ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile):
        return int(decode_state(storage.read(name))["asked"])
    return 0


def _rate(run: RunDirectory, parts: Mapping[str, list[Record]], under_way: int, end: float | None) -> float | None:
    """Queries a second since this session began: of the parts that were written since, and of chains under way."""
    start = _start(run)
    if start is None:
        return None
    written = {name: run.storage.modified(f"{PARTS}/{name}.parquet") or 0.0 for name in parts}
    fresh = [name for name, time_s in written.items() if time_s >= start]
    once = {r.key[:3]: r.queries or 0 for name in fresh for r in parts[name] if r.grad_mode != "blind"}
    asked = sum(once.values()) + under_way
    elapsed = (max((written[name] for name in fresh), default=start) if end is None else end) - start
    return asked / max(elapsed, 1.0) if asked else None


def _start(run: RunDirectory) -> float | None:
    environment = run.read_json(ENVIRONMENT) or {}
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(str(environment["start"])).timestamp()
    return None


def _writer(storage: Storage, now: float) -> Writer | None:
    data = storage.find(LOCK)
    if data is None:
        return None
    try:
        found = json.loads(data)
        silent = max(now - float(found["heartbeat"]), 0.0)
        job = found.get("job")
        return Writer(
            owner=str(found.get("owner")),
            job=None if job is None else str(job),
            silent_s=silent,
            alive=silent <= STALE_SECONDS,
        )
    except (ValueError, KeyError, TypeError, AttributeError):  # torn: its writer died while it wrote
        return None
