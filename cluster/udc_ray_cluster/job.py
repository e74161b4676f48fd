"""The driver of a submitted job: ``python -m udc_ray_cluster.job SUBMISSION_ID`` in its working directory.

It runs on the cluster, tells the client by events how it goes, and leaves an exit event whatever
becomes of it; a job that ends without one has lost its driver, and is submitted again.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from udc_ray.doctor import Examination
from udc_ray.environment import versions
from udc_ray.errors import Interrupted
from udc_ray.places import with_places
from udc_ray.run import DryRun, Settings
from udc_ray.spec import parse_spec
from udc_ray.trouble import explain
from udc_ray_cluster.doctor import examine_cluster
from udc_ray_cluster.driver import evaluate_here
from udc_ray_cluster.events import Teller
from udc_ray_cluster.request import Request, read_request
from udc_ray_cluster.session import session
from udc_ray_cluster.shipping import settle

USER_ERROR, DEFECT = 2, 1
LOCK_PATIENCE_SECONDS = 90.0
"""A driver that was lost may have left its lock, which is free after a minute."""

Command = Callable[[Request, str, Teller], None]


def main() -> int:
    """Carry out the request that lies in the working directory; returns the exit code."""
    signal.signal(signal.SIGTERM, _stop)
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # what a user's own model prints is no event
    teller = Teller(events)
    code, error = DEFECT, None
    try:
        code, error = _carry_out(sys.argv[1], teller)
    except Exception:  # a defect: its traceback belongs into the log
        traceback.print_exc()
    finally:
        teller.close()
        teller.tell("exit", code=code, error=error)
    return code


def _carry_out(submission_id: str, teller: Teller) -> tuple[int, tuple[str, str, str] | None]:
    teller.tell("hello", versions=versions(), submission_id=submission_id)
    try:
        request = read_request(Path.cwd())
        COMMANDS[request.command](request, submission_id, teller)
    except Interrupted as stop:
        return 128 + stop.signal_number, None
    except Exception as error:  # what a user can mend is told as a message, the rest is raised again
        explained = explain(error)
        if explained is None:
            raise
        return USER_ERROR, (explained.what, explained.cause, explained.change)
    return 0, None


def _evaluate(request: Request, submission_id: str, teller: Teller) -> None:
    with session(address="auto"):
        root = request.root()
        spec = parse_spec(request.spec) if request.spec is not None else None
        if spec is not None:
            spec = with_places(spec, lambda path: settle(path, Path.cwd(), root))
        settings = Settings(
            out=request.resume or request.out,
            arguments=request.arguments,
            max_hours=request.max_hours,
            retry_failed=request.resume is not None,
            patience=LOCK_PATIENCE_SECONDS,
            job=submission_id,
            **request.options,
        )
        try:
            finished = evaluate_here(spec, teller, settings, root).to_json()
        except DryRun:
            finished = None
    teller.tell("report", finished=finished)


def _doctor(request: Request, submission_id: str, teller: Teller) -> None:
    with session(address="auto"):
        found = examine_cluster(Examination(out=request.out or request.root(), **request.options))
    teller.tell("report", findings=[asdict(finding) for finding in found])


COMMANDS: dict[str, Command] = {"evaluate": _evaluate, "campaign": _evaluate, "doctor": _doctor}
"""Every long command that can be submitted."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
