"""``udc-ray evaluate``: the main job."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from udc_ray.errors import Interrupted, SpecError
from udc_ray_cli import options

if TYPE_CHECKING:
    from udc_ray.config import Overrides
    from udc_ray.prepare import Prepared
    from udc_ray.run import Finished, PoolFactory
    from udc_ray.spec import RunSpec

SOME_FAILED, CHECK_FAILED = 1, 3


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a run is carried out and shown, whatever it is."""

    out: str | None
    resume: str | None
    in_process: bool
    max_hours: float | None
    strict: bool
    as_json: bool

    def resume_command(self, run: str) -> str:
        """The command that goes on with a run, from any folder."""
        from udc_ray_cli.paths import absolute

        flags = {"--in-process": self.in_process, "--strict": self.strict, "--json": self.as_json}
        given = [flag for flag, wanted in flags.items() if wanted]
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
    resume: Annotated[str | None, typer.Option(help="Go on with this run directory; needs no spec.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="Begin no new work after so long.", min=0)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a check fails.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Attack a restorer, defend it, attack the defence, and print what is left."""
    _refuse_submission()
    from udc_ray.config import Overrides, build_spec
    from udc_ray_cli.paths import with_absolute_paths

    manner = Manner(out=out, resume=resume, in_process=in_process, max_hours=max_hours, strict=strict, as_json=as_json)
    flags = Overrides(
        model=model,
        weights=None if weights is None else str(weights),
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
        _run(_resumed_spec(resume), manner)
        return
    built = build_spec(spec_file=spec, preset=preset, flags=flags, sets=tuple(settings or ()))
    _run(with_absolute_paths(built), manner)


def _resumed_spec(run: str) -> RunSpec:
    from udc_ray.rundir import RunDirectory

    return RunDirectory.read(run).header.spec


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


def _refuse_submission() -> None:
    if os.environ.get("RAY_ADDRESS", "").strip().lower().startswith(("http://", "https://")):
        raise SpecError(
            "RAY_ADDRESS is an http address, and --cluster is not given",
            "jobs are submitted to such an address; this version attaches to a cluster or starts Ray here",
            "set RAY_ADDRESS to host:port of the cluster, or unset it",
        )


def _run(spec: RunSpec, manner: Manner) -> None:
    from udc_ray_cli.show import show

    with redirect_stdout(sys.stderr):  # stdout is the report's alone, whatever a user's own model prints
        finished = _carry_out(spec, manner)
        if not finished.complete:
            what = "some units failed" if finished.failed else "not all is done"
            typer.echo(f"{what}. Go on with:\n  {manner.resume_command(finished.where)}", err=True)
    show(finished.summary, finished.checks, finished.where, as_json=manner.as_json)
    if manner.strict and any(check.verdict == "fail" for check in finished.checks):
        raise typer.Exit(CHECK_FAILED)
    if finished.failed or not finished.complete:
        raise typer.Exit(SOME_FAILED)


def _carry_out(spec: RunSpec, manner: Manner) -> Finished:
    from udc_ray.prepare import prepare
    from udc_ray.run import Settings, execute
    from udc_ray.rundir import default_out
    from udc_ray_cli.progress import RunProgress

    prepared = prepare(spec)
    run = manner.resume or manner.out or default_out(prepared.setup.fingerprint)
    settings = Settings(
        out=run, arguments=tuple(sys.argv), max_hours=manner.max_hours, retry_failed=manner.resume is not None
    )
    with _pools(prepared, manner.in_process) as make_pool:
        try:
            return execute(prepared, make_pool, RunProgress(), settings)
        except Interrupted:
            typer.echo(f"stopped; what is done is kept. Go on with:\n  {manner.resume_command(run)}", err=True)
            raise


@contextmanager
def _pools(prepared: Prepared, in_process: bool) -> Iterator[PoolFactory]:
    """How hosts are made: one in this process, or a pool of them on Ray."""
    if in_process:
        from udc_ray.host import Host
        from udc_ray.pool import InProcessPool

        yield lambda setup: InProcessPool(Host(setup, device=prepared.device, restorer=prepared.restorer))
        return
    from udc_ray_cluster.pool import RayPool
    from udc_ray_cluster.session import session

    hosts = prepared.setup.spec.run.hosts
    with session(hosts, os.environ.get("RAY_ADDRESS")):
        yield lambda setup: RayPool(setup, hosts, prepared.device)
