"""``udc-ray evaluate``: the main job."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from udc_ray.errors import Interrupted, SpecError
from udc_ray_cli import options
from udc_ray_cli.way import Way

if TYPE_CHECKING:
    from udc_ray.config import Overrides
    from udc_ray.run import Finished, Listener, Settings
    from udc_ray.setup import HostSetup
    from udc_ray.spec import RunSpec

SOME_FAILED, CHECK_FAILED = 1, 3


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a run is carried out and shown, whatever it is."""

    way: Way
    out: str | None
    resume: str | None
    max_hours: float | None
    strict: bool
    as_json: bool

    def resume_command(self, run: str) -> str:
        """The command that goes on with a run, from any folder."""
        from udc_ray.places import absolute

        flags = {"--strict": self.strict, "--json": self.as_json}
        given = [*self.way.words, *(flag for flag, wanted in flags.items() if wanted)]
        return shlex.join(["udc-ray", "evaluate", "--resume", absolute(run), *given])


def evaluate(
    spec: options.SpecFile = None,
    preset: options.Preset = None,
    model: options.Model = None,
    weights: options.Weights = None,
    data: options.Data = None,
    display: options.Display = None,
    no_reference: options.NoReference = False,
    attack: options.Attacks = None,
    defense: options.Defenses = None,
    out: options.Out = None,
    limit: options.Limit = None,
    settings: options.Settings = None,
    seed: options.Seed = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="Without Ray, in this process.")] = False,
    cluster: options.Cluster = False,
    address: options.Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave once the job is submitted.")] = False,
    shared: options.Shared = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run directory; needs no spec.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="Begin no new work after so long.", min=0)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a check fails.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Attack a restorer, defend it, attack the defence, and print what is left."""
    way = Way(in_process=in_process, cluster=cluster, address=address, detach=detach, shared=tuple(shared or ()))
    manner = Manner(way=way, out=out, resume=resume, max_hours=max_hours, strict=strict, as_json=as_json)
    from udc_ray.config import Overrides, build_spec
    from udc_ray.places import with_absolute_paths

    flags = Overrides(
        model=model,
        weights=weights,
        data=data,
        display=display,
        reference=False if no_reference else None,
        attacks=tuple(attack or ()),
        defenses=tuple(defense or ()),
        limit=limit,
        seed=seed,
    )
    if resume is not None:
        _refuse_beside_resume({"SPEC": spec, "--preset": preset, "--out": out, "--set": settings}, flags)
        _run(None, manner)
        return
    built = build_spec(spec_file=spec, preset=preset, flags=flags, sets=tuple(settings or ()))
    _run(with_absolute_paths(built), manner)


def _refuse_beside_resume(options: dict[str, object], flags: Overrides) -> None:
    words = {"reference": "--no-reference", "attacks": "--attack", "defenses": "--defense"}
    given = [name for name, value in options.items() if value]
    given += [words.get(f.name, f"--{f.name}") for f in fields(flags) if getattr(flags, f.name) != f.default]
    if given:
        raise SpecError(
            f"--resume takes no {', '.join(given)}",
            "the spec of a run lies in its directory",
            "leave that away; to raise a budget, give the first command again with --out and the run directory",
        )


def _run(spec: RunSpec | None, manner: Manner) -> None:
    from udc_ray_cli.show import show

    with redirect_stdout(sys.stderr):  # stdout is the report's alone, whatever a user's own model prints
        finished = _submitted(spec, manner) if manner.way.submits else _carry_out(spec, manner)
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
        command="evaluate",
        spec=None if spec is None else spec_values(spec),
        out=None if manner.out is None else absolute(manner.out),
        resume=None if manner.resume is None else absolute(manner.resume),
        storage=os.environ.get(STORAGE_VARIABLE),
        fallback=absolute("runs"),
        shared=tuple(map(absolute, manner.way.shared)),
        max_hours=manner.max_hours,
        arguments=tuple(redact_command([word]) for word in sys.argv),
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
    from udc_ray.host import Host
    from udc_ray.pool import InProcessPool
    from udc_ray.prepare import prepare
    from udc_ray.run import execute

    prepared = prepare(spec)

    def make_pool(setup: HostSetup) -> InProcessPool:
        return InProcessPool(Host(setup, device=prepared.device, restorer=prepared.restorer))

    return execute(prepared, make_pool, listener, settings)
