"""``udc-ray show FILE``: what is this checkpoint?"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from udc_ray_cli import options


def show_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Weights file, a path or a URI.")],
    export: Annotated[Path | None, typer.Option(help="Also write the weights here, as .safetensors.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell what network a checkpoint is of; nothing in it is run."""
    from udc_ray.models import show

    found = show.show(file)
    if export is not None:
        typer.echo(f"wrote {show.export(file, export)} entries to {export}", err=True)
    if as_json:
        from udc_ray.report.summary import dumps

        sys.stdout.write(dumps(asdict(found)))
        return
    fits = "yes" if found.difference is None else f"no: {found.difference}"
    lines = {
        "network": found.title or "none that is known here",
        "use it": f"--model {found.network} --weights {file}" if found.network else "--model package.module:factory",
        "fits": fits if found.network else "-",
        "upstream": found.upstream or "-",
        "entries": f"{found.keys}, {found.values:,} values, {', '.join(found.dtypes)}",
        "sha256": found.sha256,
    }
    for name, value in lines.items():
        typer.echo(f"{name:9} {value}")
