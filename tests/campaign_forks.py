"""Campaigns in one process each, forked from this one so that they start at once, and killed.

As a program (``python campaign_forks.py FOLDER PLAN``) it runs one campaign without a kill and one with kills, and
prints what did not hold.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from campaign_chaos import (
    CONCURRENCY,
    OWNED,
    Campaign,
    broken_owned_promises,
    broken_promises,
    environment,
    spec,
    strikes,
    words_of,
)
from campaign_processes import Kind, Process, command
from counting_target import FOLDER_VARIABLE, SECONDS_VARIABLE, Counter, CountingTarget
from ledger_doubles import WritesTooLate

from udc_ray.metered import host


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run, and what happens to it.

    Attributes:
        target: ``late``: metered, with a ledger that writes after sending.
        attacks: entries of the spec.
        queries: budget of a chain.
        kills: what is killed.
        seed: of the moments.
        most: calls between two kills, at most.
        budget: of the metered target.
        seconds: that an evaluation takes.
    """

    target: Literal["metered", "late", "owned"]
    attacks: tuple[dict[str, object], ...]
    queries: int
    kills: tuple[Kind, ...]
    seed: int = 0
    most: int = 12
    budget: int = 1000
    seconds: float = 0.005


class Fork:
    """A campaign in a child of this process, which is its driver, host and stepper.

    Args:
        work: what the child does.
    """

    def __init__(self, work: Callable[[], int]) -> None:
        self.pid, self._code = os.fork(), None
        if self.pid == 0:
            code = 70
            try:
                code = work()
            finally:
                os._exit(code)

    _code: int | None

    def ended(self) -> int | None:
        """See `Process`."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def kill(self, kind: Kind) -> bool:
        """See `Process`."""
        if self.ended() is not None:
            return False
        os.kill(self.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code == -signal.SIGKILL


class Here:
    """A campaign in this process, through when it is made; what it has loaded, no child need load again.

    Args:
        work: the campaign.
    """

    def __init__(self, work: Callable[[], int]) -> None:
        self.pid, self._code = os.getpid(), work()

    def ended(self) -> int:
        """See `Process`."""
        return self._code

    def kill(self, kind: Kind) -> bool:
        """See `Process`."""
        return False


def starting(kind: type[Here] | type[Fork], *first: str, **more: str) -> Callable[[Campaign, bool], Process]:
    """Campaigns of a kind.

    Args:
        kind: where they run.
        first: words of the command that begins one.
        more: of its environment.
    """

    def start(campaign: Campaign, going_on: bool) -> Process:
        campaign.folder.mkdir(parents=True, exist_ok=True)
        words = words_of(campaign, going_on, "--in-process", *first)

        def work() -> int:
            os.environ.update(environment(campaign.folder, **more))
            with (campaign.folder / "log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                return command(words)

        return kind(work)

    return start


def metered(folder: Path, plan: Plan) -> dict[str, Any]:
    """A campaign against the counting target behind HTTP."""
    with CountingTarget(folder / "target", plan.seconds) as target:
        words = ("--target", target.url, "--set", f"model.budget={plan.budget}")
        whole, killed = (
            Campaign(
                folder=folder / name,
                counter=target,
                start=starting(kind, *words, "--set", f"model.concurrency={CONCURRENCY}"),
            )
            for name, kind in (("whole", Here), ("killed", Fork))
        )
        broken: list[str] = []
        for campaign, blows in ((whole, []), (killed, strikes(plan.kills, plan.seed, plan.most))):
            before, code = target.count, campaign.go(blows)
            calls = target.count - before
            broken += [f"exit code {code}"] * (code != 0) + broken_promises(campaign, calls, plan.budget, whole)
        return {"broken": broken, "kills": killed.toll.kills.total(), "unknown": killed.account().unknown}


def owned(folder: Path, plan: Plan) -> dict[str, Any]:
    """A campaign against a counting model of our own."""
    broken: list[str] = []
    campaigns: dict[str, Campaign] = {}
    for name, kind, more in (("dry", Here, ["--dry-run"]), ("whole", Here, []), ("killed", Fork, [])):
        counts = {FOLDER_VARIABLE: str(folder / f"{name}-count"), SECONDS_VARIABLE: str(plan.seconds)}
        counter = Counter(folder / f"{name}-count")
        campaign = Campaign(folder=folder / name, counter=counter, start=starting(kind, *OWNED, *more, **counts))
        code = campaign.go(strikes(plan.kills, plan.seed, plan.most) if kind is Fork else [])
        broken += [f"exit code {code}"] * (code != 0)
        campaigns[name] = campaign
    whole, killed = campaigns["whole"], campaigns["killed"]
    for campaign in (whole, killed):
        broken += broken_owned_promises(campaign, whole, campaigns["dry"], plan.queries)
    return {"broken": broken, "kills": killed.toll.kills.total(), "counter": killed.counter.count}


if __name__ == "__main__":
    given = Path(sys.argv[1])
    wanted = Plan(**json.loads(sys.argv[2]))
    (given / "spec.json").write_text(json.dumps(spec(wanted.attacks, wanted.queries, images=1)))
    if wanted.target == "late":
        host.Ledger = WritesTooLate  # type: ignore[misc]  # the planted defect
    found = owned(given, wanted) if wanted.target == "owned" else metered(given, wanted)
    sys.stdout.write(json.dumps(found))
