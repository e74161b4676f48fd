"""``udc-ray evaluate``: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from udc_ray.errors import SpecError
from udc_ray_cli import options
from udc_ray_cli.manner import Manner, run
from udc_ray_cli.way import Way

if TYPE_CHECKING:
    from udc_ray.config import Overrides


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it costs, and do nothing.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Attack a restorer, defend it, attack the defence, and print what is left."""
    way = Way(in_process=in_process, cluster=cluster, address=address, detach=detach, shared=tuple(shared or ()))
    manner = Manner(
        command="evaluate",
        way=way,
        out=out,
        resume=resume,
        max_hours=max_hours,
        strict=strict,
        as_json=as_json,
        dry_run=dry_run,
    )
    from udc_ray.config import build_spec
    from udc_ray.places import with_absolute_paths

    flags = options.overrides(model, weights, data, display, no_reference, attack, defense, limit, seed)
    if resume is not None:
        refuse_beside_resume({"SPEC": spec, "--preset": preset, "--out": out, "--set": settings}, flags)
        run(None, manner)
        return
    built = build_spec(spec_file=spec, preset=preset, flags=flags, sets=tuple(settings or ()))
    run(with_absolute_paths(built), manner)


def refuse_beside_resume(options: Mapping[str, object], flags: Overrides) -> None:
    """A run that is gone on with brings its own spec."""
    words = {"reference": "--no-reference", "attacks": "--attack", "defenses": "--defense"}
    given = [name for name, value in options.items() if value]
    given += [words.get(f.name, f"--{f.name}") for f in fields(flags) if getattr(flags, f.name) != f.default]
    if given:
        raise SpecError(
            f"--resume takes no {', '.join(given)}",
            "the spec of a run lies in its directory",
            "leave that away; to raise a budget, give the first command again with --out and the run directory",
        )
