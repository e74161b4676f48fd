"""The report on the console: a pure function of summary.json and checks.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from udc_ray.checks.base import CheckResult
from udc_ray.metrics.statistics import CLAIM_SIZE
from udc_ray.report.summary import Summary
from udc_ray.report.table import Row
from udc_ray.report.units import DECIBELS, Units, units_of

Line = dict[str, Row]
"""The rows of one cell, by metric."""

MODES_A_TABLE = 2
"""Gradient modes beside each other."""

_NAMES = frozenset({"attack", "defence", "worst dB, image"})


SHOWN_MESSAGES = 3
"""Messages of one check that are printed when it did not fail."""


def render(summary: Summary, checks: Sequence[CheckResult], where: str = "") -> RenderableType:
    """The whole report; needs 100 columns.

    Args:
        summary: the numbers.
        checks: results of the checks; failed ones are listed, and mark numbers with a red "!".
        where: where the run lies.
    """
    units = units_of(summary.objective)
    parts: list[RenderableType] = [_heading(summary, units)]
    for defense in dict.fromkeys(r.defense for r in summary.rows):
        for modes in _mode_groups(summary, defense):
            parts += [_defence_table(summary, defense, modes, units), Text()]
    parts += [_cost_table(summary, units), Text(), *_verdicts(summary), *_check_lines(checks, summary)]
    if where:
        parts += [Text(), Text(f"run: {where}", overflow="fold")]
    return Group(*parts)


def print_report(console: Console, summary: Summary, checks: Sequence[CheckResult], where: str = "") -> None:
    """Print the report."""
    console.print(render(summary, checks, where))


def _heading(summary: Summary, units: Units) -> Text:
    about = [f"model {summary.model}", f"data {summary.data}", f"{summary.images} images"]
    about += [f"objective {summary.objective}", f"protocol {summary.protocol}", f"seed {summary.seed}"]
    text = Text(" · ".join(about), style="bold")
    text.append(f"\n{units.legend}\n", style="not bold dim")
    if summary.images < CLAIM_SIZE:
        text.append(f"n = {summary.images}, too few for a claim.\n", style="not bold yellow")
    return text


def _cells(rows: Iterable[Row]) -> dict[str, Line]:
    cells: dict[str, Line] = {}
    for row in rows:
        if row.cell is not None:
            cells.setdefault(row.cell, {})[row.metric] = row
    return cells


def _head(line: Line) -> Row:
    return next(iter(line.values()))


def _mode_groups(summary: Summary, defense: str) -> list[list[str]]:
    """Gradient modes of a defence, as many a table as 100 columns hold."""
    modes = [m for m in dict.fromkeys(r.grad_mode for r in summary.rows if r.defense == defense) if m is not None]
    return [modes[k : k + MODES_A_TABLE] for k in range(0, len(modes), MODES_A_TABLE)]


def _defence_table(summary: Summary, defense: str, modes: Sequence[str], units: Units) -> Table:
    """One table a defence: what no attack leaves, then the attack in every gradient mode."""
    alone = defense == "none"
    inputs = alone and units.of_inputs
    mine = [r for r in summary.rows if r.defense == defense]
    title = "Undefended" if alone else f"Defence: {defense}"
    table = _grid(title, ["attack", *(["degraded"] if inputs else []), "clean" if alone else "purified clean"])
    table.add_column("noise control", no_wrap=True)
    for name in (
        ["attacked"]
        if alone
        else ["undefended", *(f"purified {mode.upper() if mode == 'bpda' else mode}" for mode in modes)]
    ):
        table.add_column(name, no_wrap=True)
    cells, own = list(_cells(summary.rows).values()), list(_cells(mine).values())
    for key in dict.fromkeys(_entry(line, cells) for line in own):
        by_mode = {_head(x).grad_mode: x for x in own if _entry(x, cells) == key}
        first = next(iter(by_mode.values()))
        content = [_attack_name(first, units), *([_number(first.get("psnr_degraded"))] if inputs else [])]
        content += [_clean(units, first), _number(first.get(units.noise), units=units)]
        if not alone:
            bare = next((x for x in cells if _head(x).defense == "none" and _entry(x, cells) == key), {})
            content.append(_attacked(units, bare))
        table.add_row(*content, *(_attacked(units, by_mode.get(mode, {})) for mode in modes))
    _add_robust(table, summary, (defense, modes), units)
    return table


def _entry(line: Line, cells: Sequence[Line]) -> tuple[object, ...]:
    """What pairs the cells of one attack entry across defences and modes.

    Entries whose labels are alike cannot be told apart by the files: those stay unpaired.
    """
    head = _head(line)
    key = (head.attack_label, head.attack, head.norm, head.eps)
    twins = sum(
        (h.attack_label, h.attack, h.norm, h.eps, h.defense, h.grad_mode) == (*key, head.defense, head.grad_mode)
        for h in map(_head, cells)
    )
    return (*key, head.cell) if twins > 1 else key


def _add_robust(table: Table, summary: Summary, what: tuple[str, Sequence[str]], units: Units) -> None:
    defense, modes = what
    robust = [r for r in summary.rows if r.metric == units.robust]
    for threat in dict.fromkeys((r.norm, r.eps) for r in robust if r.defense == defense):
        mine = {r.grad_mode: r for r in robust if r.defense == defense and (r.norm, r.eps) == threat}
        bare = next((r for r in robust if r.defense == "none" and (r.norm, r.eps) == threat), None)
        name = Text(next(iter(mine.values())).attack_label.replace("robust ", "robust: worst\nof all "), style="bold")
        blank = [Text()] * (3 if defense == "none" and units.of_inputs else 2)
        undefended = [] if defense == "none" else [_number(bare, units=units)]
        any_mode = mine.get(None)
        if any_mode is not None:
            name.append(f"\nany mode {units.show(any_mode.mean)}{'!' if any_mode.failed_checks else ''}")
        table.add_section()
        table.add_row(name, *blank, *undefended, *(_number(mine.get(mode), units=units) for mode in modes))


def _attack_name(line: Line, units: Units = DECIBELS) -> Text:
    head = _head(line)
    text = Text(head.attack or "", style="bold")
    rest = head.attack_label.removeprefix(head.attack or "").strip()
    text.append(f"\n{rest or head.norm}", style="not bold")
    short = [row for row in line.values() if row.metric == units.attacked and row.n < row.of]
    if short:
        text.append(f"\n{short[0].n} of {short[0].of} images", style="red")
    return text


def _clean(units: Units, line: Line) -> Text:
    beside = line.get(units.beside[0]) if units.beside else None
    return _number(line.get(units.clean), beside, units=units)


def _attacked(units: Units, line: Line) -> Text:
    beside = line.get(units.beside[1]) if units.beside else None
    return _number(line.get(units.attacked), beside, mark=True, units=units)


def _number(row: Row | None, second: Row | None = None, *, mark: bool = False, units: Units = DECIBELS) -> Text:
    if row is None:
        return Text("-", style="dim")
    text = Text(units.show(row.mean))
    if row.failed_checks and (mark or row.metric == units.robust):
        text.append("!", style="bold red")
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


def _cost_table(summary: Summary, units: Units) -> Table:
    """One line a cell: how far the attack went, on which image, at which price."""
    worst = ["worst dB, image"] if units.single_images else []
    table = _grid("Damage and cost", ["attack", "defence", units.drop_heading, *worst])
    for heading in ("harmed", "queries", "grads", "sec"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in _cells(summary.rows).values():
        head = _head(line)
        shield = head.label.partition(" | ")[2] or f"{head.defense} {head.grad_mode}"
        image = [_worst(line[units.attacked])] if worst else []
        table.add_row(head.attack_label, shield, _drop(units, line.get(units.drop)), *image, *_prices(line))
    for row in (r for r in summary.rows if r.metric == units.robust and worst):
        shield = row.label.partition(" | ")[2]
        table.add_row(row.attack_label, shield, Text("-", style="dim"), _worst(row), "", "", "", "", style="bold")
    return table


def _drop(units: Units, row: Row | None) -> Text:
    if row is None:
        return Text("-", style="dim")
    return Text(units.show(row.mean)).append(f" {units.interval(row.ci_low, row.ci_high)}", style="dim")


def _worst(row: Row) -> Text:
    if row.worst is None:
        return Text("-", style="dim")
    text = Text(f"{row.worst:.2f}")
    if row.failed_checks:
        text.append("!", style="bold red")
    return text.append(f" {row.worst_image}")


def _prices(line: Line) -> list[str]:
    success, seconds = line.get("success"), line.get("seconds")
    counts = [line.get("queries"), line.get("grad_evals")]
    return [
        "-" if success is None or success.mean is None else f"{round(success.mean * success.n)}/{success.n}",
        *("-" if count is None or count.mean is None else f"{count.mean:.0f}" for count in counts),
        "-" if seconds is None or seconds.mean is None else f"{seconds.mean:.2f}",
    ]


def _verdicts(summary: Summary) -> list[RenderableType]:
    """One sentence a defence and threat, where there are images enough for one."""
    units, sentences = units_of(summary.objective), list[RenderableType]()
    for row in summary.rows:
        if row.metric != units.robust or row.mean is None or row.n < CLAIM_SIZE:
            continue
        name = (
            "the undefended model"
            if row.defense == "none"
            else f"{row.defense}, attacked {row.grad_mode or 'in any mode'},"
        )
        kept = f"{units.show(row.mean)}{units.unit} {units.interval(row.ci_low, row.ci_high)}"
        text = Text(f"Under {row.norm} {row.attack_label.split()[-1]} {name} keeps {kept}")
        text.append(f" in the worst of the attacks that were run ({row.n} images).")
        if row.failed_checks:
            text.append(f" Not to be believed: {', '.join(row.failed_checks)} failed.", style="red")
        sentences.append(text)
    return [*sentences, Text()] if sentences else []


def _check_lines(checks: Sequence[CheckResult], summary: Summary) -> list[RenderableType]:
    """Counts, then every failure and warning; equal messages about several cells are joined."""
    if not checks:
        return [Text("Checks: none were made.", style="yellow")]
    counts = Counter(c.verdict for c in checks)
    tally = ", ".join(f"{counts[v]} {v}" for v in ("pass", "warn", "fail", "info") if counts[v])
    lines: list[RenderableType] = [Text(f"Checks: {tally}", style="bold")]
    labels = {row.cell: row.label for row in summary.rows if row.cell is not None}
    for verdict, style in (("fail", "bold red"), ("warn", "yellow"), ("info", "dim")):
        groups: dict[tuple[str, str], list[str]] = {}
        for check in (c for c in checks if c.verdict == verdict):
            where = labels.get(check.cell, check.cell) if check.cell else None
            groups.setdefault((check.check, check.message), []).extend([where] if where else [])
        lines += _joined(groups, verdict, style)
    return lines


def _joined(groups: dict[tuple[str, str], list[str]], verdict: str, style: str) -> list[RenderableType]:
    """Every failure; of the other verdicts a few messages of each check, as checks.json has them all."""
    lines: list[RenderableType] = []
    for check in dict.fromkeys(name for name, _ in groups):
        mine = [(key, cells) for key, cells in groups.items() if key[0] == check]
        shown = mine if verdict == "fail" else mine[:SHOWN_MESSAGES]
        lines += [_check_line(verdict, style, key, cells) for key, cells in shown]
        if len(mine) > len(shown):
            more = f"{len(mine) - len(shown)} more like this in checks.json"
            lines.append(_check_line(verdict, style, (check, more), ()))
    return lines


def _check_line(verdict: str, style: str, key: tuple[str, str], cells: Sequence[str]) -> RenderableType:
    mark = "!" if verdict == "fail" else " "
    who = f"{cells[0]}" if len(cells) == 1 else f"{len(cells)} cells"
    line = Table.grid(padding=(0, 1))
    line.add_row(Text(f"{mark} {verdict}", style=style), Text(key[0]), Text(f"{who}: {key[1]}" if cells else key[1]))
    return line


def _grid(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    for heading in headings:
        # Names may break, numbers may not.
        table.add_column(heading, overflow="fold", no_wrap=heading not in _NAMES)
    return table
