"""The flow of a run: spec -> plan -> pool -> records -> report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from udc_ray import environment
from udc_ray.attacks.query import QueryAttack
from udc_ray.checks import CheckResult, run_checks
from udc_ray.errors import Interrupted, RunDirectoryError, UserError
from udc_ray.failures import failed_records
from udc_ray.interrupt import Drain
from udc_ray.plan import Unit
from udc_ray.pool import Outcome, WorkPool
from udc_ray.prepare import Prepared
from udc_ray.probe import Resolved
from udc_ray.records import Record
from udc_ray.report.pictures import draw_pictures
from udc_ray.report.summary import Summary, build_summary
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
    """
    out = settings.out or default_out(prepared.setup.fingerprint)
    try:
        return _execute(prepared, make_pool, listener, replace(settings, out=out))
    except Interrupted as stop:
        raise Interrupted(stop.signal_number, out) from None


def _execute(prepared: Prepared, make_pool: PoolFactory, listener: Listener, settings: Settings) -> Finished:
    setup, out = prepared.setup, settings.out or ""
    session = environment.describe_session(settings.arguments)
    opened = RunDirectory.open(
        out, setup.spec, prepared.document, session, patience=settings.patience, note=listener.note, job=settings.job
    )
    with Drain() as drain, opened as run, _named_job(run, settings.job):
        listener.note(run.message)
        for warning in run.warnings:
            listener.note(f"warning: {warning}")
        todo = _todo(run, setup, settings.retry_failed)
        for part, reason in run.damaged.items():
            listener.note(f"warning: {part} cannot be read and is done again: {reason}")
        if not todo and _has_pictures(run, setup):
            listener.note("everything is done already")
            return _report(run, setup, None, 0, listener)
        with closing(make_pool(setup)) as pool:
            setup = _resolved_or_discarded(run, prepared, pool, listener)
            hours = float("inf") if settings.max_hours is None else settings.max_hours
            deadline = time.monotonic() + hours * 3600
            failed = _work(run, setup, pool, _Flow(todo, drain, deadline, listener))
            devices = pool.describe()
            run.update_environment(devices=devices, executed=_executed(devices), end=environment.now())
            drain.raise_if_asked()
            return _report(run, setup, pool, failed, listener)


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
    told: bool = False

    def stop(self) -> bool:
        """Whether no more units are to be begun: a signal came, or the time is up."""
        late = time.monotonic() >= self.deadline
        if late and not self.told:
            self.told = True
            self.listener.note("the time is up; no new work is begun")
        return late or self.drain.asked


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
    done = run.done_keys(budgets(setup)) if run.resumed else set()
    if run.resumed and not retry_failed:
        done |= run.quarantined(budgets(setup))
    units = sorted(setup.plan.units(setup.dataset.image_ids, chunk, done), key=setup.plan.cost, reverse=True)
    # Longest first, so that no host is left with a long unit at the end; but one short unit leads,
    # so that a first result, or a first failure, is seen at once.
    return units[-1:] + units[:-1]


def _resolved_or_discarded(run: RunDirectory, prepared: Prepared, pool: WorkPool, listener: Listener) -> HostSetup:
    """Probe the hosts; a run whose model cannot be used leaves no directory behind."""
    try:
        return _resolve(run, prepared, pool, listener)
    except UserError:
        run.discard()
        raise


def _resolve(run: RunDirectory, prepared: Prepared, pool: WorkPool, listener: Listener) -> HostSetup:
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
    return replace(prepared.setup, resolved=resolved)


def _work(run: RunDirectory, setup: HostSetup, pool: WorkPool, flow: _Flow) -> int:
    """Run the units and store what they give; returns how many failed."""
    failed = 0
    flow.listener.begin(len(flow.todo))
    try:
        for outcome in pool.map_unordered(flow.todo, flow.stop):
            run.append(_stored(setup, outcome))
            failed += outcome.error is not None
            flow.listener.unit(outcome)
            if outcome.error is not None:
                flow.listener.note(f"a unit failed and is skipped: {outcome.error}")
    finally:
        flow.listener.end()
    return failed


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
            "--max-hours is shorter than one unit takes",
            f"give more, and the same command again: it goes on with {run.storage.name}",
        )
    checks = run_checks(records, setup.spec)
    summary = build_summary(records, setup.spec, checks)
    run.write_json("checks.json", [check.to_json() for check in checks])
    run.write_json("summary.json", summary.to_json())
    if pool is not None:
        _draw(run, setup, pool, records, listener)
    return Finished(
        summary=summary,
        checks=checks,
        where=run.storage.name,
        failed=failed or sum(r.error is not None for r in records),
        complete=_is_complete(setup, records),
    )


def _draw(run: RunDirectory, setup: HostSetup, pool: WorkPool, records: list[Record], listener: Listener) -> None:
    try:
        draw_pictures(run, setup, pool, records)
    except UserError:
        raise
    except Exception as error:  # the numbers are there; a picture that fails must not hide them
        listener.note(f"the pictures could not be drawn: {type(error).__name__}: {error}")


def _has_pictures(run: RunDirectory, setup: HostSetup) -> bool:
    """Whether a session has come to its report; one that was stopped after its last unit has not."""
    return setup.spec.run.save == "none" or bool(run.storage.names("figures"))


def _is_complete(setup: HostSetup, records: list[Record]) -> bool:
    owed = {key for cell in setup.plan.cells for i in setup.dataset.image_ids for key in setup.plan.keys(cell, i)}
    return owed <= {r.key for r in records if r.error is None}
