"""Campaigns on local Ray that are killed at random moments: what they spent, and whether anything differs then."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# What starts, kills and judges campaigns is the tests' own, and lies beside them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from campaign_chaos import (
    ATTACKS,
    CONCURRENCY,
    LEASE,
    OWNED,
    Campaign,
    broken_owned_promises,
    broken_promises,
    on_ray,
    spec,
    strikes,
)
from campaign_processes import KINDS, Kind
from counting_target import FOLDER_VARIABLE, SECONDS_VARIABLE, Counter, CountingTarget

METERED_SHARE, METERED_TIME = 0.6, 0.7
"""Of the kills and of the time; the others strike campaigns against a model of our own, and need fewer starts."""
MOST_SECONDS = 840
"""After so long nothing more is killed, and what runs is let end; on a busy machine starts take longest."""
QUERIES, IMAGES, SECONDS = 12, 2, 0.02
"""Budget of a chain, images of a campaign, and how long one evaluation takes."""


def kinds(kills: int, *, metered: bool) -> list[Kind]:
    """What is killed: each kind as often as the others; a ledger's disk is lost where there is one."""
    known = KINDS if metered else KINDS[:-1]
    return [known[n % len(known)] for n in range(kills)]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a campaign: first undisturbed, then killed."""
    kills, seed = arguments.kills, arguments.seed
    metered = round(kills * METERED_SHARE)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="udc-kills-") as name:
        rows = _metered(Path(name) / "metered", metered, seed, begun + METERED_TIME * MOST_SECONDS)
        rows += _owned(Path(name) / "owned", kills - metered, seed, begun + MOST_SECONDS)
    return [*rows, {"kills": sum(row["kills"] for row in rows), "held": all(row["held"] for row in rows)}]


def _metered(folder: Path, kills: int, seed: int, until: float) -> list[dict[str, Any]]:
    budget = 4 * len(ATTACKS) * IMAGES * QUERIES + LEASE * kills
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec(ATTACKS, QUERIES, IMAGES)))
    rows = []
    with CountingTarget(folder / "target", SECONDS) as target:
        start = on_ray(
            *("--target", target.url), *("--set", f"model.budget={budget}", "--set", f"model.concurrency={CONCURRENCY}")
        )
        whole, killed = (
            Campaign(folder=folder / name, counter=target, start=start, until=until) for name in ("whole", "killed")
        )
        for campaign, plan in ((whole, []), (killed, strikes(kinds(kills, metered=True), seed, most=24))):
            before, code = target.count, campaign.go(plan)
            calls = target.count - before
            broken = broken_promises(campaign, calls, budget, whole) + [f"exit code {code}"] * (code != 0)
            account = campaign.account()
            rows.append(
                {
                    **_row("metered", campaign, broken, len(plan)),
                    "answered": account.answered,
                    "counter": calls,
                    "unknown": account.unknown,
                    "unknown_at_most": campaign.toll.unknown_at_most,
                    "budget": budget,
                }
            )
            _tell(rows[-1])
    return rows


def _owned(folder: Path, kills: int, seed: int, until: float) -> list[dict[str, Any]]:
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec(ATTACKS, QUERIES, IMAGES)))
    plan = strikes(kinds(kills, metered=False), seed, most=60)
    dry = _counted(folder, "dry", until, "--in-process", "--dry-run")
    whole, killed = (_counted(folder, name, until) for name in ("whole", "killed"))
    dry.go()
    rows = []
    for campaign, blows in ((whole, []), (killed, plan)):
        code = campaign.go(blows)
        broken = broken_owned_promises(campaign, whole, dry, QUERIES) + [f"exit code {code}"] * (code != 0)
        rows.append({**_row("owned", campaign, broken, len(blows)), "evaluated": campaign.counter.count})
        _tell(rows[-1])
    return rows


def _counted(folder: Path, name: str, until: float, *first: str) -> Campaign:
    counts = {FOLDER_VARIABLE: str(folder / f"{name}-count"), SECONDS_VARIABLE: str(SECONDS)}
    start = on_ray(*OWNED, *first, **counts)
    return Campaign(folder=folder / name, counter=Counter(folder / f"{name}-count"), start=start, until=until)


def _row(target: str, campaign: Campaign, broken: list[str], planned: int) -> dict[str, Any]:
    """What befell a campaign; fewer kills than were planned where the time was over first."""
    toll = campaign.toll
    return {
        "target": target,
        "run": campaign.folder.name,
        "kills": toll.kills.total(),
        "planned": planned,
        "by_kind": dict(toll.kills),
        "starts": toll.starts,
        "seconds": round(toll.seconds),
        "held": not broken,
        "broken": broken,
    }


def _tell(row: dict[str, Any]) -> None:
    print(row, file=sys.stderr, flush=True)
