"""``udc-ray list``: what can be named in a spec."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from udc_ray_cli.options import AsJson


class Kind(StrEnum):
    """What can be listed."""

    MODELS = "models"
    ATTACKS = "attacks"
    DEFENSES = "defenses"
    DATA = "data"


def listing(kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: AsJson = False) -> None:
    """List what a spec can name, with parameters and their defaults."""
    from udc_ray.catalogue import catalogue

    entries = catalogue(kind.value)
    if as_json:
        typer.echo(json.dumps(entries, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from udc_ray_cli.show import stdout_console

    table = Table("name", "what it is", "parameters")
    for entry in entries:
        table.add_row(*(Text(entry[key]) for key in ("name", "summary", "parameters")))
    stdout_console().print(table)
