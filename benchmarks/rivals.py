"""Useful queries a second on one classifier, as a share of what the bare model does in the same seconds.

Useful is a query that the attack needed, for an image that is not finished; a padded slot, an image that has fallen
and a score that is known already are not. All of a side, the model included, is one process with one thread. The
attack is Square on CIFAR-10 images. The other tools run in an interpreter of their own (`rivals_child`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import rivals_child
from benchmarks.rivals_child import Beside, Measured
from udc_ray.attacks.batcher import Batcher
from udc_ray.attacks.driver import Chain, drive, run_here, start_chains
from udc_ray.attacks.oracle import Oracle, Row
from udc_ray.attacks.query import QueryProblem
from udc_ray.attacks.square import Square
from udc_ray.config import Overrides, build_spec
from udc_ray.errors import DataError
from udc_ray.host import Host
from udc_ray.in_process import Direct
from udc_ray.models.base import ModuleRestorer
from udc_ray.models.networks import resnet_cifar
from udc_ray.prepare import Prepared, prepare
from udc_ray.tape import Tape
from udc_ray.tasks.classification import MISSED

IMAGES, SLOTS, BUDGET = 128, 32, 100
EPS, P = 8 / 255, 0.3
EVERY = 3 * SLOTS
"""Rows of an attack between two bare batches beside it."""
SAME = {"OMP_NUM_THREADS": "1"} | dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30))
"""What makes the bare model as fast in the other interpreter: freed memory is kept, as our hosts keep it."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A way of carrying out our attack.

    Attributes:
        name: of the row.
        slots: candidates of a batch.
        group: images that are begun together and carried to the end of their last.
    """

    name: str
    slots: int
    group: int


SIDES = (
    Side(name="udc-ray, campaign engine", slots=SLOTS, group=IMAGES),
    Side(name="udc-ray, lock-step groups without refill", slots=SLOTS, group=SLOTS),
    Side(name="udc-ray, one image at a time", slots=1, group=1),
)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a side; the other tools where an interpreter that has them is given."""
    if arguments.data is None:
        raise DataError("rivals needs --data", "the images are not in the package", "give the labelled images as .npz")
    prepared = _prepared(arguments.data)
    found = [(side.name, _ours(prepared, side, number)) for number in range(arguments.rounds) for side in SIDES]
    rows = summarised(found)
    if arguments.rivals_python is None:
        why = "not measured: give --rivals-python, an interpreter that has it"
        return [*rows, *({"name": name, "note": why} for name in rivals_child.ATTACKS)]
    return [*rows, *_others(prepared, arguments)]


def summarised(found: Iterable[tuple[str, Measured]]) -> list[dict[str, Any]]:
    """One row a name: the median over the rounds of the useful rate as a share of the bare rate, and its range."""
    rounds: dict[str, list[Measured]] = {}
    for name, measured in found:
        rounds.setdefault(name, []).append(measured)
    return [_row(name, several) for name, several in rounds.items()]


def _row(name: str, rounds: Sequence[Measured]) -> dict[str, Any]:
    shares = [m["useful"] / m["seconds"] / m["bare_per_s"] for m in rounds]
    useful = sum(m["useful"] for m in rounds)
    return {
        "name": name,
        "share_of_bare": round(statistics.median(shares), 4),
        "lowest": round(min(shares), 4),
        "highest": round(max(shares), 4),
        "rows_a_useful_query": round(sum(m["rows"] for m in rounds) / useful, 3),
        "useful_per_s": round(statistics.median(m["useful"] / m["seconds"] for m in rounds), 1),
        "bare_per_s": round(statistics.median(m["bare_per_s"] for m in rounds), 1),
        "useful_queries": round(useful / len(rounds)),
        "rounds": len(rounds),
    }


def _prepared(data: Path) -> Prepared:
    """The run whose host judges our candidates, on images that are classified correctly."""
    flags = Overrides(model="cifar-resnet20", data=str(data), attacks=("square",), defenses=("none",))
    sets = (f"run.micro_batch={SLOTS}", "run.threads=1", f"limit={IMAGES + 64}")
    prepared = prepare(build_spec(flags=flags, sets=sets))
    dataset, kept = prepared.setup.dataset, list[str]()
    for image_id in dataset.image_ids:
        sample = dataset.load(image_id)
        with torch.no_grad():
            label = prepared.restorer(sample.degraded[None]).argmax()
        if sample.truth is not None and label == sample.truth:
            kept.append(image_id)
    if len(kept) < IMAGES:
        raise DataError(f"only {len(kept)} images are classified correctly, {IMAGES} are wanted", change="give more")
    return replace(prepared, setup=replace(prepared.setup, dataset=dataset.take(tuple(kept[:IMAGES]))))


def _ours(prepared: Prepared, side: Side, seed: int) -> Measured:
    dataset = prepared.setup.dataset
    bare = torch.stack([dataset.load(i).degraded for i in dataset.image_ids[:SLOTS]])
    beside = Beside(prepared.restorer, bare, EVERY)
    setup = replace(prepared.setup, resolved=replace(prepared.setup.resolved, micro_batch=side.slots))
    host = Host(setup, restorer=ModuleRestorer(beside, prepared.restorer.descriptor))
    chains = _chains(host, seed)
    groups = [chains[start : start + side.group] for start in range(0, len(chains), side.group)]
    measured = rivals_child.timed(beside, lambda: run_here(_driven(host, groups, side.slots)))
    host.close()
    return measured


def _chains(host: Host, seed: int) -> list[Chain]:
    attack = Square(eps=EPS, p=P, budget=BUDGET, horizon=BUDGET, stop="success")
    problems = [
        QueryProblem(
            x_CHW=host.sample(image_id).degraded,
            tape=Tape(seed=seed, image_ids=(image_id,), stream="attack"),
            goal=MISSED,
            additive=False,
        )
        for image_id in host.setup.dataset.image_ids
    ]
    return start_chains(attack, problems)


async def _driven(host: Host, groups: Sequence[Sequence[Chain]], slots: int) -> int:
    """Queries that all chains asked, one group after the other."""
    batcher = Batcher(Direct(host).score, slots, in_flight=1)
    oracle = Oracle(batcher.send, 0, Row(image_id="", objective=host.setup.spec.objective), BUDGET)
    for group in groups:
        await drive(group, oracle, batcher)
    return sum(chain.machine.asked for group in groups for chain in group)


def _others(prepared: Prepared, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        _write(prepared, Path(folder), arguments.rounds)
        command = [str(arguments.rivals_python), rivals_child.__file__, folder]
        child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **SAME}, check=False)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{child.stderr}")
    found = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    missing = {f["name"]: f["missing"] for f in found if "missing" in f}
    rows = summarised((f.pop("name"), f) for f in found if "missing" not in f)
    return [*rows, *({"name": name, "note": f"not measured: {why}"} for name, why in missing.items())]


def _write(prepared: Prepared, folder: Path, rounds: int) -> None:
    """What the other interpreter needs: the network, its weights, the images and the settings."""
    samples = [prepared.setup.dataset.load(i) for i in prepared.setup.dataset.image_ids]
    images = {
        "x_NCHW": torch.stack([s.degraded for s in samples]),
        "y_N": torch.stack([s.truth for s in samples if s.truth is not None]),
    }
    torch.save(images, folder / "images.pt")
    if not isinstance(prepared.restorer, ModuleRestorer):
        raise TypeError("the shipped classifier is a module")
    torch.save(prepared.restorer.module.state_dict(), folder / "weights.pt")
    settings = {
        "network": resnet_cifar.__file__,
        "classes": prepared.restorer.descriptor.classes,
        "rounds": rounds,
        "slots": SLOTS,
        "every": EVERY,
        "budget": BUDGET,
        "eps": EPS,
        "p": P,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
