"""Pictures of a run: strips of its kept images, and damage against queries."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from udc_ray.attacks.query import QueryAttack
from udc_ray.metrics.statistics import group_cells, mean_of
from udc_ray.plan import Cell
from udc_ray.pool import WorkPool
from udc_ray.records import Record
from udc_ray.report.curve_plots import campaign_figures
from udc_ray.report.curves import cell_curves
from udc_ray.report.figures import Panel, damage_curves, perturbation_panel, strip, worst_median_best
from udc_ray.rundir import RunDirectory
from udc_ray.setup import HostSetup
from udc_ray.views import View


def draw_strips(run: RunDirectory, setup: HostSetup, pool: WorkPool, records: list[Record]) -> None:
    """Draw, for every defence, the strongest attack's worst, median and best image.

    Args:
        run: where ``figures/`` is.
        setup: the run.
        pool: evaluates the pictures' outputs.
        records: the run's records.
    """
    for defence in range(len(setup.plan.defences)) if setup.spec.run.save != "none" else ():
        _draw_defence(run, setup, pool, (defence, records))


def draw_curves(run: RunDirectory, setup: HostSetup, records: list[Record]) -> None:
    """Draw what query attacks reached against the queries that they asked."""
    if not setup.spec.campaign:
        _draw_damage(run, setup)
        return
    figures = campaign_figures(cell_curves(records, run.curves(), setup.spec).values(), setup.spec.seed)
    for name, draw in figures.items():
        _save(run, f"figures/{name}", draw)


def _draw_defence(run: RunDirectory, setup: HostSetup, pool: WorkPool, what: tuple[int, list[Record]]) -> None:
    defence, records = what
    cells = {c.id: c for c in setup.plan.cells if c.defence == defence}
    ranked = sorted(
        (group for group in group_cells(records) if group.head.cell in cells and group.per_image("psnr_adv")),
        key=lambda group: mean_of(group.per_image("psnr_adv")),
    )
    for group in ranked:
        cell = cells[group.head.cell]
        source = _crafting_cell(setup, cell)
        found = group.per_image("psnr_adv")
        chosen = worst_median_best(found)
        kept = {image.image_id: image for image in run.images({(source, i) for i in chosen.values()})}
        chosen = {role: image_id for role, image_id in chosen.items() if image_id in kept}
        shield = re.sub(r"[^\w.=-]+", "-", cell.defence_label)
        attacked = {i: torch.from_numpy(kept[i].x_adv) for i in chosen.values()}
        views = pool.views(setup.plan.cells.index(cell), attacked) if attacked else {}
        for role, image_id in chosen.items():
            title = f"{cell.label}: {role} image, {image_id}, {found[image_id]:.2f} dB under attack"
            name = f"figures/{shield}-{role}.png"
            _save(run, name, partial(strip, panels=_panels(views[image_id]), title=title))
        if chosen:
            return


def _crafting_cell(setup: HostSetup, cell: Cell) -> str:
    """The cell whose images this cell uses: its own, or for blind ones the undefended cell."""
    if cell.grad_mode != "blind":
        return cell.id
    plan = setup.plan
    same = (c.id for c in plan.cells if c.attack == cell.attack and plan.defences[c.defence].purifier is None)
    return next(same, cell.id)


def _panels(view: View) -> list[Panel]:
    panels = [
        Panel(title="degraded", image_CHW=view.degraded),
        Panel(title="restored", image_CHW=view.restored),
        Panel(title="attacked input", image_CHW=view.attacked),
        perturbation_panel(view.degraded, view.attacked),
        Panel(title="attacked output", image_CHW=view.attacked_output),
    ]
    if view.purified is not None:
        panels.append(Panel(title="purified input", image_CHW=view.purified))
    if view.truth is not None:
        panels.append(Panel(title="truth", image_CHW=view.truth))
    return panels


def _draw_damage(run: RunDirectory, setup: HostSetup) -> None:
    labels, largest = {}, 0
    for cell in setup.plan.cells:
        attack = setup.plan.attacks[cell.attack].attack
        if isinstance(attack, QueryAttack) and (attack.objective or setup.spec.objective).startswith("mse"):
            labels[cell.id] = cell.label
            largest = max(largest, attack.budget)
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    for key, points in sorted(run.curves().items()):
        cell_id = key.split("/", 1)[0]
        if cell_id in labels:
            curves.setdefault(labels[cell_id], []).append(points)
    if curves:
        _save(run, "figures/damage-against-queries.png", partial(damage_curves, curves=curves, budget=largest))


def _save(run: RunDirectory, name: str, draw: Callable[[Path], object]) -> None:
    """Draw into a temporary file and store it with the run, wherever that is; nothing where nothing is drawn."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw(path)
        if path.exists():
            run.write_bytes(name, path.read_bytes())
