"""Leases and mirrored answers on the run's storage: what is left when the disk of a ledger is lost.

    ledger/<hash of the target>/lease-000001.json       what may be spent in all, from now on
    ledger/<hash of the target>/answers-000001.parquet  rows settled since the lease before, written first

No query is used before the lease that covers it is in the storage. A lease of n queries says

    total = settled rows mirrored until now + queries lost with earlier disks + n,

and nothing is reserved beyond it. What the storage does not know of is therefore at most n at any
moment, queries that were in flight when the lease was written among them.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from udc_ray.metered.account import Account, LedgerError
from udc_ray.metered.rows import QueryKey, Row, decode_answer, encode_answer
from udc_ray.storage import Storage

FOLDER = "ledger"
SCHEMA_VERSION = 1
_TARGET = re.compile(r"^[0-9a-f]{16}$")
_LEASE = re.compile(r"^lease-(\d{6,})\.json$")
_ANSWERS = re.compile(r"^answers-(\d{6,})\.parquet$")
_COLUMNS = pa.schema(
    [
        ("row", pa.int64()),
        ("purpose", pa.string()),
        ("cell", pa.string()),
        ("image_id", pa.string()),
        ("restart", pa.int64()),
        ("step", pa.int64()),
        ("attempt", pa.int64()),
        ("candidate", pa.string()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("answer", pa.binary()),
        ("lease", pa.int64()),
        ("reserved_at", pa.float64()),
        ("sent_at", pa.float64()),
        ("settled_at", pa.float64()),
    ]
)
_KEY = ("purpose", "cell", "image_id", "restart", "step")


def target_hash(target: str) -> str:
    """Name of a target's folder."""
    return hashlib.sha256(target.encode()).hexdigest()[:16]


def recorded_targets(storage: Storage) -> list[str]:
    """Targets of which the storage has leases, sorted."""
    names = [name for name in storage.names(FOLDER) if _TARGET.match(name)]
    folders = (Leases(storage, folder=f"{FOLDER}/{name}") for name in names)
    found = (leases.account() for leases in folders)
    return sorted(account.target for account in found if account is not None)


class Leases:
    """The leases of one target.

    Args:
        storage: of the run.
        target: the target.
        folder: where they lie, in place of the target.
    """

    def __init__(self, storage: Storage, target: str = "", *, folder: str | None = None) -> None:
        self.storage = storage
        self.folder = f"{FOLDER}/{target_hash(target)}" if folder is None else folder

    def last(self) -> int:
        """Number of the last lease; 0 before the first."""
        return max(_numbers(_LEASE, self.storage.names(self.folder)), default=0)

    def account(self) -> Account | None:
        """What the storage knows, with all that was leased and is not accounted for as outstanding.

        Raises:
            LedgerError: a lease that cannot be read.
        """
        number = self.last()
        if number == 0:
            return None
        name = f"{self.folder}/lease-{number:06d}.json"
        try:
            values: dict[str, Any] = json.loads(self.storage.read(name))
            if values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {values['schema_version']} of another udc-ray")
            account, leased = Account.from_document(values), int(values["leased"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(f"{self.storage}/{name}", error) from error
        parts = {part: replace(counts, in_flight=0, reserved=0) for part, counts in account.parts.items()}
        known = replace(account, parts=parts, outstanding=0)
        return replace(known, outstanding=leased - known.spent)

    def write(self, account: Account, rows: Sequence[Row]) -> None:
        """Write the lease that `account.lease` and `account.leased` say, after the rows settled since the last one."""
        if rows:
            self.storage.write(f"{self.folder}/answers-{account.lease:06d}.parquet", encode_rows(rows))
        values = {"schema_version": SCHEMA_VERSION, "written_at": time.time(), **account.document()}
        data = json.dumps(values, indent=1, allow_nan=False).encode()
        self.storage.write(f"{self.folder}/lease-{account.lease:06d}.json", data)

    def rows(self) -> Iterator[Row]:
        """Settled rows, each once, in the order in which they were mirrored.

        A crash between two steps can mirror a row twice; what is settled does not change.

        Raises:
            LedgerError: a file that cannot be read.
        """
        numbers = sorted(_numbers(_ANSWERS, self.storage.names(self.folder)))
        names = [f"{self.folder}/answers-{number:06d}.parquet" for number in numbers]
        seen: set[int] = set()
        for name, data in zip(names, self.storage.each(self.storage.read, names), strict=True):
            try:
                rows = decode_rows(data)
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                raise _unreadable(f"{self.storage}/{name}", error) from error
            yield from (row for row in rows if row.row not in seen)
            seen |= {row.row for row in rows}


def encode_rows(rows: Sequence[Row]) -> bytes:
    """Rows as the bytes of a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([_plain(row) for row in rows], schema=_COLUMNS), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_rows(data: bytes) -> list[Row]:
    """Rows of the bytes of a parquet file."""
    rows = []
    for values in pq.read_table(pa.BufferReader(data)).to_pylist():
        key = QueryKey(**{name: values.pop(name) for name in _KEY})
        answer = values.pop("answer")
        rows.append(Row(key=key, answer=None if answer is None else decode_answer(answer), **values))
    return rows


def _plain(row: Row) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(Row) if f.name != "key"}
    values["answer"] = None if row.answer is None else encode_answer(row.answer)
    return {**values, **{name: getattr(row.key, name) for name in _KEY}}


def _numbers(pattern: re.Pattern[str], names: Sequence[str]) -> list[int]:
    return [int(found[1]) for found in map(pattern.match, names) if found is not None]


def _unreadable(name: str, error: Exception) -> LedgerError:
    return LedgerError(
        f"{name} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        "it was changed by hand, or the disk is damaged",
        "put it back from a copy; without it, what was spent is not known",
    )
