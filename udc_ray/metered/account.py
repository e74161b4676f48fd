"""What was spent on a metered target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from udc_ray.errors import UdcRayError, UserError
from udc_ray.metered.rows import SETTLED, Purpose, State

Part = tuple[str, Purpose]
"""Cell and purpose."""


class LedgerError(UserError):
    """The ledger of a metered target cannot be used, or is used for something else than it was made for."""

    ends_run = True


class BudgetSpent(UdcRayError):
    """The target's budget leaves nothing for this query; nothing was sent.

    Args:
        what: one sentence for people.
        spent: queries that the target may have counted.
        reserved: queries that are about to be sent.
        limit: what they may be in all for the purpose that asked.
    """

    def __init__(self, what: str, spent: int = 0, reserved: int = 0, limit: int = 0) -> None:
        super().__init__(what)
        self.what, self.spent, self.reserved, self.limit = what, spent, reserved, limit

    def __reduce__(self) -> tuple[type[BudgetSpent], tuple[str, int, int, int]]:
        return type(self), (self.what, self.spent, self.reserved, self.limit)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Queries by state.

    Attributes:
        answered: sent, and the answer is kept.
        unknown: sent, no answer; the target may have counted them.
        in_flight: sent, and nothing is known yet.
        reserved: about to be sent.
        refused: turned away by a target that does not count that, or never sent after all; not spent.
    """

    answered: int = 0
    unknown: int = 0
    in_flight: int = 0
    reserved: int = 0
    refused: int = 0

    @property
    def spent(self) -> int:
        """What the target may have counted."""
        return self.answered + self.unknown + self.in_flight

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)})


@dataclass(frozen=True, kw_only=True)
class Account:
    """What was spent on one target; `spent` = `answered` + `unknown` + `in_flight`.

    Attributes:
        target: the target.
        budget: sends allowed, all runs of this ledger together; None without a limit.
        parts: counts by cell and purpose.
        lost: part of `unknown`: spent whole with the leases of lost disks, so no row stands for them.
        outstanding: part of `in_flight`: leased, and the storage does not know yet what became of them;
            0 in an account that was read from the ledger itself.
        lease: number of the last lease; 0 before the first.
        leased: what the last lease allows to be spent in all; None without leases.
        rebuilt: how often the ledger was made anew from the storage because its disk was lost.
    """

    target: str
    budget: int | None
    parts: Mapping[Part, Counts] = field(default_factory=dict)
    lost: int = 0
    outstanding: int = 0
    lease: int = 0
    leased: int | None = None
    rebuilt: int = 0

    @property
    def total(self) -> Counts:
        """All parts, with what no row stands for."""
        return sum(self.parts.values(), Counts(unknown=self.lost, in_flight=self.outstanding))

    @property
    def answered(self) -> int:
        """Answers kept."""
        return self.total.answered

    @property
    def unknown(self) -> int:
        """Sends without an answer, those lost with a disk among them."""
        return self.total.unknown

    @property
    def in_flight(self) -> int:
        """Sends of which nothing is known yet."""
        return self.total.in_flight

    @property
    def reserved(self) -> int:
        """About to be sent."""
        return self.total.reserved

    @property
    def refused(self) -> int:
        """Turned away and not counted."""
        return self.total.refused

    @property
    def spent(self) -> int:
        """What the target may have counted."""
        return self.total.spent

    @property
    def attack(self) -> int:
        """Part of `spent` that attacks asked for."""
        return self._spent_by("attack")

    @property
    def harness(self) -> int:
        """Part of `spent` that the harness asked for; `attack` + `harness` + `lost` + `outstanding` = `spent`."""
        return self._spent_by("harness")

    @property
    def left(self) -> int | None:
        """What may still be reserved; None without a budget."""
        return None if self.budget is None else max(0, self.budget - self.spent - self.reserved)

    @property
    def by_cell(self) -> dict[str, Counts]:
        """Counts of each cell, attack and harness together."""
        cells: dict[str, Counts] = {}
        for (cell, _), counts in self.parts.items():
            cells[cell] = cells.get(cell, Counts()) + counts
        return cells

    def document(self) -> dict[str, Any]:
        """The account as a JSON value; `from_document` reads it."""
        plain = {f.name: getattr(self, f.name) for f in fields(Account) if f.name != "parts"}
        parts = [{"cell": c, "purpose": p, **_values(counts)} for (c, p), counts in sorted(self.parts.items())]
        return {**plain, **_values(self.total), "spent": self.spent, "parts": parts}

    @staticmethod
    def from_document(values: Mapping[str, Any]) -> Account:
        """The account of `document`.

        Raises:
            KeyError: something is missing.
            TypeError: something is of another kind.
        """
        parts = {(p["cell"], p["purpose"]): Counts(**{n: p[n] for n in _values(Counts())}) for p in values["parts"]}
        plain = {f.name: values[f.name] for f in fields(Account) if f.name != "parts"}
        return Account(**plain, parts=parts)

    def _spent_by(self, purpose: Purpose) -> int:
        return sum(counts.spent for (_, p), counts in self.parts.items() if p == purpose)


class Tally:
    """Counts that follow the ledger move by move, so that no query waits for a sum over all rows.

    Args:
        counts: (cell, purpose, state, queries) as the ledger sums them.
    """

    def __init__(self, counts: Iterable[tuple[str, Purpose, State, int]] = ()) -> None:
        self._parts: Counter[tuple[Part, State]] = Counter()
        self._states: Counter[State] = Counter()
        for cell, purpose, state, count in counts:
            self._add((cell, purpose), state, count)

    def move(self, part: Part, before: State | None, after: State | None) -> None:
        """One query goes from a state to another; None is outside the ledger."""
        if before is not None:
            self._add(part, before, -1)
        if after is not None:
            self._add(part, after, 1)

    def count(self, *states: State) -> int:
        """Queries in these states."""
        return sum(self._states[state] for state in states)

    @property
    def settled(self) -> int:
        """Spent, and known to be."""
        return self.count("answered", "unknown")

    @property
    def spent(self) -> int:
        """What the target may have counted."""
        return self.count("answered", "unknown", "sent")

    @property
    def held(self) -> int:
        """Spent, or about to be."""
        return self.count("answered", "unknown", "sent", "reserved")

    def parts(self) -> dict[Part, Counts]:
        """Counts by cell and purpose."""
        names = {**{state: state for state in SETTLED}, "reserved": "reserved", "sent": "in_flight"}
        found: dict[Part, dict[str, int]] = {}
        for (part, state), count in self._parts.items():
            if count:
                found.setdefault(part, {})[names[state]] = count
        return {part: Counts(**values) for part, values in found.items()}

    def _add(self, part: Part, state: State, count: int) -> None:
        self._parts[part, state] += count
        self._states[state] += count


def _values(counts: Counts) -> dict[str, int]:
    return {f.name: getattr(counts, f.name) for f in fields(Counts)}
