"""``python -m benchmarks NAME [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path

import torch

NAMES = (
    *("pgd", "purify", "adaptive", "campaign", "slots", "tiles", "cifar", "rivals"),
    *("orchestrate", "networks", "startup", "quality", "chaos", "kills"),
)


def _add_tiles(parser: argparse.ArgumentParser) -> None:
    """Options of the comparison of tile-parallel Square with plain Square."""
    only = parser.add_argument_group("tiles only")
    only.add_argument("--model", default="default", help="restorer: a name or a weights file")
    only.add_argument("--weights", help="weights file of a named model")
    only.add_argument("--display", default="toled", help="display before the photographs")
    only.add_argument("--size", type=int, default=128, help="side of the centre crops in pixels")
    only.add_argument("--images", type=int, default=4, help="photographs")
    only.add_argument("--seeds", type=int, default=1, help="seeds an image")
    only.add_argument("--budget", type=int, default=1000, help="queries of every attack; schedules scale to them")
    only.add_argument("--minutes", type=float, help="begin no curve after so long; 0 makes the tables of what is there")
    only.add_argument(
        "--further",
        type=int,
        help="end tile-square's seeds after the first at plain Square's damage, from this query on",
    )


def main() -> None:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the median of their ratios counts")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of photos/kodak24 and photos/cid22_train (quality); .npz (cifar, rivals); photographs (tiles)",
    )
    parser.add_argument("--runs", type=int, default=20, help="runs that a fault strikes (chaos only)")
    parser.add_argument("--seed", type=int, default=0, help="chooses faults, victims and moments (chaos, kills)")
    parser.add_argument("--kills", type=int, default=25, help="processes that are killed (kills only)")
    parser.add_argument(
        "--only", help="worker, node, driver, client, partition, power, head, drain (chaos); attacks (tiles)"
    )
    parser.add_argument("--skip", type=int, default=0, help="leave out so many runs at the beginning (chaos only)")
    parser.add_argument(
        "--out", help="run directory (cifar) or file of finished curves (tiles) to go on with; else thrown away"
    )
    parser.add_argument("--rivals-python", type=Path, help="interpreter with torchattacks and ART (rivals only)")
    _add_tiles(parser)
    arguments = parser.parse_args()
    figures = importlib.import_module(f"benchmarks.{arguments.name}").measure(arguments)
    document = {
        "benchmark": arguments.name,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "figures": figures,
    }
    for row in figures:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(0)


if __name__ == "__main__":
    main()
