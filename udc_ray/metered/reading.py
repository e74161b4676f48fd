"""Reading a ledger without taking its lock: for the status of a campaign, and to verify a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from udc_ray.metered import table
from udc_ray.metered.account import Account, LedgerError
from udc_ray.metered.database import explained, open_to_read
from udc_ray.metered.leases import Leases, recorded_targets
from udc_ray.metered.rows import Row
from udc_ray.storage import Storage


def read_account(where: Storage | Path, target: str | None = None) -> Account:
    """What was spent on one target.

    Args:
        where: the ledger's file; its writer may be at work on it. Or the storage of the run, which knows
            of all that was leased, and what became of it until the last lease: the rest is `outstanding`.
        target: which one, where the storage has several.

    Raises:
        LedgerError: there is none, or it cannot be read.
    """
    if isinstance(where, Path):
        with closing(open_to_read(where)) as connection, explained(where):
            return table.read_account(connection)
    account = _leases(where, target).account()
    if account is None:
        raise _missing(str(where))
    return account


def read_rows(where: Storage | Path, target: str | None = None) -> Iterator[Row]:
    """Every query that the file holds, or every settled one that the storage holds; each row once.

    Args:
        where: as in `read_account`.
        target: as there.

    Raises:
        LedgerError: there is none, or it cannot be read.
    """
    if isinstance(where, Path):
        with closing(open_to_read(where)) as connection, explained(where):
            yield from table.read_rows(connection)
    else:
        yield from _leases(where, target).rows()


def _leases(storage: Storage, target: str | None) -> Leases:
    if target is not None:
        return Leases(storage, target)
    targets = recorded_targets(storage)
    if not targets:
        raise _missing(str(storage))
    if len(targets) > 1:
        raise LedgerError(f"{storage} has ledgers of {len(targets)} targets", change=f"name one: {', '.join(targets)}")
    return Leases(storage, targets[0])


def _missing(where: str) -> LedgerError:
    return LedgerError(f"{where} has no ledger", "no metered target was queried by this run", "check the path")
