"""The durable ledger of one metered target: it reserves before anything is sent, and no budget is exceeded."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from udc_ray.metered.account import Account, BudgetSpent, LedgerError
from udc_ray.metered.database import Database
from udc_ray.metered.leases import Leases
from udc_ray.metered.rows import Answer, Purpose, QueryKey, Replay, Row, Ticket, encode_answer
from udc_ray.metered.table import Head, Move, Table, fill, read_account, read_rows
from udc_ray.redact import has_credentials
from udc_ray.storage import Storage

__all__ = ["Account", "Answer", "BudgetSpent", "Ledger", "LedgerError", "QueryKey", "Replay", "Row", "Ticket"]
"""What others need to use a ledger."""

Outcome = Ticket | Replay | BudgetSpent


class Ledger:
    """The account of every send to one target.

    A query is reserved, then committed as sent before it is sent, then answered or given up. Whatever
    dies in between, once the ledger is open again

        answered <= what the target counted <= answered + unknown <= budget:

    rows that were reserved and not sent are released, rows that were sent become `unknown`, and those
    count as spent.

    Many threads may ask at once; `sent` and `answered` block until their commit is on the disk, and calls
    that come together share it.

    Args:
        path: the SQLite file, on a disk of the process that sends; a missing one is made, from the
            leases in `storage` where there are any.
        target: what is metered, such as its URL; may hold no secret.
        budget: sends allowed in all, for attack and harness together; None without a limit. It may be
            raised when the ledger is opened, or lowered to what is spent.
        storage: of the run; None keeps no leases, and a lost disk then loses the account.
        lease: queries that may be spent at most without the storage knowing of them, to be several times
            the number of requests that are under way at once.
        reserve_for_harness: attacks may not reserve once so little of the budget is left; it can be set anew.

    Raises:
        LedgerError: another writer is at work, another target's ledger, a damaged file, a file older than
            the leases, or a budget below what is spent.
        RunDirectoryError: the storage cannot be read.
    """

    def __init__(
        self,
        path: Path,
        target: str,
        budget: int | None,
        storage: Storage | None,
        lease: int = 256,
        reserve_for_harness: int = 0,
    ) -> None:
        _check_arguments(target, budget, lease, reserve_for_harness)
        self.path, self.target, self.budget, self.lease = Path(path), target, budget, lease
        self.reserve_for_harness = reserve_for_harness
        self._leases = None if storage is None else Leases(storage, target)
        self._room_until = 0  # nothing may be reserved before the first lease of this opening
        self._database = Database(self.path, self._create)
        try:
            self._table = Table(self._database.connection, secrets.token_hex(8))
            self._database.rolled_back = self._table.read_again
            self._open()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, key: QueryKey, candidate: str) -> Ticket | Replay:
        """The right to send one candidate, or the answer that is known already.

        The same key asked again while it is reserved or under way takes the place of the former ticket,
        whose query becomes `unknown` if it was sent: whoever held it is taken for dead.

        Args:
            key: the query.
            candidate: sha256 of the exact bytes that will be sent, hexadecimal.

        Raises:
            BudgetSpent: the budget, or the attacks' part of it, leaves nothing.
            LedgerError: the key was asked before with another candidate.
        """
        outcome = self.reserve_many([(key, candidate)])[0]
        if isinstance(outcome, BudgetSpent):
            raise outcome
        return outcome

    def reserve_many(self, asks: Sequence[tuple[QueryKey, str]]) -> list[Outcome]:
        """`reserve` for several; where the budget ends among them, each of the later ones is a `BudgetSpent`."""
        # A reservation needs no commit of its own: one that a crash takes away was never sent.
        with self._database.lock:
            known = self._database.run(lambda: [self._table.known(*ask) for ask in asks], durable=False)
            wanting = [key.purpose for (key, _), found in zip(asks, known, strict=True) if found is None]
            refusals = self._refusals(wanting)
            self._make_room(refusals.count(None))
            decided = iter(refusals)
            decisions = [next(decided) if found is None else found for found in known]
            return self._database.run(partial(self._insert, asks, decisions), durable=False)

    def sent(self, ticket: Ticket) -> None:
        """Commit that this query is about to be sent; on the disk when it returns.

        Raises:
            LedgerError: the ticket is used up, or the disk refuses; do not send.
        """
        self.sent_many([ticket])

    def sent_many(self, tickets: Sequence[Ticket]) -> None:
        """`sent` for several, all or none, in one commit."""
        self._move([Move(ticket=ticket, before="reserved", after="sent") for ticket in tickets])

    def answered(self, ticket: Ticket, answer: Answer) -> None:
        """Keep an answer; on the disk when it returns."""
        self.answered_many([(ticket, answer)])

    def answered_many(self, answers: Sequence[tuple[Ticket, Answer]]) -> None:
        """`answered` for several, all or none, in one commit."""
        encoded = [(ticket, encode_answer(answer)) for ticket, answer in answers]
        self._move([Move(ticket=t, before="sent", after="answered", answer=data) for t, data in encoded])

    def lost(self, ticket: Ticket, reason: str) -> None:
        """No usable answer came: the query counts as spent, and its key may be reserved anew."""
        self._move([Move(ticket=ticket, before="sent", after="unknown", reason=reason)])

    def refused(self, ticket: Ticket, reason: str, charged: bool) -> None:
        """The target turned the query away (429, 503); its key may be reserved anew.

        Args:
            ticket: the query.
            reason: what the target said.
            charged: whether the target may have counted it; False only where its owner says that it does not.
        """
        self._move([Move(ticket=ticket, before="sent", after="unknown" if charged else "refused", reason=reason)])

    def not_sent(self, ticket: Ticket, reason: str) -> None:
        """It was about to be sent, and for certain nothing left this machine: its key may be reserved anew."""
        self.refused(ticket, reason, charged=False)

    def release(self, ticket: Ticket) -> None:
        """Give back a ticket for which `sent` was not called."""
        self._database.run(lambda: self._table.release(ticket), durable=False)

    def account(self) -> Account:
        """What was spent until now."""
        with self._database.lock:
            return read_account(self._database.connection, self._table.tally)

    def rows(self) -> list[Row]:
        """All queries in the order of reservation."""
        with self._database.lock:
            return list(read_rows(self._database.connection))

    def close(self) -> None:
        """Mirror what is settled, lease no more than what is spent, and let another writer in."""
        with self._database.lock:
            if self._database.closed:
                return
            try:
                self._database.run(self._table.drop_reserved, durable=False)
                self._lease_no_more()
            finally:
                self._database.close()

    def _create(self, connection: sqlite3.Connection) -> None:
        """Fill a new file: with nothing, or with what the storage knows of a ledger whose disk was lost."""
        found = None if self._leases is None else self._leases.account()
        if self._leases is None or found is None or found.leased is None:
            fill(connection, Head(self.target, self.budget), ())
            return
        self._check_budget(found.leased)
        head = Head(
            target=self.target,
            budget=self.budget,
            lease=found.lease,
            asked_lease=found.lease,
            leased=found.leased,
            rebuilt=found.rebuilt + 1,
        )
        fill(connection, head, self._leases.rows())

    def _open(self) -> None:
        head = self._table.head
        if head.target != self.target:
            raise LedgerError(
                f"{self.path} is the ledger of {head.target}, not of {self.target}",
                "the target of the run has changed, or the folder belongs to another run",
                "give the former target, or another folder for the ledger of the new one",
            )
        self._check_budget(head.lost + self._table.tally.spent)
        if self._leases is not None:
            self._follow(self._leases)
        self._database.run(self._recover)
        if self.budget is not None and (self._table.head.leased or 0) > self.budget:
            self._lease_no_more()  # else a disk lost from now on would count for more than the lowered budget

    def _recover(self) -> None:
        self._table.recover()
        self._table.set_head(self._table.head._replace(budget=self.budget))

    def _check_budget(self, spent: int) -> None:
        if self.budget is not None and self.budget < spent:
            raise LedgerError(
                f"a budget of {self.budget} queries is below the {spent} that {self.target} may have counted already",
                "the budget was lowered, or the disk of the ledger was lost and its lease counts as spent",
                f"give a budget of at least {spent}",
            )

    def _refusals(self, purposes: Iterable[Purpose]) -> list[BudgetSpent | None]:
        """What the budget says to several queries, in their order."""
        lost, found = self._table.head.lost, list[BudgetSpent | None]()
        held = lost + self._table.tally.held
        for purpose in purposes:
            kept = self.reserve_for_harness if purpose == "attack" else 0
            if self.budget is None or held < self.budget - kept:
                held += 1
                found.append(None)
                continue
            spent = lost + self._table.tally.spent
            what = f"{spent} of {self.budget} queries to {self.target} are spent and {held - spent} reserved"
            note = f"; {kept} are kept for clean images and scoring" if kept else ""
            found.append(BudgetSpent(what + note, spent, held - spent, self.budget - kept))
        return found

    def _insert(
        self, asks: Sequence[tuple[QueryKey, str]], decisions: Sequence[Replay | BudgetSpent | None]
    ) -> list[Outcome]:
        pairs = zip(asks, decisions, strict=True)
        return [self._table.insert(*ask) if decision is None else decision for ask, decision in pairs]

    def _move(self, moves: Sequence[Move]) -> None:
        if moves:
            self._database.run(partial(self._table.move_all, moves))

    def _make_room(self, count: int) -> None:
        """Lease anew where `count` more queries have no room in the current lease."""
        if self._leases is None or count == 0:
            return
        wanted = self._table.head.lost + self._table.tally.held + count
        if wanted > self._room_until:
            total = self._table.head.lost + self._table.tally.settled + self.lease
            self._write_lease(self._leases, total if self.budget is None else min(total, self.budget))
        if wanted > self._room_until:
            under_way = self._table.tally.held - self._table.tally.settled
            raise LedgerError(
                f"{under_way} queries are under way, {count} more are asked for, and a lease is of {self.lease}",
                "more requests at once than one lease covers",
                "set lease to several times the number of requests at once",
            )

    def _lease_no_more(self) -> None:
        """Mirror what is settled, and take back what the last lease leaves."""
        head, spent = self._table.head, self._table.head.lost + self._table.tally.spent
        if self._leases is None or head.leased is None:
            return
        if head.leased != spent or head.asked_lease != head.lease or self._table.to_mirror():
            self._write_lease(self._leases, spent)

    def _write_lease(self, leases: Leases, total: int) -> None:
        """Mirror what is settled, then allow `total` queries to be spent in all."""
        self._room_until = 0  # whatever fails below, the next query needs a lease that was written
        self._follow(leases)
        head = self._table.head
        number = max(head.lease, head.asked_lease) + 1
        self._now(lambda: self._table.set_head(head._replace(asked_lease=number)))
        account = read_account(self._database.connection, self._table.tally)
        leases.write(replace(account, lease=number, leased=total), self._table.to_mirror())
        self._now(lambda: self._leased(number, total))
        self._room_until = total

    def _leased(self, number: int, total: int) -> None:
        self._table.mirrored(number)
        self._table.set_head(self._table.head._replace(lease=number, leased=total))

    def _follow(self, leases: Leases) -> None:
        """Agree with the storage on the last lease; what it does not hold any more is mirrored again."""
        head, last = self._table.head, leases.last()
        if last > max(head.lease, head.asked_lease):
            raise LedgerError(
                f"{self.path} knows of {head.lease} leases, and {leases.storage} holds {last}",
                "the file is an old copy, or another ledger is at work on the same run",
                "stop the other one; if there is none, remove the file with its -wal file and resume: it is rebuilt "
                "from the storage, and what is not known counts as spent",
            )
        if last < head.lease:
            self._now(lambda: self._table.mirror_again(last))

    def _now(self, work: Callable[[], None]) -> None:
        """Do something and commit it, with the lock held."""
        self._database.run(work, durable=False)
        self._database.commit()


def _check_arguments(target: str, budget: int | None, lease: int, reserve_for_harness: int) -> None:
    if has_credentials(target):
        raise LedgerError(
            "the address of the target holds a secret",
            "user:secret@ is part of it, and the ledger would write it to a file",
            "give the secret by an environment variable, and the address without it",
        )
    if lease < 1 or reserve_for_harness < 0 or (budget is not None and budget < 0):
        raise LedgerError(
            f"budget {budget}, lease {lease}, reserve_for_harness {reserve_for_harness}: one of them is too small",
            change="give a lease of at least 1, and no negative number",
        )
