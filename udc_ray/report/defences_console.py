"""What defences cost and give back, on the console: pure functions of summary.json."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from udc_ray.metrics.statistics import CLAIM_SIZE
from udc_ray.report.accounts import ADAPTIVE, JPEG, LOST, OVER_JPEG, PER_CALL, RECOVERED, named
from udc_ray.report.cells import attack_name, footnotes, grid, number
from udc_ray.report.marks import UPPER_BOUND
from udc_ray.report.summary import Summary
from udc_ray.report.table import Row, describe_threat
from udc_ray.report.units import Units

Line = dict[str, Row]
"""Rows by metric."""

UNKNOWN = "-"

_SINGLE = {
    "mean,\nclean": "psnr_clean",
    "worst,\nclean": "worst_psnr_clean",
    "mean,\nattacked": "psnr_adv",
    "worst,\nattacked": "worst_psnr_adv",
}
_OTHER = "The output of another system than the single ones above: not to be compared with them."
_LEGEND = (
    "NFE, guide: network calls of one purification of one image; ms: its time.",
    "adaptive: the worst over all attacks that knew of the defence.",
    "gain/NFE: dB that the defence still recovers then, divided by NFE.",
)
_FUSED = {
    "mean output,\nclean": "psnr_mean_output_clean",
    "mean output,\nattacked": "psnr_mean_output_adv",
    "median output,\nclean": "psnr_median_output_clean",
    "median output,\nattacked": "psnr_median_output_adv",
}


def draws_tables(summary: Summary, defense: str, units: Units) -> list[RenderableType]:
    """The N fresh purifications of a defence: mean and worst of N; and apart from them what the N outputs make
    together, which is another system.
    """
    mine = [r for r in summary.rows if r.defense == defense and r.cell is not None and r.samples > 1]
    lines = [line for line in _by_cell(mine) if "worst_psnr_adv" in line]
    if not lines:
        return []
    n = max(row.samples for line in lines for row in line.values())
    return [
        *_draws(f"{defense}: each of {n} fresh purifications", lines, _SINGLE, units),
        *_draws(f"{defense}: {n} purifications made into one output", lines, _FUSED, units, _OTHER),
    ]


def _draws(
    title: str, lines: Sequence[Line], columns: dict[str, str], units: Units, *legend: str
) -> list[RenderableType]:
    table = grid(title, ["attack", *columns])
    for line in lines:
        head = next(iter(line.values()))
        numbers = [number(line.get(metric), mark=metric.endswith("_adv"), units=units) for metric in columns.values()]
        table.add_row(attack_name(line, units, f" {head.grad_mode}"), *numbers)
    bound = any(line[m].upper_bound for line in lines for m in columns.values() if m in line)
    return [table, *footnotes(bound, *legend)]


def frontier_tables(summary: Summary, units: Units) -> list[RenderableType]:
    """For every threat the defences by their number of network calls, and what they keep."""
    adaptive = named(ADAPTIVE, units.attacked)
    defended = [r for r in summary.rows if r.metric in (units.robust, adaptive) and r.defense != "none"]
    parts: list[RenderableType] = []
    for threat in dict.fromkeys((r.norm, r.eps) for r in defended):
        names = dict.fromkeys(r.defense for r in defended if (r.norm, r.eps) == threat)
        ordered = sorted(names, key=lambda name: _mean(_of(summary, name), "nfe") or 0)
        title = f"Robustness per call of the denoiser, {describe_threat(threat)}"
        table = grid(title, ["defence", "NFE", "guide", "ms", "clean", "blind", "adaptive", "gain/NFE"])
        bound = False
        for name in ["none", *ordered]:
            cells = _frontier(summary, name, threat, units)
            bound = bound or any(row is not None and row.upper_bound for row in cells)
            table.add_row(name, *_costs(summary, name), *(number(row, mark=True, units=units) for row in cells))
        parts += [table, *footnotes(bound, *_LEGEND)]
    return parts


def _frontier(summary: Summary, defense: str, threat: tuple[str, float | None], units: Units) -> list[Row | None]:
    mine = [r for r in summary.rows if r.defense == defense]
    under = [r for r in mine if (r.norm, r.eps) == threat]
    robust = {r.grad_mode: r for r in under if r.metric == units.robust}
    clean = next((r for r in mine if r.metric == units.clean and r.cell is not None), None)
    if defense == "none":
        return [clean, None, robust.get("full"), None]
    by_metric = {r.metric: r for r in under if r.cell is None}
    adaptive, gain = (by_metric.get(named(kind, units.attacked)) for kind in (ADAPTIVE, PER_CALL))
    return [clean, robust.get("blind"), adaptive, gain]


def _costs(summary: Summary, defense: str) -> list[str]:
    if defense == "none":
        return ["0", "0", "0"]
    mine = _of(summary, defense)
    counts = [UNKNOWN if (mean := _mean(mine, metric)) is None else f"{mean:.0f}" for metric in ("nfe", "guide_calls")]
    return [*counts, _milliseconds(mine)]


def _of(summary: Summary, defense: str) -> list[Row]:
    return [r for r in summary.rows if r.defense == defense]


def _mean(rows: Sequence[Row], metric: str) -> float | None:
    """Mean over the cells of a defence."""
    values = [r.mean for r in rows if r.metric == metric and r.mean is not None]
    return sum(values) / len(values) if values else None


def _milliseconds(rows: Sequence[Row]) -> str:
    seconds = _mean(rows, "purify_seconds")
    if seconds is None:
        return UNKNOWN
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f}"


def purifier_lines(summary: Summary, units: Units) -> list[RenderableType]:
    """One line a defence: what it costs on clean images and in time, and what it gives back under attack.

    A claim is made from eight images on; below, the line holds the numbers alone.
    """
    lines: list[RenderableType] = []
    for defense in dict.fromkeys(r.defense for r in summary.rows if r.defense not in ("none", "")):
        line = _Verdict(_of(summary, defense), units).text(defense)
        lines += [line] if line is not None else []
    return [Text("Defences", style="bold"), *lines, Text()] if lines else []


class _Verdict:
    """The line of one defence.

    Args:
        rows: all rows of the defence.
        units: how its numbers are shown.
    """

    def __init__(self, rows: Sequence[Row], units: Units) -> None:
        self.all, self.units = rows, units
        self.rows = [r for r in rows if r.cell is None and r.mean is not None]

    def text(self, defense: str) -> Text | None:
        """The line; None where nothing was measured that it could say."""
        recovered = [self._named(kind) for kind in RECOVERED.values()]
        compared = [self._named(kind) for kind in OVER_JPEG.values()]
        used = [r for r in self.rows if r.metric in (self._named(LOST), *recovered, *compared)]
        if not used:
            return None
        n = min(r.n for r in used)
        text = Text(defense, style="bold")
        text.append(f": {self._price()}", style="not bold")
        for threat in dict.fromkeys((r.norm, r.eps) for r in used if r.metric in recovered):
            under = {r.metric: r for r in used if (r.norm, r.eps) == threat}
            text.append(f" Under {describe_threat(threat)} it {self._gains(under)}", style="not bold")
            rival = "" if defense.split()[0] == JPEG else self._rival(under, n >= CLAIM_SIZE)
            text.append(f"{rival}.", style="not bold")
        if n < CLAIM_SIZE:
            text.append(f" n = {n}, too few for a claim.", style="not bold yellow")
        failed = sorted({name for r in used for name in r.failed_checks})
        if failed:
            text.append(f" Not to be believed: {', '.join(failed)} failed.", style="not bold red")
        return text

    def _named(self, kind: str) -> str:
        return named(kind, self.units.attacked)

    def _price(self) -> str:
        lost = next((r for r in self.rows if r.metric == self._named(LOST)), None)
        parts = [] if lost is None else [f"costs {self._show(lost)} on clean images"]
        time = _milliseconds(self.all)
        parts += [f"{time} ms an image"] if time != UNKNOWN else []
        return ", ".join(parts) + ("." if parts else "")

    def _gains(self, under: Line) -> str:
        parts = []
        for kind, metric in RECOVERED.items():
            row = under.get(self._named(metric))
            if row is not None:
                parts.append(f"{self._show(row)} {kind}{f' ({UPPER_BOUND})' if row.upper_bound else ''}")
        return f"recovers {' and '.join(parts)}"

    def _rival(self, under: Line, claim: bool) -> str:
        """Against JPEG: in words where there are images enough and an interval, else in numbers."""
        for kind, metric in OVER_JPEG.items():
            row = under.get(self._named(metric))
            if row is None or row.mean is None:
                continue
            if not claim or row.ci_low is None or row.ci_high is None:
                return f"; over JPEG ({kind}) {self._show(row)}"
            word = "better than" if row.ci_low > 0 else "worse than" if row.ci_high < 0 else "no better than"
            return f"; {word} JPEG ({kind}: {self._show(row)} over it)"
        return "; not compared with JPEG"

    def _show(self, row: Row) -> str:
        return f"{self.units.show(row.mean)}{self.units.unit} {self.units.interval(row.ci_low, row.ci_high)}"


def _by_cell(rows: Sequence[Row]) -> list[Line]:
    cells: dict[str | None, Line] = {}
    for row in rows:
        cells.setdefault(row.cell, {})[row.metric] = row
    return list(cells.values())
