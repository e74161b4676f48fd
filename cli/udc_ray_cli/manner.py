"""A run from the command line: how it is carried out and shown, whatever the command."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from udc_ray.errors import Interrupted
from udc_ray_cli.way import Way

if TYPE_CHECKING:
    from udc_ray.run import Finished, Listener, Settings
    from udc_ray.setup import HostSetup
    from udc_ray.spec import RunSpec

SOME_FAILED, CHECK_FAILED = 1, 3


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a run is carried out and shown.

    Attributes:
        command: name of the command.
        way: where.
        out, resume: the run directory, new or to go on with.
        strict, as_json: what is made of the report.
        max_hours: when no new work is begun any more.
        cut: when the time is up, query attacks end where they are.
        max_queries: queries that all attacks may ask.
        dry_run: say what it costs, and do nothing.
    """

    command: str
    way: Way
    out: str | None
    resume: str | None
    strict: bool
    as_json: bool
    max_hours: float | None = None
    cut: bool = False
    max_queries: int | None = None
    dry_run: bool = False

    def limited(self, hours: float | None, queries: int | None, *, dry_run: bool) -> Manner:
        """With the limits of a campaign, whose attacks end where they are when the time is up."""
        return replace(self, max_hours=hours, cut=True, max_queries=queries, dry_run=dry_run)

    def resume_command(self, run: str) -> str:
        """The command that goes on with a run, from any folder."""
        from udc_ray.places import absolute

        flags = {"--strict": self.strict, "--json": self.as_json}
        given = [*self.way.words, *(flag for flag, wanted in flags.items() if wanted)]
        return shlex.join(["udc-ray", self.command, "--resume", absolute(run), *given])


def run(spec: RunSpec | None, manner: Manner) -> None:
    """Carry out a run, or go on with one where there is no spec, and print its report."""
    from udc_ray.run import DryRun
    from udc_ray_cli.show import show

    with redirect_stdout(sys.stderr):  # stdout is the report's alone, whatever a user's own model prints
        try:
            finished = _submitted(spec, manner) if manner.way.submits else _carry_out(spec, manner)
        except DryRun:
            return
        if not finished.complete:
            what = "some units failed" if finished.failed else "not all is done"
            typer.echo(f"{what}. Go on with:\n  {manner.resume_command(finished.where)}", err=True)
    show(finished.summary, finished.checks, finished.where, as_json=manner.as_json)
    if manner.strict and any(check.verdict == "fail" for check in finished.checks):
        raise typer.Exit(CHECK_FAILED)
    if finished.failed or not finished.complete:
        raise typer.Exit(SOME_FAILED)


def _submitted(spec: RunSpec | None, manner: Manner) -> Finished:
    from udc_ray.config import spec_values
    from udc_ray.places import absolute
    from udc_ray.redact import redact_command
    from udc_ray_cli.submission import submit
    from udc_ray_cluster.request import STORAGE_VARIABLE, Request

    request = Request(
        command=manner.command,
        spec=None if spec is None else spec_values(spec),
        out=None if manner.out is None else absolute(manner.out),
        resume=None if manner.resume is None else absolute(manner.resume),
        storage=os.environ.get(STORAGE_VARIABLE),
        fallback=absolute("runs"),
        shared=tuple(map(absolute, manner.way.shared)),
        max_hours=manner.max_hours,
        arguments=tuple(redact_command([word]) for word in sys.argv),
        options={"cut": manner.cut, "max_queries": manner.max_queries, "dry_run": manner.dry_run},
    )
    return submit(manner.way.where or "", request, spec, detach=manner.way.detach)


def _carry_out(spec: RunSpec | None, manner: Manner) -> Finished:
    """Carry the run out from this process: in it, on a Ray that starts here, or on a cluster."""
    from udc_ray.run import Settings
    from udc_ray.rundir import RunDirectory
    from udc_ray_cli.progress import RunProgress

    settings = Settings(
        out=manner.resume or manner.out,
        arguments=tuple(sys.argv),
        max_hours=manner.max_hours,
        retry_failed=manner.resume is not None,
        cut=manner.cut,
        max_queries=manner.max_queries,
        dry_run=manner.dry_run,
    )
    spec = spec or RunDirectory.read(manner.resume or "").header.spec
    try:
        if manner.way.in_process:
            return _in_process(spec, RunProgress(), settings)
        from udc_ray_cluster import driver

        if manner.way.where is None:
            return driver.evaluate_on_this_machine(spec, RunProgress(), settings)
        root = driver.storage_root() if manner.way.cluster else None
        return driver.evaluate_attached(spec, RunProgress(), settings, address=manner.way.where, root=root)
    except Interrupted as stop:
        if stop.where is not None:
            command = manner.resume_command(stop.where)
            typer.echo(f"stopped; what is done is kept. Go on with:\n  {command}", err=True)
        raise


def _in_process(spec: RunSpec, listener: Listener, settings: Settings) -> Finished:
    from udc_ray.hosting import make_host
    from udc_ray.in_process import InProcessPool
    from udc_ray.prepare import prepare
    from udc_ray.run import execute

    prepared = prepare(spec)

    def make_pool(setup: HostSetup) -> InProcessPool:
        return InProcessPool(make_host(setup, device=prepared.device, restorer=prepared.restorer))

    return execute(prepared, make_pool, listener, settings)
