"""Draws a run as an experiment's figure and prints its table: ``python docs/experiments/draw.py RUN FIGURE.png``.

One row a defence: PSNR in dB, clean and under one attack, by gradient mode, with 95 % intervals over images.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from udc_ray.metrics.statistics import CellRecords, Estimate, difference, estimate, group_cells
from udc_ray.records import from_table

COLOURS = {"clean": "tab:gray", "blind": "tab:green", "bpda": "tab:blue", "full": "tab:red"}


def main() -> None:
    """Arguments: run directory and the picture to write."""
    run, picture = Path(sys.argv[1]), Path(sys.argv[2])
    cells = [c for c in group_cells(from_table(pq.read_table(run / "results.parquet"))) if c.measured]
    rows = _rows([c for c in cells if c.head.attack != "noise"])
    _print(rows)
    _draw(rows, picture)


def _rows(cells: list[CellRecords]) -> dict[str, dict[str, Estimate]]:
    """By defence, and by what was measured: clean, the modes, and the paired blind minus full."""
    found: dict[str, dict[str, Estimate]] = defaultdict(dict)
    values: dict[tuple[str, str], dict[str, float]] = {}
    for cell in cells:
        attack, _, defence = cell.head.label.partition(" | ")
        mode = "full" if cell.head.defense == "none" else cell.head.grad_mode
        name = f"{defence.removesuffix(' ' + mode)}, {attack}"
        values[name, mode] = cell.per_image("psnr_adv")
        for column, what in (("psnr_clean", "clean"), ("psnr_adv", mode)):
            measured = estimate(cell.per_image(column), cell.head.seed)
            if measured is not None:
                found[name][what] = measured
    for name in found:
        if (name, "blind") in values and (name, "full") in values:
            gap = estimate(difference(values[name, "blind"], values[name, "full"]), cells[0].head.seed)
            if gap is not None:
                found[name]["blind - full"] = gap
    return dict(sorted(found.items()))


def _print(rows: dict[str, dict[str, Estimate]]) -> None:
    columns = list(dict.fromkeys(what for row in rows.values() for what in row))
    print("| defence, attack |", " | ".join(columns), "|")
    print("| --- |", " | ".join("---" for _ in columns), "|")
    for name, row in rows.items():
        print(f"| {name} |", " | ".join(_shown(row.get(what)) for what in columns), "|")


def _shown(value: Estimate | None) -> str:
    if value is None:
        return "-"
    if value.ci_low is None or value.ci_high is None:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} [{value.ci_low:.2f}, {value.ci_high:.2f}]"


def _draw(rows: dict[str, dict[str, Estimate]], picture: Path) -> None:
    figure = Figure(figsize=(8, 0.8 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    modes = [m for m in dict.fromkeys(what for row in rows.values() for what in row) if m != "blind - full"]
    for number, mode in enumerate(modes):
        offset = 0.6 * (number / max(1, len(modes) - 1) - 0.5) if len(modes) > 1 else 0
        points = [(place, row[mode]) for place, row in enumerate(rows.values()) if mode in row]
        low = [v.mean - (v.ci_low if v.ci_low is not None else v.mean) for _, v in points]
        high = [(v.ci_high if v.ci_high is not None else v.mean) - v.mean for _, v in points]
        axes.errorbar(
            [v.mean for _, v in points],
            [place + offset for place, _ in points],
            xerr=[low, high],
            fmt="o",
            markersize=4,
            capsize=2,
            linestyle="none",
            color=COLOURS.get(mode),
            label=mode,
        )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("PSNR in dB, 95 % interval over images")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
