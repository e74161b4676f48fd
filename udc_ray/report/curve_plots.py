"""Figures of a campaign: what is left, and how many images are harmed, against queries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from udc_ray.metrics.survival import Band, bootstrap_band, success_band
from udc_ray.report.curves import CellCurves

PLACES = 80
"""Places of the grid at most; the axis is logarithmic."""
_AXES = {
    "psnr_adv": "PSNR in dB, best attack so far",
    "psnr_seen": "PSNR in dB, as the attacker saw it",
    "score_adv": "accuracy, best attack so far",
    "accuracy_seen": "accuracy, as the attacker saw it",
    "score_seen": "score, as the attacker saw it",
    "eps": "smallest eps so far that harmed",
    "linf": "linf distance of the closest success",
    "l2": "l2 distance of the closest success",
}


def query_grid(largest: int) -> list[int]:
    """Whole numbers of queries from 1 to the largest, evenly spaced on a logarithmic axis."""
    return sorted({int(q) for q in np.geomspace(1, max(largest, 1), PLACES).round()})


def campaign_figures(cells: Iterable[CellCurves], seed: int) -> dict[str, Callable[[Path], bool]]:
    """The figures of a campaign by file name: of every target its readings, and success.

    Each is a function that draws into a path, and says whether there was something to draw.
    """
    found: dict[str, Callable[[Path], bool]] = {}
    targets: dict[str, dict[str, CellCurves]] = {}
    for cell in cells:
        head = cell.cell.head
        shield = "none" if head.defense == "none" else f"{head.defense} {head.grad_mode}"
        targets.setdefault(re.sub(r"[^\w.=-]+", "-", shield), {})[f"{cell.cell.attack_label} ({head.cell[:4]})"] = cell
    for target, mine in targets.items():
        for metric in dict.fromkeys(c.meaning.metric for c in mine.values()):
            alike = _named({label: c for label, c in mine.items() if c.meaning.metric == metric})
            found[f"{target}-{metric}-against-queries.png"] = partial(quality_against_queries, cells=alike, seed=seed)
        found[f"{target}-success-against-queries.png"] = partial(success_against_queries, cells=_named(mine))
    return found


def _named(cells: Mapping[str, CellCurves]) -> dict[str, CellCurves]:
    """By the attack's label alone where it tells the cells apart."""
    short = [label.rpartition(" (")[0] for label in cells]
    return dict(zip(short, cells.values(), strict=True)) if len(set(short)) == len(short) else dict(cells)


def quality_against_queries(path: Path | str, cells: Mapping[str, CellCurves], seed: int) -> bool:
    """Plot the mean of the best so far of every attack, with its pointwise bootstrap band over images.

    Args:
        path: the PNG to write.
        cells: by label; those whose readings have another unit than the first are left out.
        seed: the run's seed; its resamples are those of the tables.

    Returns:
        Whether there was something to plot.
    """
    metrics = [c.meaning.metric for c in cells.values()]
    drawn = {
        label: found
        for label, c in cells.items()
        if c.meaning.metric == metrics[0] and (found := _quality(c, seed)) is not None
    }
    if not drawn:
        return False
    figure, axis = _axes(_AXES.get(metrics[0], metrics[0]), "Damage against queries: mean over images, 95 % band")
    for number, (label, (grid, band)) in enumerate(drawn.items()):
        _draw(axis, grid, band, (label, f"C{number % 10}"))
    _finish(figure, axis, path)
    return True


def success_against_queries(path: Path | str, cells: Mapping[str, CellCurves]) -> bool:
    """Plot the share of images harmed within a number of queries, with exact pointwise intervals.

    Images that were never harmed are in every point.

    Returns:
        Whether there was something to plot.
    """
    drawn = {label: (c, times) for label, c in cells.items() if (times := c.to_success())}
    if not drawn:
        return False
    figure, axis = _axes("share of images harmed", "Success against queries: all images, 95 % exact intervals")
    for number, (label, (cell, times)) in enumerate(drawn.items()):
        grid = query_grid(cell.read_at[-1])
        _draw(axis, grid, success_band(times, grid), (label, f"C{number % 10}"))
    axis.set_ylim(-0.02, 1.02)
    _finish(figure, axis, path)
    return True


def _quality(cell: CellCurves, seed: int) -> tuple[list[int], Band] | None:
    """Grid and band over the images that have a value from the first place on and were never cut short."""
    grid = query_grid(cell.read_at[-1])
    by_place = [cell.at(q) for q in grid]
    while grid and not by_place[0]:  # minimum-norm searches begin with their first success
        grid, by_place = grid[1:], by_place[1:]
    images = sorted(set.intersection(*map(set, by_place))) if by_place else []
    if not images:
        return None
    return grid, bootstrap_band(np.array([[found[i] for found in by_place] for i in images]), seed)


def _draw(axis: Axes, grid: Sequence[int], band: Band, how: tuple[str, str]) -> None:
    label, colour = how
    axis.plot(grid, band.mean, color=colour, linewidth=2, label=label, drawstyle="steps-post")
    axis.fill_between(grid, band.low, band.high, color=colour, alpha=0.2, linewidth=0, step="post")


def _axes(what: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_xscale("log")
    axis.set_xlabel("queries per image")
    axis.set_ylabel(what)
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    return figure, axis


def _finish(figure: Figure, axis: Axes, path: Path | str) -> None:
    axis.legend(fontsize=8)
    figure.savefig(str(path), format="png")
