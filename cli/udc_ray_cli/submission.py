"""``--cluster`` with an http address: a job that is submitted, followed and shown here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from udc_ray.errors import UserError
from udc_ray_cli.progress import JobProgress
from udc_ray_cli.stopping import Stopped

if TYPE_CHECKING:
    from udc_ray.run import Finished
    from udc_ray.spec import RunSpec
    from udc_ray_cluster.request import Request
    from udc_ray_cluster.submit import Ending


def submit(address: str, request: Request, spec: RunSpec | None, *, detach: bool) -> Finished:
    """Submit an evaluation, or attach to the one that is at work, and follow it to its end.

    Raises:
        typer.Exit: the job was left, or stopped.
        UserError: of the client, or of the job.
        DryRun: nothing was done, as was wished.
    """
    from udc_ray.run import DryRun, Finished

    finished = follow(address, request, spec, detach=detach)["finished"]
    if finished is None:
        raise DryRun
    return Finished.from_json(finished)


def follow(address: str, request: Request, spec: RunSpec | None = None, *, detach: bool = False) -> dict[str, Any]:
    """Submit a request, or attach to its job, and follow it to its report.

    Args:
        address: the cluster's dashboard, http or https.
        request: what is asked.
        spec: the spec as asked; None where there is none.
        detach: leave once it is submitted.

    Returns:
        The event ``report`` of the job.

    Raises:
        typer.Exit: the job was left, or stopped.
        UserError: of the client, or of the job.
    """
    from udc_ray.environment import versions
    from udc_ray_cluster.door import Door
    from udc_ray_cluster.submit import Submission, skew

    door, console = Door(address), JobProgress()
    for text in skew(versions(), door.versions()):
        console.note(f"warning: {text}")
    submission = Submission(door, request, spec, console)
    submission_id = submission.start()
    if detach:
        typer.echo(how_to_go_on(submission_id, address), err=True)
        raise typer.Exit
    try:
        return _report(submission.follow(submission_id))
    except (Stopped, KeyboardInterrupt):
        typer.echo(f"left; the job goes on.\n{how_to_go_on(submission_id, address)}", err=True)
        raise
    finally:
        console.end()


def how_to_go_on(submission_id: str, address: str) -> str:
    """What can be done with a job that is at work."""
    return (
        f"  follow:  udc-ray logs {submission_id} --address {address}\n"
        f"  attach:  the same command again\n"
        f"  stop:    udc-ray stop {submission_id} --address {address}"
    )


def _report(ending: Ending) -> dict[str, Any]:
    if ending.report is not None:
        return ending.report
    if ending.error is not None:
        raise ending.error
    if ending.code in (130, 143):
        typer.echo("the job was stopped; what is done is kept. The same command goes on with it.", err=True)
        raise typer.Exit(ending.code)
    raise UserError(
        f"the driver failed with exit code {ending.code}; its traceback is above",
        "a defect in udc-ray or in the model",
        "report it; what is done is kept",
    )
