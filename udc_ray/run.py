"""The flow of a run: spec -> plan -> pool -> records -> report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from udc_ray import environment
from udc_ray.allowance import Allowance, Limits, spent_queries
from udc_ray.attacks.query import QueryAttack
from udc_ray.checks import CheckResult, run_checks
from udc_ray.cost import PROBE_SECONDS, attacked_victims, estimate
from udc_ray.errors import Interrupted, RunDirectoryError, UserError
from udc_ray.failures import failed_records
from udc_ray.interrupt import Drain
from udc_ray.metered.endpoint import is_target
from udc_ray.places import absolute
from udc_ray.plan import Unit
from udc_ray.pool import Ending, Outcome, WorkPool
from udc_ray.prepare import Prepared
from udc_ray.probe import Resolved
from udc_ray.records import Record
from udc_ray.report.build import summarise
from udc_ray.report.pictures import draw_curves, draw_strips
from udc_ray.report.summary import Summary
from udc_ray.results import UnitResult
from udc_ray.rundir import RunDirectory, default_out
from udc_ray.setup import HostSetup

PoolFactory = Callable[[HostSetup], WorkPool]


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out; none of it changes a number.

    Attributes:
        out: run directory; a name under runs/ unless given.
        arguments: the command line, for environment.json.
        max_hours: after so long no new unit is begun.
    """

    out: str | None = None
    arguments: tuple[str, ...] = ()
    max_hours: float | None = None
    retry_failed: bool = False
    """Try units again that failed before; an explicit resume does."""
    patience: float = 0.0
    """Seconds to wait for the lock of a writer that may be dead."""
    job: str | None = None
    """Submission id of the cluster job that this is, for RUN/job.json."""
    cut: bool = False
    """When the time is up, query attacks end where they are and are scored, in place of going on to their end."""
    max_queries: int | None = None
    """Queries that the attacks may ask in all; the spec's unless given."""
    dry_run: bool = False
    """Say what the run costs, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that came to its end.

    Attributes:
        summary: what the report prints.
        checks: what the number has passed.
        where: the run directory.
        failed: units that failed in this session.
        complete: whether every record that the plan owes is there.
    """

    summary: Summary
    checks: list[CheckResult] = field(default_factory=list)
    where: str = ""
    failed: int = 0
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values, to be shown by another process."""
        return {
            "summary": self.summary.to_json(),
            "checks": [check.to_json() for check in self.checks],
            "where": self.where,
            "failed": self.failed,
            "complete": self.complete,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Finished:
        """Read back what `to_json` wrote."""
        checks = [CheckResult.from_json(values) for values in document["checks"]]
        return cls(**{**document, "summary": Summary.from_json(document["summary"]), "checks": checks})


class DryRun(Exception):
    """All was said that a dry run says; nothing was done."""


def execute(prepared: Prepared, make_pool: PoolFactory, listener: Listener, settings: Settings) -> Finished:
    """Carry out a run, or what is missing of it.

    Args:
        prepared: the validated run.
        make_pool: makes the pool of hosts once the run directory is open.
        listener: is told how it goes.
        settings: where to, and for how long.

    Raises:
        UserError: the run directory cannot be used.
        Interrupted: a signal came; what was done is kept.
        DryRun: it was one; no new run directory stays behind.
    """
    prepared = _with_limit(prepared, settings.max_queries)
    out = settings.out or default_out(prepared.setup.fingerprint)
    try:
        return _execute(prepared, make_pool, listener, replace(settings, out=out))
    except Interrupted as stop:
        raise Interrupted(stop.signal_number, out) from None


def _with_limit(prepared: Prepared, max_queries: int | None) -> Prepared:
    """The run with the bound that was given in place of the spec's, so that the run directory tells it."""
    if max_queries is None:
        return prepared
    spec = prepared.setup.spec
    limited = spec.model_copy(update={"run": spec.run.model_copy(update={"max_queries": max_queries})})
    return replace(prepared, setup=replace(prepared.setup, spec=limited))


def _execute(prepared: Prepared, make_pool: PoolFactory, listener: Listener, settings: Settings) -> Finished:
    setup, out = prepared.setup, settings.out or ""
    session = environment.describe_session(settings.arguments)
    opened = RunDirectory.open(
        out, setup.spec, prepared.document, session, patience=settings.patience, note=listener.note, job=settings.job
    )
    with Drain() as drain, opened as run, _named_job(run, settings.job):
        listener.note(run.message)
        run.update_environment(images=len(setup.dataset.image_ids))
        for warning in run.warnings:
            listener.note(f"warning: {warning}")
        todo = _todo(run, setup, settings.retry_failed)
        for part, reason in run.damaged.items():
            listener.note(f"warning: {part} cannot be read and is done again: {reason}")
        if not todo and _has_pictures(run, setup):
            listener.note("everything is done already")
            return _report(run, setup, None, 0, listener)
        setup = replace(setup, out=absolute(run.storage.name))
        if settings.dry_run and is_target(setup.spec.model.name):
            _tell_cost(run, setup, None, todo, listener)
            run.discard()
            raise DryRun
        with closing(make_pool(setup)) as pool:
            setup = _resolved_or_discarded(run, prepared, setup, pool, listener)
            if setup.spec.campaign or settings.dry_run:
                _tell_cost(run, setup, pool, todo, listener)
            if settings.dry_run:
                run.discard()
                raise DryRun
            hours = float("inf") if settings.max_hours is None else settings.max_hours
            deadline = time.monotonic() + hours * 3600
            failed = _work(run, setup, pool, _Flow(todo, drain, deadline, listener, settings))
            devices = pool.describe()
            run.update_environment(devices=devices, executed=_executed(devices), end=environment.now())
            drain.raise_if_asked()
            if is_target(setup.spec.model.name):
                pool.close()  # the account of a metered target is whole only then; and pictures are not worth queries
                return _report(run, setup, None, failed, listener)
            return _report(run, setup, pool, failed, listener)


def _tell_cost(
    run: RunDirectory, setup: HostSetup, pool: WorkPool | None, todo: list[Unit], listener: Listener
) -> None:
    """Say what is to be done and what it takes, measured on a host of the pool; a metered target is not asked."""
    limits = _limits(setup)
    units = Allowance(setup.plan, limits, spent_queries(run.records()) if limits.any else {}).share_out(todo)
    seconds = None
    if pool is not None and not is_target(setup.spec.model.name):
        listener.note(f"measuring the speed for {PROBE_SECONDS:.0f} s")
        seconds = pool.speeds(attacked_victims(units), PROBE_SECONDS)
    for line in estimate(setup, units, seconds).lines():
        listener.note(line)


@contextmanager
def _named_job(run: RunDirectory, job: str | None) -> Iterator[None]:
    """RUN/job.json names the job that is at work, and says when it has ended."""
    if job is None:
        yield
        return
    run.write_json("job.json", {"submission_id": job, "start": environment.now(), "end": None})
    try:
        yield
    finally:
        with suppress(UserError):  # what ended the run counts, not that its end could not be written
            run.write_json("job.json", {**(run.read_json("job.json") or {}), "end": environment.now()})


@dataclass
class _Flow:
    """What is to be done, and what may end it early."""

    todo: list[Unit]
    drain: Drain
    deadline: float
    listener: Listener
    settings: Settings
    told: bool = False

    def stop(self) -> Ending | None:
        """Whether no more units are to be begun: a signal came, or the time is up."""
        if self.drain.asked:
            return "save"
        if time.monotonic() < self.deadline:
            return None
        if not self.told:
            self.told = True
            self.listener.note("the time is up; no new work is begun")
        return "cut" if self.settings.cut else "finish"


def _executed(devices: dict[str, Any]) -> dict[str, int]:
    """Images really evaluated by the harness, by purpose, over all hosts that are alive."""
    total: Counter[str] = Counter()
    for facts in devices.values():
        total.update(facts.get("executed", {}))
    return dict(total)


def budgets(setup: HostSetup) -> dict[str, int | None]:
    """Budget of every cell, None where there is none."""
    attacks = setup.plan.attacks
    return {
        cell.id: attack.budget if isinstance(attack := attacks[cell.attack].attack, QueryAttack) else None
        for cell in setup.plan.cells
    }


def _todo(run: RunDirectory, setup: HostSetup, retry_failed: bool) -> list[Unit]:
    chunk = setup.spec.run.chunk or setup.resolved.micro_batch
    done = run.done_keys(budgets(setup))
    if not retry_failed:
        done |= run.quarantined(budgets(setup))
    units = sorted(setup.plan.units(setup.dataset.image_ids, chunk, done), key=setup.plan.cost, reverse=True)
    # Longest first, so that no host is left with a long unit at the end; but one short unit leads,
    # so that a first result, or a first failure, is seen at once.
    return units[-1:] + units[:-1]


def _resolved_or_discarded(
    run: RunDirectory, prepared: Prepared, setup: HostSetup, pool: WorkPool, listener: Listener
) -> HostSetup:
    """Probe the hosts; a run whose model cannot be used leaves no directory behind."""
    try:
        return _resolve(run, prepared, setup, pool, listener)
    except UserError:
        run.discard()
        raise


def _resolve(run: RunDirectory, prepared: Prepared, setup: HostSetup, pool: WorkPool, listener: Listener) -> HostSetup:
    """Settle micro-batch and threads: once, then as written in the run."""
    if run.header.resolved is None:
        resolved = pool.resolve(prepared.shapes)
        run.resolve(asdict(resolved))
        run.update_environment(probes={"position_invariance": [list(shape) for shape in prepared.shapes]})
    else:
        values = run.header.resolved
        resolved = Resolved(**{**values, "notes": tuple(values.get("notes", ()))})
    for note in (*resolved.notes, *prepared.notes):
        listener.note(f"note: {note}")
    if resolved != prepared.setup.resolved:
        pool.configure(resolved)
    return replace(setup, resolved=resolved)


def _work(run: RunDirectory, setup: HostSetup, pool: WorkPool, flow: _Flow) -> int:
    """Run the units and store what they give, in rounds while queries are left over; returns how many failed."""
    limits, failed, todo = _limits(setup), 0, flow.todo
    while True:
        spent = spent_queries(run.records()) if limits.any else {}
        units = Allowance(setup.plan, limits, spent).share_out(todo)
        failed += _round(run, setup, pool, flow, units)
        if not limits.any or flow.stop() is not None:
            return failed
        todo = _todo(run, setup, retry_failed=False)
        if not todo:
            return failed
        if spent_queries(run.records()) == spent:
            flow.listener.note(f"the queries are spent; {len(todo)} units have not come to the end of their budgets")
            return failed


def _round(run: RunDirectory, setup: HostSetup, pool: WorkPool, flow: _Flow, units: list[Unit]) -> int:
    failed = 0
    flow.listener.begin(len(units))
    try:
        for outcome in pool.map_unordered(units, flow.stop, run.keep):
            run.append(_stored(setup, outcome))
            failed += outcome.error is not None
            flow.listener.unit(outcome)
            if outcome.error is not None:
                flow.listener.note(f"a unit failed and is skipped: {outcome.error}")
    finally:
        flow.listener.end()
    return failed


def _limits(setup: HostSetup) -> Limits:
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


def _report(run: RunDirectory, setup: HostSetup, pool: WorkPool | None, failed: int, listener: Listener) -> Finished:
    """Compact, check, summarise and draw."""
    records = run.compact()
    if not records:
        raise RunDirectoryError(
            "the run has no results yet: no unit has ended in the time that was given",
            "--max-hours is shorter than one unit takes, or the budget (--max-queries, model.budget) ends before it",
            f"give more, and the same command again: it goes on with {run.storage.name}",
        )
    checks = run_checks(records, setup.spec)
    summary = summarise(run, records, checks)
    run.write_json("checks.json", [check.to_json() for check in checks])
    run.write_json("summary.json", summary.to_json())
    _draw(run, setup, pool, records, listener)
    return Finished(
        summary=summary,
        checks=checks,
        where=run.storage.name,
        failed=failed or sum(r.error is not None for r in records),
        complete=_is_complete(run, setup),
    )


def _draw(
    run: RunDirectory, setup: HostSetup, pool: WorkPool | None, records: list[Record], listener: Listener
) -> None:
    try:
        if pool is not None:
            draw_strips(run, setup, pool, records)
        draw_curves(run, setup, records)
    except UserError:
        raise
    except Exception as error:  # the numbers are there; a picture that fails must not hide them
        listener.note(f"the pictures could not be drawn: {type(error).__name__}: {error}")


def _has_pictures(run: RunDirectory, setup: HostSetup) -> bool:
    """Whether a session has come to its report; one that was stopped after its last unit has not."""
    draws_none = setup.spec.run.save == "none" or setup.plan.task != "restoration" or is_target(setup.spec.model.name)
    return draws_none or bool(run.storage.names("figures"))


def _is_complete(run: RunDirectory, setup: HostSetup) -> bool:
    """Whether every record that the plan owes is there, and none was cut short of its budget."""
    owed = {key for cell in setup.plan.cells for i in setup.dataset.image_ids for key in setup.plan.keys(cell, i)}
    return owed <= run.done_keys(budgets(setup))
