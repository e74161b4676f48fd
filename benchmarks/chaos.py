"""Runs on the namespace bench that one fault strikes each: what is lost, how long it holds them up, what comes out."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

# The bench is the tests' own, and lies beside them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cluster"))

from disturbed import Chaos, bench
from faults import FAULTS
from network import available

IMAGES = 12


def plan(runs: int, seed: int, only: str | None = None) -> list[str]:
    """Kind of every run: each as often as the others, in an order that the seed chooses.

    Args:
        runs: how many.
        seed: of the order.
        only: the one kind that is wanted.
    """
    kinds = [only] if only is not None else list(FAULTS)
    dealt = [kinds[n % len(kinds)] for n in range(runs)]
    random.Random(seed).shuffle(dealt)
    return dealt


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a run, after one of an undisturbed run; a row goes to stderr as soon as it is there."""
    reason = available()
    if reason is not None:
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="udc-chaos-") as folder, bench(Path(folder), IMAGES) as chaos:
        rows, undisturbed = [], _undisturbed(chaos)
        for number, kind in list(enumerate(plan(arguments.runs, arguments.seed, arguments.only)))[arguments.skip :]:
            struck = chaos.strike(kind, number, arguments.seed)
            rows.append(struck.to_json())
            print(rows[-1], file=sys.stderr, flush=True)
    held = sum(bool(row["held"]) for row in rows)
    return [undisturbed, *rows, {"runs": len(rows), "held": held}]


def _undisturbed(chaos: Chaos) -> dict[str, Any]:
    chaos.undisturbed()  # the first one starts the processes that later ones find
    return {"run": "-", "kind": "none", "units": chaos.units, **chaos.undisturbed()}
