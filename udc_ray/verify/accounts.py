"""The ledger of a metered target against its own rows, its budget and the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from udc_ray.metered.account import Account, Counts, LedgerError, Part
from udc_ray.metered.leases import Leases, recorded_targets
from udc_ray.metered.rows import SETTLED, Answer, Row
from udc_ray.report.curves import meaning_of
from udc_ray.states import find_state
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence, Triple, name_of


def check_accounts(evidence: Evidence) -> Finding | None:
    """Sums of the mirrored rows, budgets, and queries of every chain; None where nothing was metered."""
    storage, audit = evidence.run.storage, Audit("ledger")
    try:
        targets = recorded_targets(storage)
        for target in targets:
            leases = Leases(storage, target)
            account = leases.account()
            if account is not None:
                _account(audit, account)
                _rows(audit, evidence, account, leases.rows())
    except LedgerError as error:
        audit.holds("ledger", False, error.what)
        return audit.finding()
    return audit.finding() if targets else None


def _account(audit: Audit, account: Account) -> None:
    where, budget = f"ledger of {account.target}", account.budget
    if budget is not None:
        above = f"{account.spent} spent, or leased and not accounted for, of a budget of {budget}"
        audit.holds(where, account.spent <= budget, above)
    audit.gap("queries leased and not accounted for", account.outstanding, "they lie on the ledger's own disk only")
    audit.gap("queries lost with the disk of a ledger", account.lost, "their rows are gone; they count as spent")


def _rows(audit: Audit, evidence: Evidence, account: Account, rows: Iterable[Row]) -> None:
    found: dict[Part, Counter[str]] = {}
    asked: dict[Triple, dict[int, Answer]] = {}
    numbers: set[int] = set()
    for row in rows:
        audit.holds(f"ledger row {row.row}", row.row not in numbers, "it is there twice")
        numbers.add(row.row)
        audit.holds(f"ledger row {row.row}", row.state in SETTLED, f"a mirrored row in the state {row.state}")
        key = row.key
        found.setdefault((key.cell, key.purpose), Counter())[row.state] += 1
        if key.purpose == "attack" and row.state == "answered" and row.answer is not None:
            asked.setdefault((key.cell, key.image_id, key.restart), {})[key.step] = row.answer
    for part in sorted({*account.parts, *found}):
        counted, recorded = found.get(part, Counter()), account.parts.get(part, Counts())
        for state in SETTLED:
            where = f"ledger of {account.target}, {part[1]} of cell {part[0] or '-'}, {state}"
            audit.same(where, getattr(recorded, state), counted[state], "the lease says otherwise than its rows")
    if not account.outstanding and not account.lost:
        _records(audit, evidence, asked)


def _records(audit: Audit, evidence: Evidence, asked: Mapping[Triple, Mapping[int, Answer]]) -> None:
    """Every query that a record counts was answered, and no other; curves hold what the target said."""
    for triple, rows in evidence.triples.items():
        if rows[0].grad_mode == "blind" or rows[0].budget is None:
            continue
        answers, queries, where = asked.get(triple, {}), rows[0].queries or 0, f"queries: {name_of(triple)}"
        missing = sum(step not in answers for step in range(queries))
        audit.holds(where, missing == 0, f"{missing} of {queries} have no answer in the ledger")
        if len(answers) > queries and _went_on(evidence, triple, len(answers)):
            audit.gap("answers since the last record", len(answers) - queries, "the chain has gone on")
        else:
            audit.same(where, queries, len(answers), "the ledger answered another number")
        meaning = meaning_of(evidence.cells[triple[0]], evidence.spec)
        if meaning.unit != "distance" and not meaning.seen:
            _curve(audit, evidence, triple, answers)


def _went_on(evidence: Evidence, triple: Triple, answered: int) -> bool:
    """Whether a chain was under way again when the last session ended, or is so now."""
    state = find_state(evidence.run.storage, triple[0], (triple[1], triple[2]))
    asked = None if state is None else state.get("asked")
    return evidence.environment.get("end") is None or (isinstance(asked, int) and asked >= answered)


def _curve(audit: Audit, evidence: Evidence, triple: Triple, answers: Mapping[int, Answer]) -> None:
    """The points of a curve that a scalar answer gave are that answer."""
    for queries, value in evidence.curves.get("/".join(map(str, triple)), []):
        answer = answers.get(queries - 1)  # steps count from 0
        if isinstance(answer, float):
            audit.same(f"curve: {name_of(triple)}, query {queries}", value, answer, "the ledger's answer is another")
