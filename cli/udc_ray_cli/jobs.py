"""``udc-ray jobs``, ``logs`` and ``stop``: the jobs of a cluster."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from udc_ray.errors import UserError
from udc_ray_cli import options
from udc_ray_cli.way import required_http_address

if TYPE_CHECKING:
    from udc_ray_cluster.door import Door

Job = Annotated[str, typer.Argument(metavar="JOB", help="Submission id, as `udc-ray jobs` lists it.")]


def jobs(address: options.Address = None, as_json: options.AsJson = False) -> None:
    """List the jobs that udc-ray submitted to a cluster."""
    found = [_described(job) for job in _door(address).jobs()]
    if as_json:
        sys.stdout.write(json.dumps({"jobs": found}, indent=1) + "\n")
        return
    from rich.table import Table

    from udc_ray_cli.show import stdout_console

    table = Table(*(name.replace("_", " ") for name in ("submission_id", "status", "start", "end")), box=None)
    for job in found:
        table.add_row(*(str(job[name] or "-") for name in ("submission_id", "status", "start", "end")))
    stdout_console().print(table if found else "no jobs")


def logs(
    job: Job,
    address: options.Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """Print what a job has told so far."""
    from udc_ray_cluster.submit import show_log

    show_log(_known(_door(address), job), job, typer.echo, follow=follow)


def stop(job: Job, address: options.Address = None) -> None:
    """Ask a job to stop: it finishes what is in flight within 30 s, and keeps what is done."""
    door = _known(_door(address), job)
    if not door.stop(job):
        raise UserError(f"{job} has ended already", change="see `udc-ray jobs`")
    typer.echo(f"asked {job} to stop; the command that submitted it goes on with what is done", err=True)


def _door(address: str | None) -> Door:
    from udc_ray_cluster.door import Door

    return Door(required_http_address(address))


def _known(door: Door, job: str) -> Door:
    if door.job(job) is None:
        raise UserError(
            f"the cluster knows no job {job}",
            "a wrong id, or a head that was started anew and has forgotten",
            "see `udc-ray jobs`; the command that submitted it goes on with what is done",
        )
    return door


def _described(job: Any) -> dict[str, Any]:
    from datetime import UTC, datetime

    def time(milliseconds: int | None) -> str | None:
        if not milliseconds:
            return None
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    return {
        "submission_id": job.submission_id,
        "status": str(getattr(job.status, "value", job.status)),
        "command": (job.metadata or {}).get("udc_ray_command"),
        "start": time(job.start_time),
        "end": time(job.end_time),
    }
