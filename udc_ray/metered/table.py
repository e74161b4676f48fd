"""The rows of a ledger's file: statements, and the tally that follows them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from udc_ray.metered.account import Account, LedgerError, Tally
from udc_ray.metered.rows import SETTLED, QueryKey, Replay, Row, State, Ticket, decode_answer, encode_answer
from udc_ray.redact import redact

_COUNTS = "SELECT cell, purpose, state, COUNT(*) FROM queries GROUP BY cell, purpose, state"
_SAME_KEY = "cell = ? AND image_id = ? AND restart = ? AND step = ? AND purpose = ?"
_TO_MIRROR = "mirrored = 0 AND state IN ('answered', 'unknown', 'refused')"
_INSERT = """INSERT INTO queries (row, purpose, cell, image_id, restart, step, attempt, candidate, state, reason,
    answer, lease, reserved_at, sent_at, settled_at, mirrored) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"""
_SETTLE = "UPDATE queries SET state = 'unknown', reason = ?, settled_at = ? WHERE"


class Head(NamedTuple):
    """What a ledger knows besides its queries.

    Attributes:
        target: the target.
        budget: as last given.
        lease: number of the last lease that is in the storage.
        asked_lease: number of the last one that was begun to be written.
        leased: what the last lease allows to be spent in all.
        lost: spent whole with the leases of lost disks.
        rebuilt: how often the ledger was made anew from the storage.
    """

    target: str
    budget: int | None
    lease: int = 0
    asked_lease: int = 0
    leased: int | None = None
    lost: int = 0
    rebuilt: int = 0


@dataclass(frozen=True, kw_only=True)
class Move:
    """A query goes from one state to another.

    Attributes:
        ticket: of the query.
        before: the state that it must be in.
        after: the state that it goes to.
        reason: why there is no answer.
        answer: encoded.
    """

    ticket: Ticket
    before: State
    after: State
    reason: str | None = None
    answer: bytes | None = None


def fill(connection: sqlite3.Connection, head: Head, rows: Iterable[Row]) -> None:
    """Make the content of a new file; everything of `head.leased` that `rows` do not account for is lost.

    Raises:
        LedgerError: there are more rows than the leases allowed.
    """
    for row in rows:
        answer = None if row.answer is None else encode_answer(row.answer)
        facts = (row.attempt, row.candidate, row.state, row.reason, answer, row.lease)
        times = (row.reserved_at, row.sent_at, row.settled_at)
        connection.execute(_INSERT, (row.row, row.key.purpose, *_place(row.key)[:4], *facts, *times, head.lease))
    known = Tally(connection.execute(_COUNTS)).settled
    lost = 0 if head.leased is None else head.leased - known
    if lost < 0:
        raise LedgerError(
            f"the storage of the run holds {known} queries to {head.target}, and its last lease allows {head.leased}",
            "leases were removed or changed by hand",
            "put the files of the folder `ledger` back from a copy",
        )
    connection.execute("INSERT INTO ledger VALUES (1, 1, ?, ?, ?, ?, ?, ?, ?)", head._replace(lost=lost))


def read_head(connection: sqlite3.Connection) -> Head:
    """The head of a ledger's file."""
    columns = ", ".join(Head._fields)
    return Head(*connection.execute(f"SELECT {columns} FROM ledger").fetchone())


def read_account(connection: sqlite3.Connection, tally: Tally | None = None) -> Account:
    """What was spent; the rows are counted where no tally is given."""
    head = read_head(connection)
    parts = (Tally(connection.execute(_COUNTS)) if tally is None else tally).parts()
    return Account(
        target=head.target,
        budget=head.budget,
        parts=parts,
        lost=head.lost,
        lease=head.lease,
        leased=head.leased,
        rebuilt=head.rebuilt,
    )


def read_rows(connection: sqlite3.Connection, where: str = "TRUE") -> Iterator[Row]:
    """Rows in the order of reservation."""
    for found in connection.execute(f"SELECT * FROM queries WHERE {where} ORDER BY row"):
        values = {name: found[name] for name in found.keys() if name != "mirrored"}  # noqa: SIM118 - iterates values
        key = QueryKey(**{name: values.pop(name) for name in ("purpose", "cell", "image_id", "restart", "step")})
        answer = values.pop("answer")
        yield Row(key=key, answer=None if answer is None else decode_answer(answer), **values)


class Table:
    """The rows of an open ledger; every method is used with the file's lock held, within a transaction.

    Args:
        connection: to the file.
        session: of the tickets that are handed out.
    """

    def __init__(self, connection: sqlite3.Connection, session: str) -> None:
        self._connection, self._session = connection, session
        self._next_row = connection.execute("SELECT COALESCE(MAX(row), 0) + 1 FROM queries").fetchone()[0]
        self.tally = Tally()
        self.head = Head("", None)
        self.read_again()

    def read_again(self) -> None:
        """Read what is kept in memory from the file."""
        self.tally = Tally(self._connection.execute(_COUNTS))
        self.head = read_head(self._connection)

    def set_head(self, head: Head) -> None:
        """Change what the ledger knows besides its queries."""
        columns = ", ".join(f"{name} = ?" for name in Head._fields)
        self._connection.execute(f"UPDATE ledger SET {columns}", head)
        self.head = head

    def recover(self) -> None:
        """After a crash: what was sent may have been counted, and what was not sent was not."""
        self.drop_reserved()
        reason = "under way when the ledger was closed or killed"
        self._connection.execute(f"{_SETTLE} state = 'sent'", (reason, time.time()))
        self.read_again()

    def drop_reserved(self) -> None:
        """Release what was not sent."""
        self._connection.execute("DELETE FROM queries WHERE state = 'reserved'")
        self.read_again()

    def known(self, key: QueryKey, candidate: str) -> Replay | None:
        """The answer to a key that was asked before; a ticket of that key that is still about is taken back.

        Raises:
            LedgerError: it was asked with another candidate.
        """
        if not key.replays:
            return None
        statement = f"SELECT * FROM queries WHERE {_SAME_KEY} ORDER BY attempt"
        found = self._connection.execute(statement, _place(key)).fetchall()
        for row in found:
            if row["candidate"] != candidate:
                before = row["candidate"][:12]
                raise LedgerError(
                    f"the {key} was asked before with another candidate ({before}, and now {candidate[:12]})",
                    "the attack is not what it was: another version, other data, or another model that it learns from",
                    "go on with what the run was begun with, or begin another run",
                )
        for row in found:
            if row["state"] == "answered":
                return Replay(answer=decode_answer(row["answer"]))
            if row["state"] in {"reserved", "sent"}:
                self._take_back(key, row["row"], row["state"])
        return None

    def insert(self, key: QueryKey, candidate: str) -> Ticket:
        """A new row, reserved."""
        last = f"SELECT COALESCE(MAX(attempt), 0) FROM queries WHERE {_SAME_KEY}"
        attempt = self._connection.execute(last, _place(key)).fetchone()[0] + 1
        row, self._next_row = self._next_row, self._next_row + 1  # never used twice, even where a row is deleted
        facts = (attempt, candidate, "reserved", None, None, self.head.lease, time.time(), None, None, 0)
        self._connection.execute(_INSERT, (row, key.purpose, *_place(key)[:4], *facts))
        self.tally.move((key.cell, key.purpose), None, "reserved")
        return Ticket(row=row, key=key, candidate=candidate, attempt=attempt, session=self._session)

    def move_all(self, moves: Iterable[Move]) -> None:
        """`move` for several."""
        for move in moves:
            self.move(move)

    def move(self, move: Move) -> None:
        """A ticket's query goes from one state to another.

        Raises:
            LedgerError: it is not in the state that it must be in.
        """
        ticket = move.ticket
        when = "settled_at" if move.after in SETTLED else "sent_at"
        reason = None if move.reason is None else redact(move.reason)
        statement = f"UPDATE queries SET state = ?, reason = ?, answer = ?, {when} = ? WHERE row = ? AND state = ?"
        values = (move.after, reason, move.answer, time.time(), ticket.row, move.before)
        self._check(ticket, move.before, self._connection.execute(statement, values).rowcount)
        self.tally.move((ticket.key.cell, ticket.key.purpose), move.before, move.after)

    def release(self, ticket: Ticket) -> None:
        """Delete the row of a ticket that was not sent.

        Raises:
            LedgerError: it was.
        """
        statement = "DELETE FROM queries WHERE row = ? AND state = 'reserved'"
        self._check(ticket, "reserved", self._connection.execute(statement, (ticket.row,)).rowcount)
        self.tally.move((ticket.key.cell, ticket.key.purpose), "reserved", None)

    def to_mirror(self) -> list[Row]:
        """Settled rows that the storage does not hold yet."""
        return list(read_rows(self._connection, _TO_MIRROR))

    def mirrored(self, lease: int) -> None:
        """The storage holds all that is settled, with this lease."""
        self._connection.execute(f"UPDATE queries SET mirrored = ? WHERE {_TO_MIRROR}", (lease,))

    def mirror_again(self, last: int) -> None:
        """The storage has lost the leases after `last`."""
        self._connection.execute("UPDATE queries SET mirrored = 0 WHERE mirrored > ?", (last,))

    def _take_back(self, key: QueryKey, row: int, state: State) -> None:
        if state == "reserved":
            self._connection.execute("DELETE FROM queries WHERE row = ?", (row,))
        else:
            self._connection.execute(f"{_SETTLE} row = ?", ("asked anew while it was under way", time.time(), row))
        self.tally.move((key.cell, key.purpose), state, None if state == "reserved" else "unknown")

    def _check(self, ticket: Ticket, wanted: State, changed: int) -> None:
        if changed == 1 and ticket.session == self._session:
            return
        raise LedgerError(
            f"the ticket of the {ticket.key}, attempt {ticket.attempt}, is not {wanted} any more",
            "the ledger was opened anew, the same query was asked again, or the ticket was used twice",
            "nothing was lost: reserve the query anew",
        )


def _place(key: QueryKey) -> tuple[str, str, int, int, str]:
    return (key.cell, key.image_id, key.restart, key.step, key.purpose)
