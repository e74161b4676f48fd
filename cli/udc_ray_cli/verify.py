"""``udc-ray verify``: every published number of a run, recomputed from its files."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from udc_ray_cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import RenderableType

    from udc_ray.verify.base import Verification

MISMATCH = 1
SHOWN = 20
"""Mismatches that are printed; --json has all of them."""


def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")],
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Also score saved images again, on targets that are ours.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute every published number from a run's files; exit 1 where one differs. Calls no target."""
    from udc_ray.rundir import RunDirectory
    from udc_ray.verify import verify as audit
    from udc_ray_cli.show import stdout_console

    found = audit(RunDirectory.read(run), rescore=rescore)
    sys.stderr.flush()
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        stdout_console().print(render(found))
    sys.stdout.flush()
    if not found.holds:
        raise typer.Exit(MISMATCH)


def render(found: Verification) -> RenderableType:
    """The audit for people; needs 100 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Recomputed", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", overflow="fold")
    table.add_column("numbers", justify="right", no_wrap=True)
    table.add_column("differ", justify="right", no_wrap=True)
    for finding in found.findings:
        differ = Text(str(len(finding.mismatches)), style="bold red") if finding.mismatches else Text("-", style="dim")
        table.add_row(finding.name, str(finding.numbers), differ)
    gaps = Table(title="Not recomputed", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    gaps.add_column("numbers", justify="right", no_wrap=True)
    gaps.add_column("which", overflow="fold")
    gaps.add_column("why", overflow="fold")
    for count, what, why in _gaps(found):
        gaps.add_row(str(count), Text(what), Text(why))
    wrong = [m for finding in found.findings for m in finding.mismatches]
    lines = [_mismatch(m.where, m.message, m.published, m.recomputed) for m in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        lines.append(Text(f"! {len(wrong) - SHOWN} more; --json has them all", style="red"))
    verdict = "every one holds" if found.holds else f"{len(wrong)} differ"
    end = Text(f"{found.run}: {found.numbers} numbers recomputed, {verdict}", style="bold", overflow="fold")
    return Group(table, gaps, *lines, end)


def _gaps(found: Verification) -> list[tuple[int, str, str]]:
    """Numbers that were not recomputed; equal reasons are joined."""
    joined: dict[tuple[str, str], int] = {}
    for gap in (gap for finding in found.findings for gap in finding.gaps):
        joined[(gap.what, gap.why)] = joined.get((gap.what, gap.why), 0) + gap.count
    return [(count, what, why) for (what, why), count in joined.items()]


def _mismatch(where: str, message: str, published: object, recomputed: object) -> RenderableType:
    from rich.text import Text

    values = "" if published is None and recomputed is None else f" (published {published}, recomputed {recomputed})"
    text = Text("! ", style="bold red", overflow="fold")
    return text.append(f"{where}: {message}{values}", style="not bold")
