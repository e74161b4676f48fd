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
    *("pgd", "purify", "campaign", "slots", "tiles", "cifar", "rivals"),
    *("orchestrate", "networks", "startup", "quality", "chaos", "kills"),
)


def main() -> None:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the median of their ratios counts")
    parser.add_argument(
        "--data", type=Path, help="folder of photos/kodak24 and photos/cid22_train (quality); .npz (cifar, rivals)"
    )
    parser.add_argument("--runs", type=int, default=20, help="runs that a fault strikes (chaos only)")
    parser.add_argument("--seed", type=int, default=0, help="chooses faults, victims and moments (chaos, kills)")
    parser.add_argument("--kills", type=int, default=25, help="processes that are killed (kills only)")
    parser.add_argument("--only", help="worker, node, driver, client, partition, power, head, drain (chaos only)")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many runs at the beginning (chaos only)")
    parser.add_argument("--out", help="run directory, to go on with and to look into; else it is thrown away (cifar)")
    parser.add_argument("--rivals-python", type=Path, help="interpreter with torchattacks and ART (rivals only)")
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
