"""How long a user waits: for ``--help``, and for the first record of a local run."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GOALS = {"help": 0.35, "first record": 15.0}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of ``udc-ray --help``, and of the first part file of a default run on local Ray."""
    return [
        _row("help", [_help() for _ in range(arguments.rounds)]),
        _row("first record", [_first_record() for _ in range(min(3, arguments.rounds))]),
    ]


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "udc_ray_cli.main", *words]


def _help() -> float:
    started = time.perf_counter()
    subprocess.run(_command("--help"), check=True, capture_output=True)
    return time.perf_counter() - started


def _first_record() -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = ("evaluate", "--out", str(out), "--attack", "fgsm", "--defense", "none")
        started = time.perf_counter()
        process = subprocess.Popen(_command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(out.glob("parts/*.parquet")) and process.poll() is None:
            time.sleep(0.02)
        spent = time.perf_counter() - started
        process.wait()
    return spent


def _row(name: str, times: list[float]) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": round(statistics.median(times), 3),
        "lowest": round(min(times), 3),
        "highest": round(max(times), 3),
        "goal": GOALS[name],
        "rounds": len(times),
    }
