"""The rows of a campaign: those of an evaluation, readings of the curves, and the bill. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from udc_ray.checks.base import CheckResult, lowest
from udc_ray.metered.account import Account
from udc_ray.metrics.statistics import CLAIM_SIZE, Estimate, PerImage, estimate, group_cells, wilson
from udc_ray.metrics.survival import Times, clopper_pearson, median, median_estimate, restricted, success_within
from udc_ray.records import Record
from udc_ray.report.curves import DROPS_DB, CellCurves, Curve, cell_curves
from udc_ray.report.summary import Summary, build_summary
from udc_ray.report.table import ROBUST, ROBUST_SCORE, Row
from udc_ray.spec import RunSpec

SUCCESS, MEDIAN, RESTRICTED = "success", "queries_median", "queries_restricted_mean"
TO_DROP = {drop: f"queries_to_{drop:g}db" for drop in DROPS_DB}
BILL = (
    "queries_asked",
    "queries_from_memory",
    "queries_sent",
    "queries_unknown",
    "queries_harness",
    "queries_reexecuted",
)
"""Totals of the run, and of its cells as far as they are known by cell; rows of the whole run have no cell."""

ROBUSTS = frozenset({ROBUST, ROBUST_SCORE})
EVALUATED = frozenset({"psnr_adv", "score_adv"})
"""Readings that are what the evaluation measures."""
_FOUND_OR_MISSED = frozenset({"score_adv", "accuracy_seen", ROBUST_SCORE})
_LOW_IS_WORST = (
    EVALUATED | ROBUSTS | {"psnr_seen", "accuracy_seen", "linf", "l2", "eps", MEDIAN, RESTRICTED, *TO_DROP.values()}
)


@dataclass(frozen=True, kw_only=True)
class Sends:
    """What the accounts of metered targets say.

    Attributes:
        answered: sends that were answered.
        unknown: sends of which it is not known whether they arrived; they count as spent.
    """

    answered: int
    unknown: int

    @classmethod
    def of(cls, accounts: Sequence[Account]) -> Sends | None:
        """Sums over targets, what is leased and not accounted for among the unknown; None for owned targets."""
        if not accounts:
            return None
        return cls(answered=sum(a.answered for a in accounts), unknown=sum(a.unknown + a.in_flight for a in accounts))

    @classmethod
    def from_devices(cls, devices: Mapping[str, Any]) -> Sends | None:
        """From what the hosts say of themselves, as `WorkPool.describe` gives it."""
        accounts = [Account.from_document(facts["account"]) for facts in devices.values() if "account" in facts]
        return cls.of(accounts)


def build_campaign_summary(
    records: Sequence[Record],
    curves: Mapping[str, Curve],
    spec: RunSpec,
    checks: Sequence[CheckResult] = (),
    sends: Sends | None = None,
) -> Summary:
    """Summarise a campaign; the same records and curves give the same summary, in any order.

    Args:
        records: the run's records, those of failed units included; at least one.
        curves: as `RunDirectory.curves` gives them.
        spec: gives seed, success event, order and the budgets that are read.
        checks: mark the numbers of the cells that failed one.
        sends: the account of a metered target; None for owned targets, whose account is what was asked.
    """
    summary = build_summary(records, spec, checks)
    readings = cell_curves(records, curves, spec)
    rows: list[Row] = []
    for row in summary.rows:
        if row.cell is None:
            rows += [*_robust_readings(row, summary.rows, readings, spec.seed), row]
            continue
        mine = readings.get(row.cell)
        if mine is not None and not any(r.cell == row.cell for r in rows):
            rows += _readings(replace(row, worst=None, worst_image=None), mine, spec.seed)
        rows.append(row if mine is None else _own_budget(row, mine))
    return replace(summary, rows=(*rows, *_bill(records, sends)))


def _readings(like: Row, curves: CellCurves, seed: int) -> list[Row]:
    """Rows of one cell at every budget, the smaller first."""
    rows: list[Row] = []
    meaning, own = curves.meaning, curves.read_at[-1]
    note = _joined(meaning.note, _restarts(curves))
    success = curves.to_success()
    for budget in curves.read_at:
        row = replace(like, budget=budget)
        # At its own budget the evaluation's number stands in the table already, unless it is another one.
        if budget < own or meaning.metric not in EVALUATED:
            stand = _standing(curves) if budget == own else ""
            rows.append(_averaged(replace(row, metric=meaning.metric), curves.at(budget), seed, _joined(stand, note)))
        if success is not None:
            rows += _success_rows(row, success, curves, seed)
    for drop, metric in TO_DROP.items():
        times = curves.to_drop(drop)
        if times is not None:
            rows.append(_to_drop(replace(like, budget=own, metric=metric), times, curves, seed))
    return rows


def _success_rows(row: Row, times: Times, curves: CellCurves, seed: int) -> list[Row]:
    """Share harmed, median and restricted mean within one budget, every failure counted."""
    budget, own = row.budget or 0, curves.read_at[-1]
    known = {i: None if t is None or t > budget else t for i, t in times.items()}
    if not known:
        return []
    note = _joined(curves.meaning.note, _cut(curves, budget), _restarts(curves))
    rows = []
    if budget < own or curves.meaning.seen:
        metric = f"{SUCCESS}_seen" if curves.meaning.seen else SUCCESS
        rows.append(_with(replace(row, metric=metric), success_within(known, budget), note))
    middle = median_estimate(known, seed)
    reached = f"{sum(t is not None for t in known.values())} of {len(known)} images"
    rows.append(
        _with(
            replace(row, metric=MEDIAN, ci_low=middle.ci_low, ci_high=middle.ci_high, n=middle.n),
            None,
            _joined("" if middle.value is not None else f"fewer than half succeeded: {reached}", note),
            middle.value,
        )
    )
    rows.append(_averaged(replace(row, metric=RESTRICTED), restricted(known, budget), seed, note))
    return rows


def _to_drop(row: Row, times: Times, curves: CellCurves, seed: int) -> Row:
    budget = row.budget or 0
    middle = median(times)
    count = sum(t is not None for t in times.values())
    note = f"reached on {count} of {len(times)} images, median {'none' if middle is None else f'{middle:g}'}"
    note = _joined(note, f"others count as {budget}" if count < len(times) else "")
    note = _joined(note, curves.meaning.note, _cut(curves, budget), _restarts(curves))
    return _averaged(row, restricted(times, budget), seed, note)


def _robust_readings(robust: Row, rows: Sequence[Row], readings: Mapping[str, CellCurves], seed: int) -> list[Row]:
    """The worst over attacks at the smaller budgets; an attack with less is read at its own.

    Where a curve is no evaluation (random victims), there is no such row.
    """
    heads = [r for r in rows if r.cell is not None and r.metric in EVALUATED and r.budget is not None]
    mine = [
        r
        for r in heads
        if (r.defense, r.norm, r.eps) == (robust.defense, robust.norm, robust.eps)
        and robust.grad_mode in (None, r.grad_mode)
    ]
    found = [readings[r.cell] for r in mine if r.cell is not None and r.cell in readings]
    if not found or len(found) < len(mine) or any(c.meaning.metric not in EVALUATED for c in found):
        return []
    largest = max(c.read_at[-1] for c in found)
    budgets = sorted({q for c in found for q in c.read_at if q < largest})
    return [
        _averaged(
            replace(robust, budget=q, worst=None, worst_image=None),
            lowest([c.at(min(q, c.read_at[-1])) for c in found]),
            seed,
            "query attacks only",
        )
        for q in budgets
    ]


def _bill(records: Sequence[Record], sends: Sends | None) -> list[Row]:
    """What was asked, by cell and in all; a triple (cell, image, restart) counts once, whatever its samples."""
    rows: list[Row] = []
    totals = dict.fromkeys(BILL, 0)
    for cell in group_cells(sorted(records, key=lambda r: (r.label, r.key))):
        once = list({r.key[:3]: r for r in cell.measured}.values())
        counts = _counts(once, blind=not cell.adaptive)
        for metric, amount in counts.items():
            totals[metric] += amount
        if cell.adaptive and cell.head.budget is not None:
            rows += [_amount(m, counts[m], cell.head, len(cell.images)) for m in ("queries_asked", "queries_sent")]
    if sends is not None:
        # A metered target is charged for every send, whatever it was for, and not by cell.
        totals["queries_sent"], totals["queries_unknown"] = sends.answered + sends.unknown, sends.unknown
        rows = [row for row in rows if row.metric != "queries_sent"]
    images = len({r.image_id for r in records})
    return [*rows, *(_amount(metric, amount, None, images) for metric, amount in totals.items())]


def _counts(once: Iterable[Record], blind: bool) -> dict[str, int]:
    """Sums over triples; a blind cell asked nothing, and repeats the counts of the attack that it borrows from."""
    counts = dict.fromkeys(BILL, 0)
    for record in once:
        counts["queries_harness"] += record.queries_harness or 0
        if not blind:
            asked, free = record.queries or 0, record.queries_from_memory or 0
            counts["queries_asked"] += asked
            counts["queries_from_memory"] += free
            counts["queries_sent"] += asked - free
            counts["queries_reexecuted"] += record.queries_reexecuted or 0
    return counts


def _amount(metric: str, amount: int, head: Record | None, images: int) -> Row:
    return Row(
        cell=head.cell if head is not None else None,
        label=head.label if head is not None else "all cells",
        metric=metric,
        mean=float(amount),
        ci_low=None,
        ci_high=None,
        n=images,
        of=images,
        attack=head.attack if head is not None else None,
        norm=head.norm if head is not None else "",
        eps=head.eps if head is not None else None,
        budget=head.budget if head is not None else None,
        defense=head.defense if head is not None else "",
        grad_mode=head.grad_mode if head is not None else None,
        note="a total, no mean",
    )


def _own_budget(row: Row, curves: CellCurves) -> Row:
    """A row of the evaluation, at the largest budget; its success rate with the interval of all other budgets."""
    row = replace(row, budget=curves.read_at[-1])
    if row.metric == SUCCESS:
        found = clopper_pearson(round((row.mean or 0.0) * row.n), row.n)
        return replace(row, ci_low=found.ci_low, ci_high=found.ci_high)
    return replace(row, note=_joined(_standing(curves), row.note)) if row.metric in EVALUATED else row


def _standing(curves: CellCurves) -> str:
    short = len(curves.cut_short(curves.read_at[-1]))
    return f"{short} images were cut short and stand as they were" if short else ""


def _averaged(row: Row, values: PerImage, seed: int, note: str) -> Row:
    binary = row.metric in _FOUND_OR_MISSED and bool(values)
    found = wilson(round(sum(values.values())), len(values)) if binary else estimate(values, seed)
    if found is None:
        return _with(replace(row, n=0, ci_low=None, ci_high=None), None, note)
    pick = min if row.metric in _LOW_IS_WORST else max
    worst = pick(sorted(values), key=lambda i: values[i])
    return replace(_with(row, found, note), worst=values[worst], worst_image=worst)


def _with(row: Row, found: Estimate | None, note: str, mean: float | None = None) -> Row:
    if found is not None:
        row = replace(row, mean=found.mean, ci_low=found.ci_low, ci_high=found.ci_high, n=found.n)
    else:
        row = replace(row, mean=mean)
    short = f"{row.n} of {row.of} images" if row.n < row.of else ""
    few = f"n = {row.n}, too few for a claim" if row.n < CLAIM_SIZE else ""
    return replace(row, note=_joined(note, short, few))


def _cut(curves: CellCurves, budget: int) -> str:
    """Images whose search was ended early and that were not harmed until then."""
    times, short = curves.to_success() or {}, curves.cut_short(budget)
    open_ends = sum(i in short and times.get(i) is None for i in short)
    return f"{open_ends} images were cut short before {budget} queries and count as failures" if open_ends else ""


def _restarts(curves: CellCurves) -> str:
    return f"best of {curves.restarts} restarts, each asked so many" if curves.restarts > 1 else ""


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))
