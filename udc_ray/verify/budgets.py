"""What was asked, against what was allowed, and what the rows of one attack must have in common."""

from __future__ import annotations

from collections import Counter

from udc_ray.plan import Cell
from udc_ray.records import Record
from udc_ray.tasks import task_of
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence, Triple, name_of

NOTICED = ("grad_zero_share", "grad_dead_steps", "loss_move", "lost")
"""What an attack by gradients noticed on its way."""
FUSED = ("psnr_mean_output_clean", "psnr_mean_output_adv", "psnr_median_output_clean", "psnr_median_output_adv")
SHARED = ("budget", "linf", "l2", "queries", "queries_harness", "grad_evals", "stop_reason", *NOTICED, *FUSED)
"""Columns that belong to (cell, image, restart) and are repeated in each of its sample rows."""
BORROWED = ("budget", "linf", "l2", "queries", "grad_evals", "stop_reason", *NOTICED)
"""Columns that a blind cell repeats from the attack whose images it uses."""
OF_QUERIES = frozenset({"success", "budget", "converged"})
"""Reasons for which a query attack ends."""


def check_budgets(evidence: Evidence) -> Finding:
    """Queries within budgets, stop reasons and successes that fit, and repeated columns that are equal."""
    audit = Audit("queries, budgets and success")
    for triple, rows in evidence.triples.items():
        _shared(audit, triple, rows)
        _budget(audit, triple, rows[0])
        for record in rows:
            _success(audit, evidence, record)
    for record in (r for r in evidence.records if r.stop_reason == "error" or r.error is not None):
        _failed(audit, record)
    _borrowed(audit, evidence)
    _limits(audit, evidence)
    owned = sum(len(("queries", "grad_evals")) for rows in evidence.triples.values() if rows[0].grad_mode != "blind")
    audit.gap(
        "queries and grad_evals themselves",
        owned,
        "counted where the target was called; held against budgets, curves, states and ledger only",
    )
    audit.gap("queries_harness, nfe", 2 * len(evidence.records), "counted where the target was called")
    return audit.finding()


def _shared(audit: Audit, triple: Triple, rows: list[Record]) -> None:
    for record in rows[1:]:
        for column in SHARED:
            where = f"{name_of(triple)}, sample {record.sample}, {column}"
            audit.same(where, getattr(record, column), getattr(rows[0], column), "differs between samples")


def _budget(audit: Audit, triple: Triple, record: Record) -> None:
    where = name_of(triple)
    queries = record.queries
    if record.budget is None:
        return
    if audit.holds(where, queries is not None and queries >= 0, "a query attack without a count of queries"):
        spent = f"{queries} queries are above the budget of {record.budget}"
        audit.holds(where, (queries or 0) <= record.budget, spent)
    known = f"a query attack does not end because of {record.stop_reason!r}"
    audit.holds(where, record.stop_reason in OF_QUERIES, known)
    audit.holds(where, not record.grad_evals, "a query attack that evaluated gradients")


def _success(audit: Audit, evidence: Evidence, record: Record) -> None:
    """Success as the task and the spec define it, from the qualities that stand beside it."""
    where = f"{name_of(record.key[:3])}, sample {record.sample}, success"
    audit.same(where, record.success, _harmed(record, evidence))


def _harmed(record: Record, evidence: Evidence) -> bool | None:
    wanted, attacked, clean = evidence.spec.success, record.psnr_adv, record.psnr_clean
    if task_of(record.objective).name == "classification":
        # A class that had been missed before the attack cannot be lost to it.
        return None if record.score_clean != 1.0 or record.score_adv is None else record.score_adv == 0.0
    if attacked is None:
        return None
    if wanted.psnr_below is not None:
        return attacked <= wanted.psnr_below
    return None if clean is None else clean - attacked >= wanted.drop_db


def _failed(audit: Audit, record: Record) -> None:
    where = name_of(record.key[:3])
    audit.holds(where, record.error is not None and record.stop_reason == "error", "a failure without its reason")
    scores = (record.psnr_adv, record.ssim_adv, record.score_adv)
    audit.holds(where, all(score is None for score in scores), "a failed unit with scores")


def _borrowed(audit: Audit, evidence: Evidence) -> None:
    """A blind cell repeats the counts of the attack on the undefended model."""
    if evidence.plan is None:
        return
    sources = {
        cell.attack: cell.id for cell in evidence.plan.cells if evidence.plan.defences[cell.defence].purifier is None
    }
    for triple, rows in evidence.triples.items():
        cell: Cell | None = evidence.planned.get(triple[0])
        source = None if cell is None or cell.grad_mode != "blind" else sources.get(cell.attack)
        original = evidence.triples.get((source, *triple[1:])) if source is not None else None
        if original is not None:
            for column in BORROWED:
                borrowed = getattr(rows[0], column)
                where = f"{name_of(triple)}, {column}"
                audit.same(where, borrowed, getattr(original[0], column), "differs from the attack that it borrows")


def _limits(audit: Audit, evidence: Evidence) -> None:
    """The accounts that span many images: of the campaign, of a cell, of a victim."""
    by_cell: Counter[str] = Counter()
    for triple, rows in evidence.triples.items():
        if rows[0].grad_mode != "blind" and rows[0].budget is not None:
            by_cell[triple[0]] += rows[0].queries or 0
    run = evidence.spec.run
    if run.max_queries is not None:
        total = sum(by_cell.values())
        audit.holds("run", total <= run.max_queries, f"{total} queries are above max_queries {run.max_queries}")
    for cell, asked in by_cell.items() if run.max_queries_per_cell is not None else ():
        bound = run.max_queries_per_cell or 0
        audit.holds(f"cell {cell}", asked <= bound, f"{asked} queries are above max_queries_per_cell {bound}")
    if run.max_queries_per_target is not None:
        _by_target(audit, evidence, by_cell, run.max_queries_per_target)


def _by_target(audit: Audit, evidence: Evidence, by_cell: Counter[str], bound: int) -> None:
    victims: Counter[int] = Counter()
    for cell, asked in by_cell.items():
        if cell in evidence.planned:
            victims[evidence.planned[cell].defence] += asked
    for victim, asked in victims.items():
        where = f"defence {victim} of the spec"
        audit.holds(where, asked <= bound, f"{asked} queries are above max_queries_per_target {bound}")
