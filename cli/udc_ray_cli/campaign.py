"""``udc-ray campaign``: query attacks at scale, and what a campaign has done so far."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from udc_ray.errors import SpecError
from udc_ray_cli import options
from udc_ray_cli.evaluate import refuse_beside_resume
from udc_ray_cli.manner import Manner, run
from udc_ray_cli.way import Way

if TYPE_CHECKING:
    from udc_ray.config import Overrides
    from udc_ray.spec import RunSpec

_DECIBEL = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(?:dB)?\s*$", re.IGNORECASE)
_HOURS = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([hms]?)\s*$")
_UNITS = {"h": 1.0, "": 1.0, "m": 1 / 60, "s": 1 / 3600}


class DefaultsToRun(TyperGroup):
    """``campaign SPEC`` is ``campaign run SPEC``; ``campaign status RUN`` is itself."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take what is no command for the first word of ``run``."""
        known = args and args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["run", *args])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let options that come first belong to ``run``."""
        known = args and args[0] in self.commands
        parsed: list[str] = super().parse_args(ctx, args if known else ["run", *args])
        return parsed


app = typer.Typer(
    cls=DefaultsToRun,
    rich_markup_mode=None,
    help="Attack through queries alone: campaign [SPEC.yaml] [OPTIONS], and campaign status RUN.",
)


@app.command("run")
def campaign(
    spec: options.SpecFile = None,
    preset: options.Preset = None,
    model: options.Model = None,
    weights: options.Weights = None,
    target: Annotated[str | None, typer.Option(help="HTTP endpoint to attack, in place of a model.")] = None,
    data: options.Data = None,
    display: options.Display = None,
    no_reference: options.NoReference = False,
    attack: options.Attacks = None,
    defense: options.Defenses = None,
    out: options.Out = None,
    limit: options.Limit = None,
    settings: options.Settings = None,
    seed: options.Seed = None,
    max_queries: Annotated[int | None, typer.Option(help="Queries of all attacks together, at most.", min=1)] = None,
    deadline: Annotated[str | None, typer.Option(help="End after so long: 2h, 30m, 90s; what runs is scored.")] = None,
    find_eps: Annotated[str | None, typer.Option(help="Look for each image's smallest harmful eps: 3dB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it costs, and do nothing.")] = False,
    in_process: Annotated[bool, typer.Option("--in-process", help="Without Ray, in this process.")] = False,
    cluster: options.Cluster = False,
    address: options.Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave once the job is submitted.")] = False,
    shared: options.Shared = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run directory; needs no spec.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a check fails.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Attack through queries alone: many images, attacks and targets, with budgets that are never exceeded.

    How far a campaign is: udc-ray campaign status RUN.
    """
    if target is not None and model is not None:
        raise SpecError("--target and --model exclude each other", change="give one of them")
    way = Way(in_process=in_process, cluster=cluster, address=address, detach=detach, shared=tuple(shared or ()))
    manner = Manner(command="campaign", way=way, out=out, resume=resume, strict=strict, as_json=as_json)
    hours = None if deadline is None else read_hours(deadline)
    manner = manner.limited(hours, max_queries, dry_run=dry_run)
    flags = options.overrides(model or target, weights, data, display, no_reference, attack, defense, limit, seed)
    if resume is not None:
        given = {"SPEC": spec, "--preset": preset, "--out": out, "--set": settings, "--find-eps": find_eps}
        refuse_beside_resume(given, flags)
    run(None if resume is not None else _built(spec, preset, flags, tuple(settings or ()), find_eps), manner)


def _built(
    spec: Path | None, preset: str | None, flags: Overrides, sets: tuple[str, ...], find_eps: str | None
) -> RunSpec:
    from udc_ray.campaign import as_campaign
    from udc_ray.config import build_spec
    from udc_ray.places import with_absolute_paths

    built = build_spec(spec_file=spec, preset=preset, flags=flags, sets=sets, base="campaign")
    wanted_db = None if find_eps is None else read_decibels(find_eps)
    return with_absolute_paths(as_campaign(built, find_eps_db=wanted_db))


@app.command("status")
def status(
    run_directory: Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")],
    as_json: options.AsJson = False,
) -> None:
    """What a campaign has done so far; it may be at work."""
    from udc_ray_cli.campaign_status import status as show_status

    show_status(run_directory, as_json)


def read_decibels(text: str) -> float:
    """Read ``3dB`` or ``3``."""
    match = _DECIBEL.match(text)
    if match is None or float(match[1]) <= 0:
        raise SpecError(f"--find-eps {text!r} is no drop in dB", change="write 3dB")
    return float(match[1])


def read_hours(text: str) -> float:
    """Read ``2h``, ``30m`` or ``90s``; a bare number is hours."""
    match = _HOURS.match(text)
    if match is None:
        raise SpecError(f"--deadline {text!r} is no time", change="write 2h, 30m or 90s")
    return float(match[1]) * _UNITS[match[2]]
