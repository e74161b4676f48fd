"""What tile-parallel Square is worth: queries to plain Square's damage, PSNR by queries, and where it does not help.

Linf 8/255, MSE to the truth, on shipped photographs (or those of --data) behind a display. Plain Square is the best
of p = 0.01, 0.05, 0.3, 0.8, every one from the better of stripes and signs, its schedule scaled to 1000 queries.
Everything is paired: an image and a seed at a time.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import udc_ray
from udc_ray.attacks.base import GradientTarget, Problem
from udc_ray.attacks.objectives import Objective, get_objective
from udc_ray.attacks.pgd import PGD
from udc_ray.attacks.query import Answer, Ask, Machine, QueryAttack, QueryProblem
from udc_ray.attacks.reduction import tile_sums
from udc_ray.attacks.simba import SimBA
from udc_ray.attacks.square import Square
from udc_ray.attacks.tile_machine import TileMachine
from udc_ray.attacks.tile_simba import TileSimBA
from udc_ray.attacks.tile_square import TileSquare
from udc_ray.data.base import Sample
from udc_ray.metrics.statistics import bootstrap_mean
from udc_ray.models.base import Descriptor, ModuleRestorer, Restorer
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

PS = (0.01, 0.05, 0.3, 0.8)
MARKS = (20, 50, 100, 300, 1000)
Curve = list[tuple[int, float]]


class Scrambled(nn.Module):
    """The planted model that mixes globally: a restorer, and then every pixel at a random place."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.restorer = restorer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        order = torch.randperm(x_BCHW[0, 0].numel(), generator=torch.Generator().manual_seed(0))
        return self.restorer(x_BCHW).flatten(2)[:, :, order].reshape(x_BCHW.shape)


@dataclass
class Target:
    """One image with its model, and the answers to what machines ask of it."""

    sample: Sample
    model: Restorer
    seed: int
    objective: Objective = field(default_factory=lambda: get_objective("mse"))

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.clean = self.model(self.sample.degraded[None])[0].clamp(0, 1)

    def problem(self) -> QueryProblem:
        tape = Tape(seed=self.seed, image_ids=(self.sample.image_id,), stream="attack")
        additive = self.objective.name.startswith("mse")
        return QueryProblem(x_CHW=self.sample.degraded, tape=tape, goal=math.inf, additive=additive)

    @property
    def truth(self) -> Tensor:
        assert self.sample.truth is not None, "the benchmark's images have their truth"
        return self.sample.truth

    def answer(self, ask: Ask) -> list[Answer]:
        """One forward pass a candidate."""
        found: list[Answer] = []
        for x_CHW in ask.x_KCHW:
            with torch.no_grad():
                output = self.model(x_CHW[None])
            if ask.wanted.kind == "tile-sums":
                reference = self.clean if ask.wanted.against == "clean" else self.truth
                found.append(tile_sums(output[0], reference, ask.wanted.tile))
            else:
                found.append(float(self.objective.score(output, self.truth[None])))
        return found

    def run(self, machine: Machine, until: int | None = None) -> Curve:
        """Drive a machine to its end, or until so many queries."""
        while not machine.done and (until is None or machine.asked < until):
            machine.tell(self.answer(machine.ask()))
        return machine.curve

    def pgd(self, steps: int) -> float:
        """Score of white-box PGD."""
        attack = PGD(steps=steps)
        x_BCHW, truth_BCHW = self.sample.degraded[None], self.truth[None]
        target = GradientTarget(Victim(restorer=self.model), self.objective, truth_BCHW, self.problem().tape)
        clean_B = self.objective.score(self.clean[None], truth_BCHW)
        problem = Problem(x_BCHW=x_BCHW, tape=self.problem().tape, clean_score_B=clean_B, goal_B=clean_B * math.inf)
        return float(attack.perturb(target, problem).score_B)


def db(score: float) -> float:
    """PSNR of a mean squared error."""
    return -10 * math.log10(score)


def at(curve: Curve, queries: int) -> float:
    """Best score within so many queries."""
    return max(score for asked, score in curve if asked <= queries)


def needed(curve: Curve, score: float) -> float:
    """Queries until a score, infinite where it was not reached."""
    return min((asked for asked, found in curve if found >= score), default=math.inf)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: queries needed, PSNR of every attack, and the cases where testing in parallel does not help."""
    torch.set_num_threads(1)
    given = {name: getattr(arguments, name, None) for name in ("images", "seeds", "size", "budget", "display", "data")}
    images, seeds, size, budget = (
        given[n] or d for n, d in (("images", 4), ("seeds", 1), ("size", 128), ("budget", 1000))
    )
    display = given["display"] or "toled"
    restorer = udc_ray.load(getattr(arguments, "model", None) or "default", getattr(arguments, "weights", None))
    source = "shipped" if given["data"] is None else str(given["data"])
    samples = udc_ray.samples(source, limit=images, display=display, size=size)
    attacks = _attacks(budget)
    only = getattr(arguments, "only", None)
    if only:
        attacks = {n: a for n, a in attacks.items() if n in only.split(",") or n.startswith("square p")}
    curves, pgd = _curves(attacks, samples, seeds, restorer)
    settings = {"display": display, "size": size, "images": len(samples), "seeds": seeds, "budget": budget}
    return [
        *_queries_rows(curves, budget, settings),
        *_psnr_rows(curves, pgd, budget, settings),
        *_unhelped_rows(samples[0], restorer, settings),
    ]


def _attacks(budget: int) -> dict[str, Callable[[Target], Curve]]:
    """Every attack that is compared, as what runs it."""
    plain = {f"square p={p}": Square(p=p, horizon=budget, budget=budget) for p in PS}
    others = {
        "tile-square": TileSquare(budget=budget, horizon=budget),
        "tile-square without waves": TileSquare(budget=budget, horizon=budget, scans=0, waves=0),
        "simba": SimBA(budget=budget),
        "tile-simba": TileSimBA(budget=budget),
    }
    found: dict[str, Callable[[Target], Curve]] = {n: partial(_run, a) for n, a in (plain | others).items()}
    return found | {"square from the best wave": partial(_from_wave, budget)}


def _run(attack: QueryAttack, target: Target) -> Curve:
    return target.run(attack.start(target.problem()))


def _from_wave(budget: int, target: Target) -> Curve:
    """The start of tile-square, and then plain Square: what the waves do without parallel tests."""
    machine = TileSquare(budget=budget, horizon=budget).start(target.problem())
    target.run(machine, machine.starts + 4)
    machine.fall_back()
    return target.run(machine)


def _curves(
    attacks: dict[str, Callable[[Target], Curve]], samples: Sequence[Sample], seeds: int, restorer: Restorer
) -> tuple[dict[str, list[list[Curve]]], list[float]]:
    """Curves by attack, image and seed; and the score of PGD-20 by image."""
    curves: dict[str, list[list[Curve]]] = {name: [] for name in attacks}
    pgd = []
    for sample in samples:
        started = time.perf_counter()
        targets = [Target(sample, restorer, seed) for seed in range(seeds)]
        for name, attack in attacks.items():
            curves[name].append([attack(target) for target in targets])
            reached = " ".join(f"{db(at(curves[name][-1][0], q)):.2f}" for q in MARKS)
            print(f"{sample.image_id} {name}: {reached}", file=sys.stderr, flush=True)
        pgd.append(targets[0].pgd(20))
        print(f"{sample.image_id}: PGD-20 {db(pgd[-1]):.2f}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return curves, pgd


def _plain_best(curves: dict[str, list[list[Curve]]], image: int, seed: int, queries: int) -> float:
    return max(at(curves[f"square p={p}"][image][seed], queries) for p in PS)


def _queries_rows(curves: dict[str, list[list[Curve]]], budget: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Queries to what the best plain Square does with the whole budget; where unreached, the budget counts."""
    rows = []
    for name in (n for n in curves if n.startswith("tile-square") or n == "square from the best wave"):
        by_image = [
            [needed(curve, _plain_best(curves, i, s, budget)) for s, curve in enumerate(seeds)]
            for i, seeds in enumerate(curves[name])
        ]
        flat = [q for image in by_image for q in image]
        mean = bootstrap_mean([float(np.mean([min(q, budget) for q in image])) for image in by_image], 0)
        rows.append(
            {"name": f"queries of {name} to plain Square's {budget}"}
            | {"mean": round(mean.mean, 1), "interval": _interval(mean.ci_low, mean.ci_high, 1)}
            | {"median": float(np.median(flat)), "largest": max(flat), "reached": sum(map(math.isfinite, flat))}
            | {"of": len(flat)}
            | settings
        )
    return rows


def _psnr_rows(
    curves: dict[str, list[list[Curve]]], pgd: list[float], budget: int, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """PSNR after so many queries, and how far that is from PGD-20."""
    marks = [q for q in MARKS if q <= budget]
    white = [db(score) for score in pgd]
    rows: list[dict[str, Any]] = [{"name": "PGD-20", "psnr": round(float(np.mean(white)), 2)} | settings]
    for name in ("best plain square", *curves):
        row: dict[str, Any] = {"name": name}
        above: list[float] = []
        for queries in marks:
            values = [_mean_db(curves, name, image, queries) for image in range(len(pgd))]
            row[f"at_{queries}"] = round(float(np.mean(values)), 2)
            above = [v - w for v, w in zip(values, white, strict=True)]
        gap = bootstrap_mean(above, 0)
        interval = _interval(gap.ci_low, gap.ci_high, 2)
        rows.append(row | {"above_pgd20_at_the_end": round(gap.mean, 2), "interval": interval} | settings)
    return rows


def _mean_db(curves: dict[str, list[list[Curve]]], name: str, image: int, queries: int) -> float:
    """PSNR of an attack on an image, mean over seeds."""
    seeds = range(len(next(iter(curves.values()))[image]))
    if name == "best plain square":
        return float(np.mean([db(_plain_best(curves, image, seed, queries)) for seed in seeds]))
    return float(np.mean([db(at(curves[name][image][seed], queries)) for seed in seeds]))


def _unhelped_rows(sample: Sample, restorer: Restorer, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the plain attack takes over: after how many queries."""
    count = sum(p.numel() for p in getattr(restorer, "module", nn.Module()).parameters())
    mixing = ModuleRestorer(Scrambled(restorer), Descriptor(name="scrambled", parameters=count))
    rows = []
    for name, target in (
        ("a model that mixes globally", Target(sample, mixing, 0)),
        ("objective ssim", Target(sample, restorer, 0, get_objective("ssim"))),
    ):
        machine: TileMachine = TileSquare(budget=40).start(target.problem())
        while machine.inner is None and not machine.done:
            machine.tell(target.answer(machine.ask()))
        fell = machine.asked if machine.inner is not None else None
        rows.append({"name": name, "plain_attack_from_query": fell} | settings)
    return rows


def _interval(low: float | None, high: float | None, digits: int) -> str:
    return "-" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"
