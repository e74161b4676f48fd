"""The one way to a metered target: the ledger, the pace and the client, around every single request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

from torch import Tensor

from udc_ray.attacks.oracle import TargetSpent
from udc_ray.attacks.query import Answer
from udc_ray.metered.account import BudgetSpent, LedgerError
from udc_ray.metered.attempts import Circuit, Patience, Trying, attempts, keyed_draws
from udc_ray.metered.client import Client
from udc_ray.metered.failures import TargetError
from udc_ray.metered.formats import Query
from udc_ray.metered.ledger import Ledger, QueryKey, Replay, Ticket
from udc_ray.metered.pace import LOOK_UP_S, Turnstile, pace_of

PATIENCE = Patience()
"""How often and how long one candidate is tried."""
DRAIN_SECONDS = 10.0
"""How long the requests under way may take when the gate closes; what comes later counts as spent."""
LOOK_SECONDS = 0.02
"""How often it is looked whether they have ended."""

Reduce = Callable[[Tensor], Answer]
"""From what the target returned to what is kept of it."""


@dataclass
class _Bill:
    """The ledger's account of one candidate; see `attempts.Bill`."""

    ledger: Ledger
    keep: Callable[[Any], Answer]
    refusals_are_free: bool
    again: Callable[[], Ticket]
    first: Ticket | None

    def reserve(self) -> Ticket:
        """Reserve, and commit that it is sent: nothing leaves before that is on the disk."""
        ticket, self.first = self.first, None
        if ticket is None:
            ticket = self.again()
        self.ledger.sent(ticket)
        return ticket

    def answered(self, ticket: Ticket, answer: Tensor) -> None:
        """Keep what is wanted of the answer."""
        self.ledger.answered(ticket, self.keep(answer))

    def lost(self, ticket: Ticket, reason: str) -> None:
        """It counts as spent."""
        self.ledger.lost(ticket, reason)

    def refused(self, ticket: Ticket, reason: str) -> None:
        """It counts as spent, unless the target's owner says otherwise."""
        self.ledger.refused(ticket, reason, charged=not self.refusals_are_free)

    def not_sent(self, ticket: Ticket, reason: str) -> None:
        """It costs nothing."""
        self.ledger.not_sent(ticket, reason)


class Gate:
    """Asks a metered target, from any number of threads; every send is charged before it leaves.

    Args:
        client: sends.
        ledger: keeps the account.
        seed: keys the jitter of pauses.
    """

    def __init__(self, client: Client, ledger: Ledger, seed: int) -> None:
        self.client, self.ledger, self.endpoint, self._seed = client, ledger, client.endpoint, seed
        self._circuit, self._pace, self._closing = Circuit(), pace_of(self.endpoint), Event()
        slot = Turnstile(self._pace, self._circuit.check).slot
        self._trying = Trying(slot=slot, circuit=self._circuit, patience=PATIENCE, sleep=self._pause)
        self._lock, self._harness = Lock(), 0
        self._askers: dict[QueryKey, object] = {}

    def ask(self, key: QueryKey, x_CHW: Tensor, reduce: Reduce) -> Answer:
        """Answer a query of an attack: from the ledger where it was answered before, else from the target.

        Raises:
            TargetSpent: the budget leaves nothing for attacks.
            TargetError: the target cannot be asked any more.
        """
        query, asker = self.client.query(x_CHW), object()
        try:
            outcome = self._first(key, query, asker)
            if isinstance(outcome, Replay):
                return outcome.answer  # type: ignore[return-value]  # what was kept was an Answer
            kept: list[Answer] = []

            def keep(returned: Tensor) -> Answer:
                kept.append(reduce(returned))
                return kept[-1]

            self._attempts(key, query, keep, outcome, asker)
        except BudgetSpent as spent:
            raise TargetSpent(str(spent)) from spent
        finally:
            self._leave(key, asker)
        return kept[-1]

    def image(self, x_CHW: Tensor) -> Tensor:
        """What the target returns for an image of the harness; never from the ledger.

        Raises:
            BudgetSpent: the budget leaves nothing.
            TargetError: the target cannot be asked any more.
        """
        with self._lock:
            self._harness += 1
            number = self._harness
        query, asker = self.client.query(x_CHW), object()
        key = QueryKey(purpose="harness", cell="", image_id=query.sha256[:16], step=number)
        try:
            outcome = self._first(key, query, asker)
            if isinstance(outcome, Replay):
                raise TypeError("a query of the harness is never replayed")
            with self._lock:  # what is kept for the harness has become what it has spent
                self.ledger.reserve_for_harness = max(0, self.ledger.reserve_for_harness - 1)
            return self._attempts(key, query, lambda _: True, outcome, asker)
        finally:
            self._leave(key, asker)

    def refuse(self, why: TargetError) -> None:
        """Let nothing through any more."""
        self._circuit.open(why)

    def close(self) -> None:
        """Let the requests under way end, close the connections and the ledger: its account then lies with the run."""
        self.refuse(TargetError("the campaign has ended", change="resume it"))
        self._closing.set()
        deadline = time.monotonic() + min(DRAIN_SECONDS, self.endpoint.timeout_s)
        while self._pace.under_way and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        self.client.close()
        self.ledger.close()

    def _attempts(
        self, key: QueryKey, query: Query, keep: Callable[[Tensor], Answer], first: Ticket, asker: object
    ) -> Tensor:
        bill = _Bill(self.ledger, keep, self.endpoint.refusals_are_free, lambda: self._again(key, query, asker), first)
        draw = keyed_draws(self._seed, f"{key.cell}/{key.image_id}", key.step)
        try:
            return attempts(lambda: self.client.send(query), bill, self._trying, draw)
        finally:
            if bill.first is not None:  # nobody let it through
                self.ledger.release(bill.first)

    def _first(self, key: QueryKey, query: Query, asker: object) -> Ticket | Replay:
        """Reserve for whoever asks now: who asked the same before is dead, or nobody listens to it any more."""
        with self._lock:
            self._askers[key] = asker
            return self.ledger.reserve(key, query.sha256)

    def _again(self, key: QueryKey, query: Query, asker: object) -> Ticket:
        """Reserve for a further attempt, unless somebody else has asked the same meanwhile.

        Raises:
            LedgerError: somebody has.
        """
        with self._lock:
            outcome = self.ledger.reserve(key, query.sha256) if self._askers.get(key) is asker else None
        if not isinstance(outcome, Ticket):
            raise LedgerError(f"the {key} was asked again", "a stepper died, and another one took its place")
        return outcome

    def _leave(self, key: QueryKey, asker: object) -> None:
        with self._lock:
            if self._askers.get(key) is asker:
                del self._askers[key]

    def _pause(self, seconds: float) -> None:
        """Wait before a further attempt, unless nothing is sent any more."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._circuit.check()
            self._closing.wait(min(left, LOOK_UP_S))
        self._circuit.check()
