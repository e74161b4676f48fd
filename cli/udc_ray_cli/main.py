"""The command line: parses, calls one function, prints.

Commands load torch and ray only when they run, so that ``--help`` answers at once; for the same
reason help and usage errors are plain text, as typer's coloured ones load all of rich.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from udc_ray.errors import Interrupted
from udc_ray_cli import (
    campaign,
    data_commands,
    doctor,
    evaluate,
    jobs,
    listing,
    report,
    serve,
    show_file,
    simulate,
    train,
    verify,
)
from udc_ray_cli.stopping import Stopped, stop_on_signals

USER_ERROR = 2

app = typer.Typer(
    name="udc-ray",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"max_content_width": 100},
)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(campaign.app, name="campaign")
app.command("report")(report.report)
app.command("verify")(verify.verify)
app.command("simulate")(simulate.simulate)
app.command("list")(listing.listing)
app.command("train")(train.train)
app.command("check-data")(data_commands.check_data)
app.command("psf")(data_commands.psf)
app.command("show")(show_file.show_file)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("jobs")(jobs.jobs)
app.command("logs")(jobs.logs)
app.command("stop")(jobs.stop)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"udc-ray {metadata.version('udc-ray')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """How far can you trust an image-restoration model? Attack it, defend it, attack the defence."""


def main() -> None:
    """Run the command line; the only place where errors become exit codes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to fail
    try:
        with stop_on_signals():
            app(prog_name="udc-ray")
    except (Interrupted, Stopped) as stop:
        typer.echo(f"udc-ray: {stop}", err=True)
        sys.exit(128 + stop.signal_number)
    except Exception as error:  # trouble of the machine becomes a message, a defect keeps its traceback
        from udc_ray.trouble import explain

        explained = explain(error)
        if explained is None:
            raise
        typer.secho(f"udc-ray: {explained}", err=True, fg=typer.colors.RED)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
