"""The report on the console: a pure function of summary.json and checks.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from udc_ray.checks.base import CheckResult
from udc_ray.metrics.statistics import CLAIM_SIZE
from udc_ray.report.cells import DAGGER, attack_name, footnotes, grid, number
from udc_ray.report.defences_console import draws_tables, frontier_tables, purifier_lines
from udc_ray.report.marks import UPPER_BOUND
from udc_ray.report.summary import Summary
from udc_ray.report.table import Row
from udc_ray.report.units import Units, units_of

Line = dict[str, Row]
"""The rows of one cell, by metric."""

MODES_A_TABLE = 2
"""Gradient modes beside each other."""

_MODE_NAMES = {"bpda": "BPDA", "full-no-guide": "full-no-guide\n(gradient incomplete)"}
_STYLES = {"fail": "bold red", "warn": "yellow", "info": "dim"}
_SHOWN = {"warn": 3, "info": 1}
"""Messages of one check that are printed; of failures all."""


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
            parts += _defence_table(summary, defense, modes, units)
        parts += draws_tables(summary, defense, units)
    parts += [*frontier_tables(summary, units), *_cost_table(summary, units)]
    parts += [*_verdicts(summary), *purifier_lines(summary, units), *_check_lines(checks, summary)]
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


def _defence_table(summary: Summary, defense: str, modes: Sequence[str], units: Units) -> list[RenderableType]:
    """One table a defence: what no attack leaves, then the attack in every gradient mode."""
    alone = defense == "none"
    inputs = alone and units.of_inputs
    mine = [r for r in summary.rows if r.defense == defense]
    title = "Undefended" if alone else f"Defence: {defense}"
    table = grid(title, ["attack", *(["degraded"] if inputs else []), "clean" if alone else "purified clean"])
    table.add_column("noise control", no_wrap=True)
    for name in (
        ["attacked"] if alone else ["undefended", *(f"purified {_MODE_NAMES.get(mode, mode)}" for mode in modes)]
    ):
        table.add_column(name, no_wrap=True)
    cells, own = list(_cells(summary.rows).values()), list(_cells(mine).values())
    for key in dict.fromkeys(_entry(line, cells) for line in own):
        by_mode = {_head(x).grad_mode: x for x in own if _entry(x, cells) == key}
        first = next(iter(by_mode.values()))
        content = [attack_name(first, units), *([number(first.get("psnr_degraded"))] if inputs else [])]
        content += [_clean(units, first), number(first.get(units.noise), units=units)]
        if not alone:
            bare = next((x for x in cells if _head(x).defense == "none" and _entry(x, cells) == key), {})
            content.append(_attacked(units, bare))
        table.add_row(*content, *(_attacked(units, by_mode.get(mode, {})) for mode in modes))
    _add_robust(table, summary, (defense, modes), units)
    shown = [r for r in summary.rows if r.defense == "none" or (r.defense == defense and r.grad_mode in (*modes, None))]
    return [table, *footnotes(any(r.upper_bound for r in shown))]


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
        undefended = [] if defense == "none" else [number(bare, units=units)]
        any_mode = mine.get(None)
        if any_mode is not None:
            name.append(f"\nany mode {units.show(any_mode.mean)}{'!' if any_mode.failed_checks else ''}")
            name.append(DAGGER if any_mode.upper_bound else "")
        table.add_section()
        table.add_row(name, *blank, *undefended, *(number(mine.get(mode), units=units) for mode in modes))


def _clean(units: Units, line: Line) -> Text:
    beside = line.get(units.beside[0]) if units.beside else None
    return number(line.get(units.clean), beside, units=units)


def _attacked(units: Units, line: Line) -> Text:
    beside = line.get(units.beside[1]) if units.beside else None
    return number(line.get(units.attacked), beside, mark=True, units=units)


def _cost_table(summary: Summary, units: Units) -> list[RenderableType]:
    """One line a cell: how far the attack went, on which image, at which price; a dagger is about its numbers."""
    worst = ["worst dB, image"] if units.single_images else []
    table = grid("Damage and cost", ["attack", "defence", units.drop_heading, *worst])
    for heading in ("harmed", "queries", "grads", "sec"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in _cells(summary.rows).values():
        head = _head(line)
        shield = _marked(head.label.partition(" | ")[2] or f"{head.defense} {head.grad_mode}", line.get(units.drop))
        image = [_worst(line[units.attacked])] if worst else []
        table.add_row(head.attack_label, shield, _drop(units, line.get(units.drop)), *image, *_prices(line))
    for row in _whole(summary, units) if worst else ():
        shield = _marked(row.label.partition(" | ")[2], row)
        table.add_row(row.attack_label, shield, Text("-", style="dim"), _worst(row), "", "", "", "", style="bold")
    bound = any(r.upper_bound for r in summary.rows if r.metric in (units.drop, units.robust))
    return [table, *footnotes(bound)]


def _marked(name: str, row: Row | None) -> Text:
    return Text(name).append(DAGGER if row is not None and row.upper_bound else "", style="yellow")


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
    """One sentence a defence and threat, over all its gradient modes, where there are images enough for one."""
    units, sentences = units_of(summary.objective), list[RenderableType]()
    for row in _whole(summary, units):
        if row.mean is None or row.n < CLAIM_SIZE:
            continue
        name = (
            "the undefended model"
            if row.defense == "none"
            else f"{row.defense}, attacked {row.grad_mode or 'in any mode'},"
        )
        kept = f"{units.show(row.mean)}{units.unit} {units.interval(row.ci_low, row.ci_high)}"
        text = Text(f"Under {row.norm} {row.attack_label.split()[-1]} {name} keeps {kept}")
        text.append(f" in the worst of the attacks that were run ({row.n} images")
        text.append(f"; {UPPER_BOUND})." if row.upper_bound else ").")
        if row.failed_checks:
            text.append(f" Not to be believed: {', '.join(row.failed_checks)} failed.", style="red")
        sentences.append(text)
    return [*sentences, Text()] if sentences else []


def _whole(summary: Summary, units: Units) -> list[Row]:
    """The worst over all gradient modes of every defence and threat."""
    robust = [r for r in summary.rows if r.metric == units.robust]
    over_all = {(r.defense, r.norm, r.eps, r.budget) for r in robust if r.grad_mode is None}
    return [r for r in robust if r.grad_mode is None or (r.defense, r.norm, r.eps, r.budget) not in over_all]


def _check_lines(checks: Sequence[CheckResult], summary: Summary) -> list[RenderableType]:
    """Counts, then every failure and warning; equal messages about several cells are joined."""
    if not checks:
        return [Text("Checks: none were made.", style="yellow")]
    counts = Counter(c.verdict for c in checks)
    tally = ", ".join(f"{counts[v]} {v}" for v in ("pass", "warn", "fail", "info") if counts[v])
    lines: list[RenderableType] = [Text(f"Checks: {tally}", style="bold")]
    labels = {row.cell: row.label for row in summary.rows if row.cell is not None}
    for verdict in _STYLES:
        groups: dict[tuple[str, str], list[str]] = {}
        for check in (c for c in checks if c.verdict == verdict):
            where = labels.get(check.cell, check.cell) if check.cell else None
            groups.setdefault((check.check, check.message), []).extend([where] if where else [])
        lines += _joined(groups, verdict)
    return lines


def _joined(groups: dict[tuple[str, str], list[str]], verdict: str) -> list[RenderableType]:
    """Every failure; of the other verdicts a few messages of each check, as checks.json has them all."""
    lines: list[RenderableType] = []
    alike: dict[str, list[str]] = {}
    for check in dict.fromkeys(name for name, _ in groups):
        mine = [(key, cells) for key, cells in groups.items() if key[0] == check]
        if verdict == "info" and len(mine) == 1 and not mine[0][1]:
            alike.setdefault(mine[0][0][1], []).append(check)  # what several checks say alike is said once
            continue
        shown = mine[: _SHOWN.get(verdict)]
        lines += [_check_line(verdict, key, cells) for key, cells in shown]
        if len(mine) > len(shown):
            lines.append(_check_line(verdict, (check, f"{len(mine) - len(shown)} more like this in checks.json"), ()))
    return lines + [_check_line("info", (_numbers(names), message), ()) for message, names in alike.items()]


def _numbers(names: Sequence[str]) -> str:
    """The name of a check, or the numbers of several."""
    return names[0] if len(names) == 1 else ", ".join(name.partition("-")[0] for name in names)


def _check_line(verdict: str, key: tuple[str, str], cells: Sequence[str]) -> RenderableType:
    mark = "!" if verdict == "fail" else " "
    who = f"{cells[0]}" if len(cells) == 1 else f"{len(cells)} cells"
    line = Table.grid(padding=(0, 1))
    line.add_row(
        Text(f"{mark} {verdict}", style=_STYLES[verdict]), Text(key[0]), Text(f"{who}: {key[1]}" if cells else key[1])
    )
    return line
