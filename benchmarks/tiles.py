"""What tile-parallel Square is worth: queries to plain Square's damage, PSNR by queries, and where it does not help.

Linf 8/255, MSE to the truth, on shipped photographs (or those of --data) behind a display. Plain Square is the best
of p = 0.01, 0.05, 0.3, 0.8, every one from the better of stripes and signs, its schedule scaled to 1000 queries.
Everything is paired: an image and a seed at a time. With --out every finished curve is kept and not run again; the
tables are made from what is there, and each row says of how many pairs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import udc_ray
from benchmarks.tile_curves import PLAIN, Curve, Curves, Points, at, db, needed
from udc_ray.attacks import locality
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
from udc_ray.hashing import module_sha256
from udc_ray.metrics.statistics import bootstrap_mean
from udc_ray.models.base import Descriptor, ModuleRestorer, Restorer
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

TILE, WAVE, BEST_PLAIN = "tile-square", "square from the best wave", "best plain square"
MARKS = (20, 50, 100, 300, 1000)
STEPS = 20
WHITE = f"PGD-{STEPS}"
Enough = Callable[[Points, int], bool]
"""Whether an attack may be cut short, by its curve and the queries that it asked."""


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

    def run(self, machine: Machine, enough: Enough) -> None:
        """Drive a machine to its end, or until it is enough."""
        while not (machine.done or enough(machine.curve, machine.asked)):
            machine.tell(self.answer(machine.ask()))

    def pgd(self, steps: int) -> float:
        """Score of white-box PGD."""
        attack = PGD(steps=steps)
        x_BCHW, truth_BCHW = self.sample.degraded[None], self.truth[None]
        target = GradientTarget(Victim(restorer=self.model), self.objective, truth_BCHW, self.problem().tape)
        clean_B = self.objective.score(self.clean[None], truth_BCHW)
        problem = Problem(x_BCHW=x_BCHW, tape=self.problem().tape, clean_score_B=clean_B, goal_B=clean_B * math.inf)
        return float(attack.perturb(target, problem).score_B)


Start = Callable[[Target], Machine]
Job = tuple[str, int, int]
"""Attack, position of the image, seed."""


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: queries needed, PSNR of every attack, and the cases where testing in parallel does not help."""
    torch.set_num_threads(1)
    restorer = udc_ray.load(arguments.model, arguments.weights)
    source = "shipped" if arguments.data is None else str(arguments.data)
    samples = udc_ray.samples(source, limit=arguments.images, display=arguments.display, size=arguments.size)
    starts, identities = _attacks(arguments.budget, arguments.only)
    settings = {"display": arguments.display, "size": arguments.size, "budget": arguments.budget}
    module = getattr(restorer, "module", None)
    model = {"model": restorer.descriptor.name, "weights": None if module is None else module_sha256(module)[:16]}
    path = None if arguments.out is None else Path(arguments.out)
    curves = Curves(settings | model, identities, path)
    _run(curves, starts, samples, restorer, arguments)
    images, seeds = [s.image_id for s in samples], arguments.seeds
    return [
        *_queries_rows(curves, images, seeds, settings),
        *_psnr_rows(curves, images, seeds, arguments.further, settings),
        *_unhelped_rows(samples[0], restorer, settings),
    ]


def _attacks(budget: int, only: str | None) -> tuple[dict[str, Start], dict[str, str]]:
    """Every attack that is compared, as what starts it; and how it is set."""
    tile = TileSquare(budget=budget, horizon=budget)
    attacks: dict[str, QueryAttack] = {
        name: Square(p=float(name.split("=")[1]), horizon=budget, budget=budget) for name in PLAIN
    } | {
        TILE: tile,
        f"{TILE} without waves": TileSquare(budget=budget, horizon=budget, scans=0, waves=0),
        "simba": SimBA(budget=budget),
        "tile-simba": TileSimBA(budget=budget),
    }
    starts = {name: _starting(attack) for name, attack in attacks.items()} | {WAVE: _starting_from_wave(tile)}
    attacks[WAVE] = tile
    wanted = [n for n in attacks if only is None or n in PLAIN or n in only.split(",")]
    return {n: starts[n] for n in wanted}, {n: attacks[n].identity() for n in wanted} | {
        WHITE: PGD(steps=STEPS).identity()
    }


def _starting(attack: QueryAttack) -> Start:
    return lambda target: attack.start(target.problem())


def _starting_from_wave(attack: TileSquare) -> Start:
    """The start of tile-square, and then plain Square: what the waves do without parallel tests."""

    def start(target: Target) -> Machine:
        machine = attack.start(target.problem())
        assert isinstance(machine, TileMachine), "tile-square makes tile machines"
        target.run(machine, lambda _, asked: asked >= machine.starts + locality.PROBES)
        machine.fall_back()
        return machine

    return start


def _run(
    curves: Curves, starts: dict[str, Start], samples: Sequence[Sample], restorer: Restorer, given: argparse.Namespace
) -> None:
    """Run what is missing, until the time is over; a curve that was begun is finished."""
    begun = time.monotonic()
    for name, position, seed in _jobs(list(starts), len(samples), given.seeds):
        sample = samples[position]
        enough = _enough(curves, sample.image_id, seed, given.further)
        old = curves.found.get((name, sample.image_id, seed))
        if old is not None and (old.whole or (name == TILE and enough(old.points, old.asked))):
            continue
        if given.minutes is not None and time.monotonic() - begun >= 60 * given.minutes:
            return
        started = time.perf_counter()
        target = Target(sample, restorer, seed)
        if name == WHITE:
            curve = Curve([(STEPS, target.pgd(STEPS))], STEPS, True)
        else:
            machine = starts[name](target)
            target.run(machine, enough if name == TILE else lambda *_: False)
            curve = Curve(machine.curve, machine.asked, machine.done)
        curves.add(name, sample.image_id, seed, curve)
        reached = " ".join(f"{db(at(curve.points, q)):.2f}" for q in MARKS if q <= curve.asked)
        took = f"{time.perf_counter() - started:.0f} s"
        print(f"{sample.image_id} seed {seed} {name}: {reached} ({curve.asked}, {took})", file=sys.stderr, flush=True)


def _jobs(names: Sequence[str], images: int, seeds: int) -> Iterator[Job]:
    """The work in an order in which tables are of use early: image by image what is paired, then the rest."""
    tile = [n for n in names if n == TILE]
    others = [n for n in names if n != TILE and n not in PLAIN]
    for image in range(images):
        yield from ((name, image, 0) for name in (*tile, *PLAIN, WHITE))
        yield from ((name, image, seed) for seed in range(1, seeds) for name in tile)
    for seed in range(seeds):
        for image in range(images):
            yield from ((name, image, seed) for name in (*(PLAIN if seed else ()), *others))


def _enough(curves: Curves, image: str, seed: int, further: int | None) -> Enough:
    """Seeds after the first may end at plain Square's damage, where that is known and so many queries are asked."""
    goal = None if seed == 0 or further is None else curves.goal(image, seed)
    return lambda points, asked: goal is not None and asked >= (further or 0) and at(points, asked) >= goal


def _queries_rows(curves: Curves, images: Sequence[str], seeds: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Queries to what the best plain Square does with the whole budget; where unreached, the budget counts."""
    rows = []
    for name in (n for n in curves.attacks if n.startswith(TILE) or n == WAVE):
        found = {(i, s): q for i in images for s in range(seeds) if (q := _needed(curves, name, i, s)) is not None}
        if not found:
            continue
        budget, flat = settings["budget"], list(found.values())
        by_image = _by_image({key: min(q, budget) for key, q in found.items()})
        mean = bootstrap_mean(by_image, 0)
        rows.append(
            {"name": f"queries of {name} to plain Square's {budget}"}
            | {"mean": round(mean.mean, 1), "interval": _interval(mean.ci_low, mean.ci_high, 1)}
            | {"median": float(np.median(flat)), "largest": max(flat), "reached": sum(map(math.isfinite, flat))}
            | {"of": len(flat), "own_plain": sum(curves.plain_seed(i, s) == s for i, s in found)}
            | {"images": len(by_image)}
            | settings
        )
    return rows


def _needed(curves: Curves, name: str, image: str, seed: int) -> float | None:
    """Queries of a pair, infinite where the whole curve falls short; None where the pair is not finished."""
    curve, goal = curves.found.get((name, image, seed)), curves.goal(image, seed)
    if curve is None or goal is None:
        return None
    queries = needed(curve.points, goal)
    return queries if curve.whole or math.isfinite(queries) else None


def _psnr_rows(
    curves: Curves, images: Sequence[str], seeds: int, further: int | None, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """PSNR after so many queries, and how far that is from PGD-20; of pairs that have all that is compared."""
    marks = [q for q in MARKS if q <= settings["budget"]]
    white = {i: db(curve.points[0][1]) for i in images if (curve := curves.found.get((WHITE, i, 0))) is not None}
    every = [(i, s) for i in white for s in range(seeds) if curves.plain_seed(i, s) is not None]
    own = [(i, s) for i, s in every if curves.plain_seed(i, s) == s]
    if TILE in curves.attacks:
        own = [pair for pair in own if curves.whole(TILE, *pair)]
    if not own:
        return []
    rows = []
    for name in (BEST_PLAIN, *(n for n in curves.attacks if n != WHITE)):
        pairs = own if name == BEST_PLAIN else [pair for pair in own if curves.whole(name, *pair)]
        rows.append({"name": name} | _psnr_row(curves, name, pairs, marks, white))
    short = [q for q in marks if further is not None and q <= further]
    pairs = [
        (i, s) for i, s in every if (c := curves.found.get((TILE, i, s))) is not None and c.asked >= (short or [0])[-1]
    ]
    if short and len(pairs) > len(own):
        rows.append({"name": f"{TILE}, all seeds"} | _psnr_row(curves, TILE, pairs, short, white))
    mean = float(np.mean([white[i] for i in {i: 0 for i, _ in own}]))
    return [row | settings for row in ({"name": WHITE, "psnr": round(mean, 2)}, *rows)]


def _psnr_row(
    curves: Curves, name: str, pairs: Sequence[tuple[str, int]], marks: Sequence[int], white: dict[str, float]
) -> dict[str, Any]:
    """One attack: mean over images of the mean over seeds."""
    if not pairs:
        return {"of": 0}
    row: dict[str, Any] = {}
    for queries in marks:
        row[f"at_{queries}"] = round(float(np.mean(_by_image({p: _db(curves, name, *p, queries) for p in pairs}))), 2)
    gap = bootstrap_mean(_by_image({p: _db(curves, name, *p, marks[-1]) - white[p[0]] for p in pairs}), 0)
    row |= {f"above_pgd{STEPS}_at_{marks[-1]}": round(gap.mean, 2), "interval": _interval(gap.ci_low, gap.ci_high, 2)}
    return row | {"of": len(pairs), "images": len({image for image, _ in pairs})}


def _db(curves: Curves, name: str, image: str, seed: int, queries: int) -> float:
    """PSNR of an attack on an image."""
    if name == BEST_PLAIN:
        return db(curves.plain_best(image, seed, queries))
    return db(at(curves.found[name, image, seed].points, queries))


def _by_image(values: dict[tuple[str, int], float]) -> list[float]:
    """Means over the seeds of each image, in the order of the images."""
    found: dict[str, list[float]] = {}
    for (image, _), value in values.items():
        found.setdefault(image, []).append(value)
    return [float(np.mean(of_image)) for of_image in found.values()]


def _unhelped_rows(sample: Sample, restorer: Restorer, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the plain attack takes over: after how many queries."""
    count = sum(p.numel() for p in getattr(restorer, "module", nn.Module()).parameters())
    mixing = ModuleRestorer(Scrambled(restorer), Descriptor(name="scrambled", parameters=count))
    rows = []
    for name, target in (
        ("a model that mixes globally", Target(sample, mixing, 0)),
        ("objective ssim", Target(sample, restorer, 0, get_objective("ssim"))),
        ("this model", Target(sample, restorer, 0)),
    ):
        machine: TileMachine = TileSquare(budget=40).start(target.problem())
        target.run(machine, lambda *_, machine=machine: machine.inner is not None)
        fell = machine.asked if machine.inner is not None else None
        rows.append({"name": name, "plain_attack_from_query": fell, "margin": round(machine.margin, 1)} | settings)
    return rows


def _interval(low: float | None, high: float | None, digits: int) -> str:
    return "-" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"
