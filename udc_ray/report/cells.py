"""Cells and grids of the tables on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from udc_ray.report.marks import UPPER_BOUND
from udc_ray.report.table import Row
from udc_ray.report.units import DECIBELS, Units

DAGGER = "†"
"""Mark of a number that a longer attack may beat."""
_NAMES = frozenset({"attack", "defence", "worst dB, image"})


def attack_name(line: Mapping[str, Row], units: Units = DECIBELS, more: str = "") -> Text:
    """The attack of a cell, its threat and parameters, and how many images lack it; `more` stands behind the name."""
    head = next(iter(line.values()))
    text = Text(head.attack or "", style="bold")
    rest = head.attack_label.removeprefix(head.attack or "").strip()
    text.append(more, style="not bold")
    text.append(f"\n{rest or head.norm}", style="not bold")
    short = [row for row in line.values() if row.metric == units.attacked and row.n < row.of]
    if short:
        text.append(f"\n{short[0].n} of {short[0].of} images", style="red")
    return text


def number(row: Row | None, second: Row | None = None, *, mark: bool = False, units: Units = DECIBELS) -> Text:
    """A mean with the marks of its cell and another mean beside it; below them their intervals.

    Args:
        row: the number; a dash where there is none.
        second: what stands beside it, such as SSIM.
        mark: whether the failed checks of the cell are about this number; those of a worst always are.
        units: how it is shown.
    """
    if row is None:
        return Text("-", style="dim")
    text = Text(units.show(row.mean))
    if row.failed_checks and (mark or row.metric == units.robust):
        text.append("!", style="bold red")
    text.append(DAGGER if row.upper_bound else "", style="yellow")
    if second is not None and second.mean is not None:
        text.append(f"  {second.mean:.3f}")
    text.append(f"\n{units.interval(row.ci_low, row.ci_high)}", style="dim")
    if second is not None and second.ci_low is not None:
        text.append(f"\n{_interval(second, 3)}", style="dim")
    return text


def _interval(row: Row, digits: int) -> str:
    if row.ci_low is None or row.ci_high is None:
        return "no interval"
    return f"[{row.ci_low:.{digits}f},{row.ci_high:.{digits}f}]"


def grid(title: str, headings: Sequence[str]) -> Table:
    """An empty table; names may break, numbers may not."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in _NAMES)
    return table


def footnotes(bound: bool, *legend: str) -> list[RenderableType]:
    """What stands below a table: its legend, and what the dagger in it means; then an empty line."""
    lines = [*legend, *([f"{DAGGER} {UPPER_BOUND}"] if bound else [])]
    return [*(Text(f" {line}", style="dim") for line in lines), Text()]
