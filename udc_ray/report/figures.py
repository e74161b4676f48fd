"""Pictures of a run: strips of images, and damage against queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udc_ray.metrics.protocols import PSNR_CAP

Floats = NDArray[np.floating]

CurvePoints = Sequence[tuple[int, float]]
"""(queries asked, best mean squared error) at every improvement, queries growing."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a strip.

    Attributes:
        title: what it shows; several lines are fine.
        image_CHW: in [0, 1]; one, three (RGB) or four (raw GR, R, B, GB) channels.
    """

    title: str
    image_CHW: Floats


def perturbation_panel(x_CHW: Floats, x_adv_CHW: Floats, title: str = "perturbation") -> Panel:
    """The perturbation around mid-grey, with the power-of-two gain that just fills the range.

    The gain depends on the largest absolute difference and is written into the title.
    """
    delta_CHW = np.asarray(x_adv_CHW, dtype=np.float64) - np.asarray(x_CHW, dtype=np.float64)
    largest = float(np.abs(delta_CHW).max())
    gain = 2.0 ** math.floor(math.log2(0.5 / largest)) if largest > 0 else 1.0
    return Panel(title=f"{title} x {gain:g}", image_CHW=np.clip(0.5 + gain * delta_CHW, 0, 1))


def worst_median_best(psnr: Mapping[str, float]) -> dict[str, str]:
    """Image ids of the lowest, the (lower) median and the highest value; an id appears once."""
    ranked = sorted(psnr, key=lambda i: (psnr[i], i))
    if not ranked:
        return {}
    chosen = {"worst": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "best": ranked[-1]}
    seen: dict[str, str] = {}
    for role, image in chosen.items():
        if image not in seen.values():
            seen[role] = image
    return seen


def strip(path: Path | str, panels: Sequence[Panel], title: str) -> None:
    """Write panels side by side as a PNG, each at least at twice its pixels' size."""
    if not panels:
        raise ValueError("a strip needs at least one panel")
    width = 2.2
    figure = Figure(figsize=(width * len(panels), width + 0.75), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        axis.imshow(_displayable(panel.image_CHW), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
        axis.set_title(panel.title, fontsize=9)
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(str(path), format="png")


def damage_curves(path: Path | str, curves: Mapping[str, Sequence[CurvePoints]], budget: int) -> None:
    """Plot what is left, in dB, against queries: thin lines are images, the thick one their mean.

    Args:
        path: the PNG to write.
        curves: by label, one curve an image; scores are mean squared errors on range 1.
        budget: queries at which the curves are cut.
    """
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    queries = np.arange(1, max(budget, 1) + 1)
    for number, (label, images) in enumerate(curves.items()):
        lines = [_psnr_at(queries, points) for points in images if points]
        if not lines:
            continue
        colour = f"C{number % 10}"
        for line in lines:
            axis.plot(queries, line, color=colour, linewidth=0.7, alpha=0.35, drawstyle="steps-post")
        mean = np.mean(lines, axis=0)
        axis.plot(queries, mean, color=colour, linewidth=2.2, label=label, drawstyle="steps-post")
    axis.set_xlabel("queries per image")
    axis.set_ylabel("PSNR of the restored image (dB)")
    axis.set_title("Damage against queries: mean (thick) and single images")
    axis.set_xlim(1, max(budget, 2))
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper right", fontsize=9)
    figure.savefig(str(path), format="png")


def _psnr_at(queries: NDArray[np.integer], points: CurvePoints) -> NDArray[np.float64]:
    """Best score so far at each number of queries, in dB; before the first answer, the first one."""
    asked = np.array([q for q, _ in points])
    score = np.array([s for _, s in points], dtype=np.float64)
    last = np.searchsorted(asked, queries, side="right") - 1
    mse = score[np.maximum(last, 0)]
    decibel: NDArray[np.float64] = -10 * np.log10(np.maximum(mse, 10 ** (-PSNR_CAP / 10)))
    return decibel


def _displayable(image_CHW: Floats) -> NDArray[np.float64]:
    """H x W or H x W x 3 in [0, 1]; raw planes are shown with the mean of both greens."""
    image: NDArray[np.float64] = np.nan_to_num(np.asarray(image_CHW, dtype=np.float64)).clip(0, 1)
    if image.shape[0] == 1:
        flat: NDArray[np.float64] = image[0]
        return flat
    if image.shape[0] == 4:
        image = np.stack([image[1], (image[0] + image[3]) / 2, image[2]])
    return np.moveaxis(image[:3], 0, -1)
