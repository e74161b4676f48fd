"""Query attacks on CIFAR-10 with the shipped ResNet-20, to be read beside published figures.

The campaign engine runs them in this process, and every image ends at its own success. `docs/query-attacks.md`
holds the table and says what may be compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

from udc_ray.campaign import as_campaign
from udc_ray.config import Overrides, build_spec
from udc_ray.errors import DataError
from udc_ray.host import Host
from udc_ray.in_process import InProcessPool
from udc_ray.metrics import survival
from udc_ray.pool import Outcome
from udc_ray.prepare import prepare
from udc_ray.report.curves import CellCurves, cell_curves
from udc_ray.run import Settings, execute
from udc_ray.rundir import RunDirectory

IMAGES = 260
"""Images taken; the few that the classifier misses count in no rate."""
SLOTS = 16
"""Candidates of a batch; more are no faster on one thread, and chains that are left over wait for their slots."""
EPS, BUDGET = "0.05", 10_000
ATTACKS = (
    *("square", "signhunter", "bandits", "parsimonious", "nes", "zo-signsgd"),
    *("simba:freq_dims=32", "simba:basis=pixel"),
)
"""At their defaults but for SimBA, whose form for linf takes all frequencies of the 32 pixels."""
OTHERS = (
    *(f"square:p={p},eps=8/255,budget=1000,horizon=1000" for p in (0.05, 0.3, 0.8)),
    f"simba:eps={EPS},budget=1000",
)
"""Square at 8/255 within 1000 queries, its schedule scaled to them; SimBA with the lowest 4 x 4 frequencies."""


class Quiet:
    """Hears of a run and says nothing."""

    def note(self, text: str) -> None:
        """See `udc_ray.run.Listener`."""

    def begin(self, units: int) -> None:
        """See `udc_ray.run.Listener`."""

    def unit(self, outcome: Outcome) -> None:
        """See `udc_ray.run.Listener`."""

    def end(self) -> None:
        """See `udc_ray.run.Listener`."""


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an attack: how many images fell, and after how many queries."""
    if arguments.data is None:
        raise DataError("cifar needs --data", "the images are not in the package", "give the labelled images as .npz")
    if arguments.out is not None:
        return _campaign(arguments, str(arguments.out))
    with tempfile.TemporaryDirectory() as scratch:
        return _campaign(arguments, f"{scratch}/run")


def entries() -> tuple[str, ...]:
    """The attacks as the command line would name them."""
    return (*(f"{text}{',' if ':' in text else ':'}eps={EPS},budget={BUDGET}" for text in ATTACKS), *OTHERS)


def row(name: str, times: survival.Times, charged: Sequence[int], budget: int, seed: int) -> dict[str, Any]:
    """What is said of one attack.

    Args:
        name: of the row.
        times: queries at the first success by image, None where there was none.
        charged: all queries of the images that fell: what was asked at once with the success counts too.
        budget: queries allowed an image.
        seed: of the intervals.
    """
    rate, middle = survival.success_within(times, budget), survival.median_estimate(times, seed)
    restricted = survival.restricted_mean(times, budget, seed)
    fell = [t for t in times.values() if t is not None]
    return {
        "name": name,
        "images": rate.n,
        "success": round(rate.mean, 4),
        "success_ci": [round(float(end), 4) for end in (rate.ci_low or 0.0, rate.ci_high or 0.0)],
        "mean_of_successes": round(statistics.mean(fell), 1) if fell else None,
        "charged_mean_of_successes": round(statistics.mean(charged), 1) if charged else None,
        "median": middle.value,
        "median_ci": [middle.ci_low, middle.ci_high],
        "restricted_mean": None if restricted is None else round(restricted.mean, 1),
    }


def _campaign(arguments: argparse.Namespace, out: str) -> list[dict[str, Any]]:
    flags = Overrides(
        model="cifar-resnet20",
        data=str(arguments.data),
        attacks=entries(),
        defenses=("none",),
        limit=IMAGES,
        seed=arguments.seed,
    )
    spec = build_spec(flags=flags, sets=(f"run.micro_batch={SLOTS}", "run.threads=1", "run.save=none"))
    prepared = prepare(as_campaign(spec))
    execute(prepared, lambda setup: InProcessPool(Host(setup, restorer=prepared.restorer)), Quiet(), Settings(out=out))
    run = RunDirectory.read(out)
    cells = cell_curves(run.records(), run.curves(), run.header.spec)
    return [_row(cells[cell.id], arguments.seed) for cell in prepared.setup.plan.cells]


def _row(curves: CellCurves, seed: int) -> dict[str, Any]:
    head = curves.cell.head
    charged = [record.queries or 0 for record in curves.cell.records if record.success]
    return row(head.label, curves.to_success() or {}, charged, head.budget or BUDGET, seed)
