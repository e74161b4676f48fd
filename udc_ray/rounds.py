"""The units of a run in rounds: what is missing is shared out, run, and stored, until nothing is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from udc_ray.allowance import Allowance, Limits, spent_queries
from udc_ray.attacks.query import QueryAttack
from udc_ray.failures import failed_records
from udc_ray.plan import Unit
from udc_ray.pool import Outcome, Stop, WorkPool
from udc_ray.results import UnitResult
from udc_ray.rundir import RunDirectory
from udc_ray.setup import HostSetup


class Listener(Protocol):
    """Who is told how the run goes."""

    def note(self, text: str) -> None:
        """Something worth saying."""
        ...

    def begin(self, units: int) -> None:
        """So many units are to be done."""
        ...

    def unit(self, outcome: Outcome) -> None:
        """A unit ended."""
        ...

    def end(self) -> None:
        """No more units."""
        ...


def budgets(setup: HostSetup) -> dict[str, int | None]:
    """Budget of every cell, None where there is none."""
    attacks = setup.plan.attacks
    return {
        cell.id: attack.budget if isinstance(attack := attacks[cell.attack].attack, QueryAttack) else None
        for cell in setup.plan.cells
    }


def todo_units(run: RunDirectory, setup: HostSetup, retry_failed: bool) -> list[Unit]:
    """What is missing of the run, in the order in which it is begun."""
    chunk = setup.spec.run.chunk or setup.resolved.micro_batch
    done = run.done_keys(budgets(setup))
    if not retry_failed:
        done |= run.quarantined(budgets(setup))
    units = sorted(setup.plan.units(setup.dataset.image_ids, chunk, done), key=setup.plan.cost, reverse=True)
    # Longest first, so that no host is left with a long unit at the end; but one short unit leads,
    # so that a first result, or a first failure, is seen at once.
    return units[-1:] + units[:-1]


def run_rounds(
    run: RunDirectory, setup: HostSetup, pool: WorkPool, todo: list[Unit], stop: Stop, listener: Listener
) -> int:
    """Run the units and store what they give, in rounds while queries are left over; returns how many failed."""
    limits, failed = limits_of(setup), 0
    while True:
        spent = spent_queries(run.records()) if limits.any else {}
        units = Allowance(setup.plan, limits, spent).share_out(todo)
        failed += _round(run, setup, pool, units, stop, listener)
        if not limits.any or stop() is not None:
            return failed
        todo = todo_units(run, setup, retry_failed=False)
        if not todo:
            return failed
        if spent_queries(run.records()) == spent:
            listener.note(f"the queries are spent; {len(todo)} units have not come to the end of their budgets")
            return failed


def _round(
    run: RunDirectory, setup: HostSetup, pool: WorkPool, units: list[Unit], stop: Stop, listener: Listener
) -> int:
    failed = 0
    listener.begin(len(units))
    try:
        for outcome in pool.map_unordered(units, stop, run.keep):
            run.append(_stored(setup, outcome))
            failed += outcome.error is not None
            listener.unit(outcome)
            if outcome.error is not None:
                listener.note(f"a unit failed and is skipped: {outcome.error}")
    finally:
        listener.end()
    return failed


def limits_of(setup: HostSetup) -> Limits:
    """The bounds on queries that the spec sets."""
    asked = setup.spec.run
    return Limits(total=asked.max_queries, per_cell=asked.max_queries_per_cell, per_target=asked.max_queries_per_target)


def _stored(setup: HostSetup, outcome: Outcome) -> UnitResult:
    """The result of a unit with what only the driver knows; error rows when it failed."""
    if outcome.result is None:
        error = outcome.error or "lost"
        return UnitResult(records=failed_records(setup, outcome.unit, error, outcome.host, outcome.retries))
    records = [
        replace(r, host=outcome.host, retries=outcome.retries, queries_reexecuted=outcome.queries_reexecuted)
        for r in outcome.result.records
    ]
    return replace(outcome.result, records=records)
