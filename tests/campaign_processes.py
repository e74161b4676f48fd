"""A campaign as a process with others below it, and how some of them are killed; found by parentage, never by name.

As a program (``python campaign_processes.py WORDS``) it is ``udc-ray campaign WORDS``, less the probe of its speed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

import psutil

Kind = Literal["stepper", "host", "driver", "node", "disk"]
"""What dies. ``node``: everything at once. ``disk``: everything, and the folder of ledgers is deleted."""
KINDS: tuple[Kind, ...] = ("stepper", "host", "driver", "node", "disk")
ACTORS = {"stepper": "ray::StepperActor", "host": "ray::HostActor"}


class Process(Protocol):
    """A campaign that was started."""

    pid: int

    def ended(self) -> int | None:
        """Its exit code, once it has ended."""
        ...

    def kill(self, kind: Kind) -> bool:
        """Kill some of it; False where there was nothing of the kind."""
        ...


class Command:
    """A campaign as a command of its own, with local Ray below it.

    Args:
        words: of the command.
        environment: beside what the shell gives.
        log: where its output goes.
    """

    def __init__(self, words: Sequence[str], environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *words],
                env=environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._known: dict[int, psutil.Process] = {}

    def ended(self) -> int | None:
        """See `Process`."""
        return self._process.poll()

    def kill(self, kind: Kind) -> bool:
        """See `Process`."""
        below = self.below()
        if kind in ACTORS:
            victims = [p for p in below if _words(p).startswith(ACTORS[kind])]
        else:
            victims = [psutil.Process(self.pid), *(below if kind in {"node", "disk"} else ())]
        for victim in victims:
            _kill(victim)
        if kind not in ACTORS:
            self._process.wait()
            self.mourn()
        return bool(victims)

    def below(self) -> list[psutil.Process]:
        """All that the command has started, and what that has started; remembered, as orphans change their parent."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._known |= {p.pid: p for p in found}
        return [p for p in found if p.is_running()]

    def mourn(self) -> None:
        """Wait until hosts and steppers have noticed that their driver is dead; what else stays is ended."""
        deadline = time.monotonic() + 20
        actors = [p for p in self._known.values() if _words(p).startswith(tuple(ACTORS.values()))]
        while any(_alive(p) for p in actors) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in self._known.values():
            _kill(process)


def command(words: Sequence[str]) -> int:
    """``udc-ray campaign WORDS`` in this process, without the ten seconds in which a model is measured."""
    from udc_ray import run
    from udc_ray_cli.main import main

    run.PROBE_SECONDS = 0.0
    sys.argv = ["udc-ray", "campaign", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
    return 0


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    """By its identity: psutil looks that the number is still that of the process it saw."""
    with suppress(psutil.Error):
        process.kill()


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
