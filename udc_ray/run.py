"""The flow of a run: spec -> plan -> pool -> records -> report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from udc_ray import environment
from udc_ray.allowance import Allowance, spent_queries
from udc_ray.checks import CheckResult, measured, run_checks
from udc_ray.checks.readings import GRADIENTS
from udc_ray.cost import PROBE_SECONDS, attacked_victims, estimate, is_long
from udc_ray.errors import Interrupted, RunDirectoryError, UserError
from udc_ray.gradient_probe import Prober, met_by_gradients
from udc_ray.interrupt import Drain
from udc_ray.metered.endpoint import is_target
from udc_ray.places import absolute
from udc_ray.plan import Unit
from udc_ray.pool import Ending, WorkPool
from udc_ray.prepare import Prepared
from udc_ray.probe import Resolved
from udc_ray.records import Record
from udc_ray.report.build import summarise
from udc_ray.report.html import write_page
from udc_ray.report.pictures import draw_curves, draw_strips
from udc_ray.report.summary import Summary
from udc_ray.rounds import Listener as Listener  # others import it from here
from udc_ray.rounds import budgets, limits_of, run_rounds, todo_units
from udc_ray.rundir import ENVIRONMENT, SELECTION, RunDirectory, default_out
from udc_ray.selection import pending
from udc_ray.setup import HostSetup

PoolFactory = Callable[[HostSetup], WorkPool]


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
        todo = todo_units(run, setup, settings.retry_failed)
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
            if setup.spec.campaign or settings.dry_run or is_long(setup, todo):
                _tell_cost(run, setup, pool, todo, listener)
            if settings.dry_run:
                run.discard()
                raise DryRun
            _probe_gradients(run, setup, pool)
            hours = float("inf") if settings.max_hours is None else settings.max_hours
            deadline = time.monotonic() + hours * 3600
            failed = run_rounds(run, setup, pool, todo, _Flow(drain, deadline, listener, settings).stop, listener)
            devices = pool.describe()
            run.update_environment(devices=devices, executed=_executed(devices), end=environment.now())
            drain.raise_if_asked()
            if is_target(setup.spec.model.name):
                pool.close()  # the account of a metered target is whole only then; and pictures are not worth queries
                return _report(run, setup, None, failed, listener)
            return _report(run, setup, pool, failed, listener)


def _probe_gradients(run: RunDirectory, setup: HostSetup, pool: WorkPool) -> None:
    """Once a run, measure how gradients pass the victims that its attacks work on; the checks judge it."""
    known = measured(run.read_json(ENVIRONMENT)).gradients
    if known or not isinstance(pool, Prober) or not any(met_by_gradients(setup.plan)):
        return
    readings = [reading.to_json() for reading in pool.probe_gradients()]
    before = (run.read_json(ENVIRONMENT) or {}).get("probes", {})
    run.update_environment(probes={**before, GRADIENTS: readings})


def _tell_cost(
    run: RunDirectory, setup: HostSetup, pool: WorkPool | None, todo: list[Unit], listener: Listener
) -> None:
    """Say what is to be done and what it takes, measured on a host of the pool; a metered target is not asked."""
    limits = limits_of(setup)
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
    """What may end the work early."""

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
    """Settle micro-batch, threads and noise levels: once, then as written in the run."""
    if run.header.resolved is None:
        if pending(setup.plan):
            listener.note("choosing noise levels on trial images")
        resolved = pool.resolve(prepared.shapes)
        if resolved.selections:
            run.write_json(SELECTION, list(resolved.selections))
        run.resolve(resolved.to_values())
        run.update_environment(probes={"position_invariance": [list(shape) for shape in prepared.shapes]})
    else:
        values = run.header.resolved
        resolved = Resolved(**{**values, "notes": tuple(values.get("notes", ()))})
    for note in (*resolved.notes, *prepared.notes):
        listener.note(f"note: {note}")
    if resolved != prepared.setup.resolved:
        pool.configure(resolved)
    return replace(setup, resolved=resolved)


def _report(run: RunDirectory, setup: HostSetup, pool: WorkPool | None, failed: int, listener: Listener) -> Finished:
    """Compact, check, summarise and draw."""
    records = run.compact()
    if not records:
        raise RunDirectoryError(
            "the run has no results yet: no unit has ended in the time that was given",
            "--max-hours is shorter than one unit takes, or the budget (--max-queries, model.budget) ends before it",
            f"give more, and the same command again: it goes on with {run.storage.name}",
        )
    checks = run_checks(records, setup.spec, measured(run.read_json(ENVIRONMENT), run.read_json(SELECTION)))
    summary = summarise(run, records, checks)
    run.write_json("checks.json", [check.to_json() for check in checks])
    run.write_json("summary.json", summary.to_json())
    _draw(run, setup, pool, records, listener)
    write_page(run, summary, checks)
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
