"""The report of a campaign on the console: a pure function of summary.json and checks.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from udc_ray.checks.base import CheckResult
from udc_ray.labels import describe_eps
from udc_ray.metrics.statistics import CLAIM_SIZE
from udc_ray.report.campaign import BILL, MEDIAN, RESTRICTED, ROBUSTS, SUCCESS, TO_DROP
from udc_ray.report.cells import attack_name, grid, number
from udc_ray.report.console import _check_lines, _verdicts
from udc_ray.report.summary import Summary
from udc_ray.report.table import Row
from udc_ray.report.units import Units, units_of

PLACES_A_TABLE = 5
"""Budgets beside each other in 100 columns."""
FINAL = "evaluated"
"""Heading of what the evaluation measured in the end, where a curve shows something else."""
_READINGS = ("psnr_seen", "accuracy_seen", "score_seen", "eps", "linf", "l2", "psnr_adv", "score_adv")
"""Readings of a curve; of a cell the first that it has."""
_TITLES = {
    "psnr_adv": "PSNR in dB of the worst answer so far",
    "psnr_seen": "PSNR in dB of the worst answer so far, as the attacker saw it",
    "score_adv": "Accuracy in % of the answers so far",
    "accuracy_seen": "Accuracy in % of the answers so far, as the attacker saw them",
    "score_seen": "Best score so far, as the attacker saw it",
    "eps": "Smallest eps so far that harmed, of the images that were harmed",
    "linf": "linf distance of the closest success so far, of the images that were harmed",
    "l2": "l2 distance of the closest success so far, of the images that were harmed",
}
_DISTANCES = frozenset({"eps", "linf", "l2"})
_BILL_NAMES = {
    "queries_asked": "asked by the attacks",
    "queries_from_memory": "answered from memory",
    "queries_sent": "sent",
    "queries_unknown": "unknown (counted as spent)",
    "queries_harness": "asked by the harness",
    "queries_reexecuted": "re-executed after a loss (not charged)",
}

Place = int | str
"""A column: a budget, or the evaluation."""
Target = tuple[str, str | None]
"""Defence and gradient mode: what an attack saw of the model."""
Line = list[Row]
"""All rows of one cell."""


def render_campaign(summary: Summary, checks: Sequence[CheckResult], where: str = "") -> RenderableType:
    """The whole report; needs 100 columns.

    Args:
        summary: the numbers, as `build_campaign_summary` made them.
        checks: results of the checks; failed ones are listed, and mark numbers with a red "!".
        where: where the run lies.
    """
    units = units_of(summary.objective)
    parts: list[RenderableType] = [_heading(summary)]
    for target in dict.fromkeys((r.defense, r.grad_mode) for r in summary.rows if r.cell is not None):
        parts += _target(summary, target, units)
    whole = replace(summary, rows=tuple(r for r in summary.rows if r.metric not in ROBUSTS or r.budget is None))
    parts += [*_bill(summary), Text(), *_verdicts(whole), *_check_lines(checks, summary)]
    if where:
        parts += [Text(), Text(f"run: {where}", overflow="fold")]
    return Group(*parts)


def print_campaign(console: Console, summary: Summary, checks: Sequence[CheckResult], where: str = "") -> None:
    """Print the report of a campaign."""
    console.print(render_campaign(summary, checks, where))


def _heading(summary: Summary) -> Text:
    about = [f"campaign on {summary.model}", f"data {summary.data}", f"{summary.images} images"]
    about += [f"objective {summary.objective}", f"protocol {summary.protocol}", f"seed {summary.seed}"]
    text = Text(" · ".join(about), style="bold")
    text.append("\nBelow every number its 95 % interval over images; failures are in all of them.\n", "not bold dim")
    if summary.images < CLAIM_SIZE:
        text.append(f"n = {summary.images}, too few for a claim.\n", style="not bold yellow")
    return text


def _target(summary: Summary, target: Target, units: Units) -> list[RenderableType]:
    """The tables of one target: what is left at each budget, and what a success costs."""
    lines = _lines(summary, target)
    robust = [r for r in summary.rows if r.metric == units.robust and (r.defense, r.grad_mode) == target]
    about = _about(f"Target: {summary.model}, {_shield(target)}", lines, units)
    parts: list[RenderableType] = [about]
    for metric in dict.fromkeys(_reading(line, units) for line in lines):
        mine = [line for line in lines if _reading(line, units) == metric]
        table = Damage(metric, mine, robust, units)
        for start in range(0, len(table.places), PLACES_A_TABLE):
            shown = table.places[start : start + PLACES_A_TABLE]
            parts += [Text(), Text(_TITLES[metric], style="bold"), table.render(shown)]
    asking = [line for line in lines if _row(line, RESTRICTED) is not None]
    return [*parts, *(_cost(asking, units) if asking else []), Text()]


def _shield(target: Target) -> str:
    defense, mode = target
    if defense == "none":
        return "undefended"
    how = "with images made against the undefended model" if mode == "blind" else f"attacked as a whole ({mode})"
    return f"behind {defense}, {how}"


def _lines(summary: Summary, target: Target) -> list[Line]:
    mine = [r for r in summary.rows if r.cell is not None and (r.defense, r.grad_mode) == target]
    cells: dict[str | None, Line] = {}
    for row in mine:
        cells.setdefault(row.cell, []).append(row)
    return list(cells.values())


def _row(line: Line, metric: str, budget: int | None = None) -> Row | None:
    """The row of a metric: at a budget, or the last one."""
    return next((r for r in reversed(line) if r.metric == metric and budget in (None, r.budget)), None)


def _reading(line: Line, units: Units) -> str:
    """What the curve of a cell is read as; the attacker's own view where there is one."""
    there = {r.metric for r in line if r.budget is not None and r.mean is not None}
    return next((metric for metric in _READINGS if metric in there), units.attacked)


def _about(title: str, lines: Sequence[Line], units: Units) -> Text:
    text = Text(title, style="bold")
    for metric, name in ((units.clean, "clean"), (units.noise, "random noise of equal size")):
        rows = [row for line in lines if (row := _row(line, metric)) is not None and row.mean is not None]
        sized = metric == units.noise  # of minimum-norm attacks every image has a size of its own
        found = list(dict.fromkeys(_brief(row, units, sized=sized) for row in rows if row.eps is not None or not sized))
        text.append(f"\n  {name}: {'; '.join(found)}" if found else "", style="not bold")
    return text


def _brief(row: Row, units: Units, *, sized: bool) -> str:
    number = f"{units.show(row.mean)}{units.unit} {units.interval(row.ci_low, row.ci_high)}"
    return f"{number} at {row.norm} {describe_eps(row.eps or 0.0)}" if sized else number


@dataclass(frozen=True)
class Damage:
    """What is left of every attack that is read alike, and of the worst of them.

    Attributes:
        metric: the reading.
        lines: rows of the cells.
        robust: worst over attacks, of the same target.
        units: of the evaluation.
    """

    metric: str
    lines: Sequence[Line]
    robust: Sequence[Row]
    units: Units

    @property
    def places(self) -> list[Place]:
        """Columns: budgets, and the evaluation where it is another number than the last reading."""
        budgets: list[Place] = list(self._budgets(self.lines))
        final = [r for line in self.lines if (r := _row(line, self.units.attacked)) is not None and r.mean is not None]
        return [*budgets, FINAL] if (final and self.metric != self.units.attacked) or not budgets else budgets

    def render(self, places: Sequence[Place]) -> Table:
        """The table of some of the columns."""
        table = _untitled(["attack"])
        for place in places:
            table.add_column(place if isinstance(place, str) else f"{place} queries", no_wrap=True)
        for line in self.lines:
            name = attack_name({r.metric: r for r in line}, self.units)
            table.add_row(name, *(self.number(self._at(line, place), place) for place in places))
        threats = {(line[0].norm, line[0].eps) for line in self.lines}
        for threat in dict.fromkeys((r.norm, r.eps) for r in self.robust if (r.norm, r.eps) in threats):
            table.add_section()
            table.add_row(*self._worst(threat, places))
        return table

    def _worst(self, threat: tuple[str, float | None], places: Sequence[Place]) -> list[Text]:
        mine = [r for r in self.robust if (r.norm, r.eps) == threat]
        asked = self._budgets([line for line in self.lines if (line[0].norm, line[0].eps) == threat])
        # After the largest budget of its attacks the controls are in it too.
        last: Place = asked[-1] if asked and self.metric == self.units.attacked else FINAL
        at = {last if r.budget is None else r.budget: r for r in mine}
        name = Text(mine[-1].attack_label.replace("robust ", "robust: worst\nof all "), style="bold")
        return [name, *(number(at.get(place), units=self.units) for place in places)]

    def _at(self, line: Line, place: Place) -> Row | None:
        if isinstance(place, str):
            return _row(line, self.units.attacked)
        # Controls ask nothing: their one number stands at the end.
        control = place == max(self._budgets(self.lines)) and not self._budgets([line])
        return _row(line, self.metric) if control else _row(line, self.metric, place)

    def number(self, row: Row | None, place: Place) -> Text:
        if self.metric in _DISTANCES and not isinstance(place, str):
            return _distance(row)
        return number(row, mark=True, units=self.units)

    def _budgets(self, lines: Sequence[Line]) -> list[int]:
        return sorted({r.budget for line in lines for r in line if r.metric == self.metric and r.budget is not None})


def _distance(row: Row | None) -> Text:
    """A size in units of the [0, 1] image: linf as so many 255ths, which is how it is given."""
    if row is None or row.mean is None:
        return Text("-" if row is None else "none", style="dim")
    factor, unit = (255.0, "/255") if row.norm == "linf" else (1.0, "")
    known = row.ci_low is not None and row.ci_high is not None
    ends = f"[{factor * (row.ci_low or 0.0):.2f},{factor * (row.ci_high or 0.0):.2f}]" if known else "no interval"
    text = Text(f"{factor * row.mean:.2f}{unit}").append(f"\n{ends}", style="dim")
    return text.append(f"\n{row.n} of {row.of}", style="dim") if row.n < row.of else text


def _cost(lines: Sequence[Line], units: Units) -> list[RenderableType]:
    table = _untitled(["attack", "harmed", "median", "restricted\nmean"])
    drops = {d: m for d, m in TO_DROP.items() if any(_row(line, m) is not None for line in lines)}
    for drop in drops:
        table.add_column(f"to -{drop:g} dB", no_wrap=True)
    for heading in ("asked", "sent"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        restricted = _row(line, RESTRICTED)
        name = attack_name({r.metric: r for r in line}, units)
        name.append(f"\nwithin {restricted.budget}" if restricted is not None else "", style="dim")
        success = _row(line, SUCCESS) or _row(line, f"{SUCCESS}_seen")
        numbers = [_share(success), _count(_row(line, MEDIAN), "never"), _count(restricted, "-")]
        numbers += [_count(_row(line, metric), "-") for metric in drops.values()]
        table.add_row(name, *numbers, *(_total(_row(line, f"queries_{what}")) for what in ("asked", "sent")))
    seen = any(_row(line, f"{SUCCESS}_seen") is not None for line in lines)
    title = "\nQueries to success" + (", as the attacker saw it; harmed: as it was evaluated" if seen else "")
    return [Text(title, style="bold"), table]


def _share(row: Row | None) -> Text:
    if row is None or row.mean is None:
        return Text("-", style="dim")
    text = Text(f"{round(row.mean * row.n)}/{row.n}")
    return text.append(f"\n[{row.ci_low:.2f},{row.ci_high:.2f}]", style="dim")


def _count(row: Row | None, nothing: str) -> Text:
    """A number of queries; an end of its interval that is a failure is written as ``never``."""
    if row is None or row.mean is None:
        return Text("-" if row is None else nothing, style="dim")
    text = Text(_short(row.mean))
    if row.n > 1:
        ends = ("never" if end is None else _short(end) for end in (row.ci_low, row.ci_high))
        text.append(f"\n[{','.join(ends)}]", style="dim")
    return text


def _short(queries: float) -> str:
    return f"{queries:.1f}" if queries < 100 and queries != int(queries) else f"{queries:.0f}"


def _total(row: Row | None) -> str:
    return "-" if row is None or row.mean is None else f"{row.mean:.0f}"


def _bill(summary: Summary) -> list[RenderableType]:
    table = _untitled(["what"])
    table.add_column("queries", justify="right", no_wrap=True)
    rows = {r.metric: r for r in summary.rows if r.cell is None}
    for metric in BILL:
        table.add_row(_BILL_NAMES[metric], _total(rows.get(metric)))
    return [Text("The bill, in evaluations of the target", style="bold"), table]


def _untitled(headings: Sequence[str]) -> Table:
    """A grid whose title stands above it, where it is not broken to the width of a narrow table."""
    table = grid("", headings)
    table.title = None
    return table
