"""Campaigns that are killed and started again: at which moments, and what must hold afterwards."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter as Multiset
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from campaign_processes import Command, Kind, Process
from counting_target import Counter

from udc_ray.attacks.registry import ATTACKS as REGISTRY
from udc_ray.metered.account import Account
from udc_ray.metered.host import LEASE_BATCHES, LEDGERS_VARIABLE
from udc_ray.metered.reading import read_account, read_rows
from udc_ray.records import VOLATILE

FAILURES_ALLOWED = 3
"""Starts in a row that may end in failure by themselves."""
CONCURRENCY = 4
LEASE = LEASE_BATCHES * CONCURRENCY
ROOT = Path(__file__).parent.parent
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "100"}

SCORING = 7
"""Evaluations of the harness for one image: its goal, and at its end clean, attacked and four draws of noise."""
BASELINES = 10
"""Of them, those that a fresh host makes again for images that were scored before: two sizes of noise among them."""
OWNED_CHAINS = 6
"""Chains that a host of one slot holds."""
OWNED = ("--model", "counting_target:make")

SPECIAL: tuple[dict[str, object], ...] = (
    {"name": "square", "norm": "l2"},
    {"name": "simba", "basis": "pixel"},
    {"name": "transfer", "surrogate": "identity"},
    {"name": "find-eps", "attack": {"name": "square", "budget": 4}},
)
"""Attacks that are run in another way too, or that need something to run on 32 x 32 pixels without weights."""
NEEDY = ("transfer", "find-eps")
ATTACKS: tuple[dict[str, object], ...] = (
    *({"name": name} for name in REGISTRY if REGISTRY.get(name).kind == "query" and name not in NEEDY),
    *SPECIAL,
)
"""Every query attack of the registry."""


def spec(attacks: Sequence[dict[str, object]], budget: int, images: int) -> dict[str, object]:
    """A campaign of small images."""
    return {
        "data": {"name": "shipped", "display": "toled", "size": 32},
        "limit": images,
        "attacks": [{"budget": budget, **attack} for attack in attacks],
        "run": {"hosts": 1, "micro_batch": 1, "chunk": 1, "save": "none"},
    }


@dataclass(frozen=True)
class Strike:
    """A kill: so many calls after the one before, and some seconds later."""

    kind: Kind
    calls: int
    seconds: float


def strikes(kinds: Sequence[Kind], seed: int, most: int) -> list[Strike]:
    """Kills at random moments.

    Args:
        kinds: what is killed, in an order that the seed chooses.
        seed: of the order and the moments.
        most: calls between two kills, at most.
    """
    rng, order = random.Random(seed), list(kinds)
    rng.shuffle(order)
    return [Strike(kind, rng.randrange(2, most + 1), rng.random() * 0.03) for kind in order]


@dataclass
class Toll:
    """What a campaign went through.

    Attributes:
        kills: by kind.
        in_flight: queries that the ledger held as sent when something that sends was killed.
        starts: how often the command was given.
        seconds: all in all.
    """

    kills: Multiset[str] = field(default_factory=Multiset)
    in_flight: int = 0
    starts: int = 0
    seconds: float = 0.0

    @property
    def unknown_at_most(self) -> int:
        """What may be unknown: a stepper that dies leaves requests to its host, and the next one may ask them anew."""
        return self.in_flight + CONCURRENCY * self.kills["stepper"] + LEASE * self.kills["disk"]


@dataclass(kw_only=True)
class Campaign:
    """A run directory with its ledgers, and how its command is given.

    Attributes:
        folder: holds both.
        counter: what counts the calls.
        start: gives the command; True to go on with the run.
        patience: seconds without a call after which it is taken for stuck.
        until: when it is left alone, by the monotonic clock.
    """

    folder: Path
    counter: Counter
    start: Callable[[Campaign, bool], Process]
    patience: float = 180.0
    until: float = float("inf")
    toll: Toll = field(default_factory=Toll)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def disk(self) -> Path:
        """Where ledgers lie."""
        return self.folder / "disk"

    @property
    def ledger(self) -> Path | None:
        return next(iter(sorted(self.disk.glob("*.sqlite"))), None)

    def account(self) -> Account:
        assert self.ledger is not None
        return read_account(self.ledger)

    def go(self, plan: Sequence[Strike] = ()) -> int:
        """Give the command until it completes, and kill what the plan says on the way; the last exit code."""
        begun, process = time.monotonic(), self._started()
        for strike in plan:
            process = self._reach(process, self.counter.count + strike.calls)
            if process.ended() is not None or time.monotonic() > self.until:
                break
            time.sleep(strike.seconds)
            if process.kill(strike.kind):
                self.toll.kills[strike.kind] += 1
                self._count_losses(strike.kind)
        code = self._end(process)
        for _ in range(FAILURES_ALLOWED):  # what was struck too often waits for a resume
            if code == 0:
                break
            code = self._end(self._started())
        self.toll.seconds += time.monotonic() - begun
        return code

    def chains(self) -> dict[tuple[str, str, int], list[tuple[str, object]]]:
        """What attacks asked and were answered, by chain, in the order of their steps."""
        assert self.ledger is not None
        found: dict[tuple[str, str, int], list[tuple[str, object]]] = {}
        rows = [r for r in read_rows(self.ledger) if r.state == "answered" and r.key.purpose == "attack"]
        for row in sorted(rows, key=lambda row: row.key.step):
            answer = row.answer.tolist() if hasattr(row.answer, "tolist") else row.answer
            found.setdefault((row.key.cell, row.key.image_id, row.key.restart), []).append((row.candidate, answer))
        return found

    def results(self) -> list[dict[str, Any]]:
        """Rows of results.parquet that must be equal."""
        rows = pq.read_table(self.run / "results.parquet").to_pylist()
        return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]

    def _started(self) -> Process:
        self.toll.starts += 1
        return self.start(self, (self.run / "spec.yaml").exists())

    def _reach(self, process: Process, count: int) -> Process:
        """Wait for so many calls; where the campaign ends before, it is started again unless it is complete."""
        deadline, failures = time.monotonic() + self.patience, 0
        while self.counter.count < count:
            code = process.ended()
            if code == 0 or failures == FAILURES_ALLOWED:
                break
            if code is not None:
                failures += 1
                process = self._started()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count - self.counter.count} calls are missing after {self.patience} s")
            time.sleep(0.002)
        return process

    def _end(self, process: Process) -> int:
        deadline = time.monotonic() + 2 * self.patience
        while (code := process.ended()) is None:
            if time.monotonic() > deadline:
                process.kill("node")
                raise TimeoutError("the campaign does not end")
            time.sleep(0.01)
        return code

    def _count_losses(self, kind: Kind) -> None:
        if kind == "disk":
            shutil.rmtree(self.disk, ignore_errors=True)
        elif kind != "stepper" and self.ledger is not None:
            self.toll.in_flight += self.account().in_flight


def broken_promises(campaign: Campaign, calls: int, budget: int, whole: Campaign | None = None) -> list[str]:
    """What does not hold of a metered campaign that is through; nothing is what must come back.

    Args:
        campaign: the campaign.
        calls: what the target counted for it.
        budget: of the target.
        whole: the same campaign, uninterrupted.
    """
    account, toll = campaign.account(), campaign.toll
    told = f"answered {account.answered}, unknown {account.unknown}, counter {calls}, budget {budget}"
    promises = {
        f"answered <= counter: {told}": account.answered <= calls,
        f"counter <= answered + unknown: {told}": calls <= account.answered + account.unknown,
        f"answered + unknown <= budget: {told}": account.spent <= budget,
        f"unknown <= {toll.unknown_at_most}: {told}": account.unknown <= toll.unknown_at_most,
        f"nothing is under way any more: {account.in_flight}": account.in_flight == 0,
        "nothing was killed, so nothing is unknown": bool(toll.kills) or account.unknown == 0,
    }
    if whole is not None:
        promises["results equal"] = campaign.results() == whole.results()
        ours, theirs = campaign.chains(), whole.chains()
        prefixes = all(theirs.get(chain, [])[: len(rows)] == rows for chain, rows in ours.items())
        # a lost disk takes the last answers of chains with it, and those that are done are not asked again
        promises["sequences equal, or prefixes where a disk was lost"] = (
            prefixes if toll.kills["disk"] else ours == theirs
        )
    return [promise for promise, kept in promises.items() if not kept]


def broken_owned_promises(campaign: Campaign, whole: Campaign, dry: Campaign, budget: int) -> list[str]:
    """What does not hold of a campaign against a model of our own that is through; nothing is what must come back.

    Args:
        campaign: the campaign.
        whole: the same campaign, uninterrupted.
        dry: one that asked what every start asks of a model, and nothing else.
        budget: of a chain.
    """
    probed = set(dry.counter.hashes())
    asked, once = (Multiset(h for h in c.counter.hashes() if h not in probed) for c in (campaign, whole))
    toll, images = campaign.toll, len({row["image_id"] for row in whole.results()})
    begun_anew = toll.kills.total() - toll.kills["stepper"]
    allowed = toll.kills.total() * OWNED_CHAINS * (budget + SCORING) + begun_anew * images * BASELINES
    excess = asked.total() - once.total()
    promises = {
        "results equal": campaign.results() == whole.results(),
        "nothing was asked that the uninterrupted run had not asked": set(asked) == set(once),
        "all that the uninterrupted run had asked was asked": asked >= once,
        f"asked again: {excess}, at most {allowed}": excess <= allowed,
        "the log is whole": len(campaign.counter.hashes()) == campaign.counter.count,
    }
    return [promise for promise, kept in promises.items() if not kept]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a campaign: its ledgers lie in the folder, and it finds the tests' modules."""
    kept = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    paths = [str(ROOT / "tests"), str(ROOT), str(ROOT / "cli"), str(ROOT / "cluster"), os.environ.get("PYTHONPATH", "")]
    return kept | QUIET | {LEDGERS_VARIABLE: str(folder / "disk"), "PYTHONPATH": os.pathsep.join(paths)} | more


def words_of(campaign: Campaign, going_on: bool, *first: str) -> list[str]:
    """The command's words: the spec, or the run to go on with."""
    if going_on:  # what has its say in the spec needs not be said again
        return ["--resume", str(campaign.run), *(word for word in first if word == "--in-process")]
    return [str(campaign.folder.parent / "spec.json"), "--out", str(campaign.run), *first]


def on_ray(*first: str, **more: str) -> Callable[[Campaign, bool], Process]:
    """Campaigns on a local Ray of their own."""

    def start(campaign: Campaign, going_on: bool) -> Process:
        campaign.folder.mkdir(parents=True, exist_ok=True)
        words = words_of(campaign, going_on, *first)
        return Command(words, environment(campaign.folder, **more), campaign.folder / "log")

    return start
