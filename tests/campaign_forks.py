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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from campaign_chaos import (
    CONCURRENCY,
    Campaign,
    Kind,
    Process,
    broken_owned_promises,
    broken_promises,
    command,
    environment,
    spec,
    strikes,
    words_of,
)
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


def forked(*first: str, **more: str) -> Callable[[Campaign, bool], Process]:
    """Campaigns in forks of this process."""

    def start(campaign: Campaign, going_on: bool) -> Process:
        campaign.folder.mkdir(parents=True, exist_ok=True)
        words = words_of(campaign, going_on, "--in-process", *first)

        def work() -> int:
            os.environ.update(environment(campaign.folder, **more))
            descriptor = os.open(campaign.folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            return command(words)

        return Fork(work)

    return start


def metered(folder: Path, plan: Plan) -> dict[str, Any]:
    """A campaign against the counting target behind HTTP."""
    with CountingTarget(folder / "target", plan.seconds) as target:
        words = ("--target", target.url, "--set", f"model.budget={plan.budget}")
        start = forked(*words, "--set", f"model.concurrency={CONCURRENCY}")
        whole, killed = (Campaign(folder=folder / name, counter=target, start=start) for name in ("whole", "killed"))
        broken: list[str] = []
        for campaign, blows in ((whole, []), (killed, strikes(plan.kills, plan.seed, plan.most))):
            before, code = target.count, campaign.go(blows)
            calls = target.count - before
            broken += [f"exit code {code}"] * (code != 0) + broken_promises(campaign, calls, plan.budget, whole)
        return {"broken": broken, "kills": killed.toll.kills.total(), "unknown": killed.account().unknown}


def owned(folder: Path, plan: Plan) -> dict[str, Any]:
    """A campaign against a counting model of our own."""
    broken: list[str] = []
    campaigns: list[Campaign] = []
    for name, blows in (("whole", []), ("killed", strikes(plan.kills, plan.seed, plan.most))):
        counts = {FOLDER_VARIABLE: str(folder / f"{name}-count"), SECONDS_VARIABLE: str(plan.seconds)}
        start = forked("--model", "counting_target:make", **counts)
        campaigns.append(Campaign(folder=folder / name, counter=Counter(folder / f"{name}-count"), start=start))
        code = campaigns[-1].go(blows)
        broken += [f"exit code {code}"] * (code != 0)
        broken += broken_owned_promises(campaigns[-1], campaigns[0], plan.queries)
    return {"broken": broken, "kills": campaigns[-1].toll.kills.total(), "counter": campaigns[-1].counter.count}


if __name__ == "__main__":
    given = Path(sys.argv[1])
    wanted = Plan(**json.loads(sys.argv[2]))
    (given / "spec.json").write_text(json.dumps(spec(wanted.attacks, wanted.queries, images=1)))
    if wanted.target == "late":
        host.Ledger = WritesTooLate  # type: ignore[misc]  # the planted defect
    found = owned(given, wanted) if wanted.target == "owned" else metered(given, wanted)
    sys.stdout.write(json.dumps(found))
