"""``udc-ray report``: the report of a run again, from its files alone."""

from __future__ import annotations

from typing import Annotated

import typer

from udc_ray_cli.options import AsJson


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")],
    as_json: AsJson = False,
) -> None:
    """Print the report of a run again, from its files alone."""
    from udc_ray_cli.show import show_run

    show_run(run, as_json=as_json)
