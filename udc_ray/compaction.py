"""Many records of one key become one, and which keys are done is read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from udc_ray.errors import RunDirectoryError
from udc_ray.plan import RecordKey
from udc_ray.records import VOLATILE, Record


def compact(records: Iterable[Record]) -> list[Record]:
    """Keep one record a key, sorted by key: the one without error and with the highest budget.

    Failures of one key count as one (a unit that fails again in another company leaves a second), and so do
    equal answers (a restart that had ended is recorded again beside one that goes on).

    Raises:
        RunDirectoryError: two different answers for the same key and budget.
    """
    kept: dict[RecordKey, Record] = {}
    for record in records:
        rival = kept.get(record.key)
        if rival is not None and _rank(record) == _rank(rival) and not (failed(record) or _agree(record, rival)):
            cell, image_id, restart, sample = record.key
            raise RunDirectoryError(
                f"two results for cell {cell}, image {image_id}, restart {restart}, sample {sample}",
                "files of another run were copied in, or two writers were at work",
                "remove the foreign files from parts/, or start anew with another --out",
            )
        if rival is None or _order(record) > _order(rival):
            kept[record.key] = record
    return [kept[key] for key in sorted(kept)]


def failed(record: Record) -> bool:
    """Whether a record stands for a unit that failed."""
    return record.stop_reason == "error"


def done_keys(records: Iterable[Record], budgets: Mapping[str, int | None]) -> set[RecordKey]:
    """Keys that need no more work.

    A record is done unless its stop reason is ``error``, or is ``budget`` with a budget below the spec's.

    Args:
        records: all records of the run, compacted or not.
        budgets: budget of the spec by cell id; None, or no entry, where a cell has none.
    """
    return {r.key for r in records if not failed(r) and not _cut_short(r, budgets.get(r.cell))}


def quarantined_keys(records: Sequence[Record], budgets: Mapping[str, int | None]) -> set[RecordKey]:
    """Keys that failed at the spec's budget or above; only an explicit resume tries them again."""
    failures = {r.key for r in records if failed(r) and (r.budget or 0) >= (budgets.get(r.cell) or 0)}
    return failures - done_keys(records, budgets)


def _cut_short(record: Record, budget: int | None) -> bool:
    return record.stop_reason == "budget" and budget is not None and (record.budget or 0) < budget


def _agree(one: Record, other: Record) -> bool:
    """Whether two records differ at most in what may differ between two executions."""
    return replace(one, **{column: getattr(other, column) for column in VOLATILE}) == other


def _rank(record: Record) -> tuple[bool, int]:
    return (not failed(record), record.budget or 0)


def _order(record: Record) -> tuple[bool, int, int, str]:
    """As `_rank`, with a fixed choice among failures, whatever the order of the files."""
    return (*_rank(record), record.retries, record.error or "")
