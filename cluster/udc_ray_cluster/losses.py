"""What came back: an answer, an error of the unit's own, or nothing, because something on the way was lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from udc_ray.errors import UserError

GET_SECONDS = 60.0
"""How long a result that was announced may take to arrive; its node may be gone since."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Work that did not come back; it is done again.

    Attributes:
        reason: why, in a line.
        asked: queries that had been answered and will be asked again.
        host: whether the host is given up: it is dead, or nobody can say.
        node_ended: its node went, announced or not, so nobody is to blame.
        recalled: it was taken back before it was begun.
        told: a stepper said it, which lives.
    """

    reason: str
    asked: int = 0
    host: bool = False
    node_ended: bool = False
    recalled: bool = False
    told: bool = False


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The call raised.

    Attributes:
        error: what it raised.
    """

    error: Exception

    @property
    def line(self) -> str:
        """Name and first line of the error."""
        return f"{type(self.error).__name__}: {first_line(self.error)}"


def fetch(ref: Any, timeout_s: float = GET_SECONDS) -> Any:
    """The answer to a call, or `Failed`, or `Lost`; never an exception.

    Args:
        ref: of a call that is said to have ended.
        timeout_s: how long to wait for its bytes.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except exceptions.RayTaskError as error:
        cause = error.cause
        while isinstance(cause, exceptions.RayTaskError):  # of a task within the task
            cause = cause.cause
        # a stepping task that lost something raises Ray's own error as its cause
        return _lost(cause) if isinstance(cause, exceptions.RayError) else Failed(error=cause or error)
    except exceptions.RayError as error:
        return _lost(error)


def ask(ref: Any, timeout_s: float | None = None) -> Any:
    """The answer to a call that has not ended yet, raising what it raised.

    Raises:
        UserError: the host raised one.
        LookupError: the answer is lost.
    """
    answer = fetch(ref, GET_SECONDS if timeout_s is None else timeout_s)
    if isinstance(answer, Failed):
        raise answer.error
    if isinstance(answer, Lost):
        raise LookupError(answer.reason)
    return answer


def node_ended(error: exceptions.RayActorError) -> bool:
    """Whether an actor died with its node; Ray says so in words only, unless the node was drained."""
    return bool(error.preempted) or "its node has died" in str(error)


def could_not_begin(reason: str) -> UserError:
    """What a user is told when no host stays alive."""
    return UserError(
        f"a host ended before it could begin: {reason}",
        "too little memory, or a library that cannot be loaded on the host",
        "give fewer hosts (--set run.hosts=1), or --in-process to see the failure here",
    )


def first_line(error: BaseException) -> str:
    """First line of what an error says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else ""


def _lost(error: exceptions.RayError) -> Lost:
    if isinstance(error, exceptions.TaskCancelledError):
        return Lost(reason="taken back", recalled=True)
    if isinstance(error, exceptions.RayActorError):
        return Lost(reason=_reason(error), host=True, node_ended=node_ended(error))
    # NodeDied, ObjectLost, OwnerDied, GetTimeout, WorkerCrashed, ...: an object or a task went, the host may live
    return Lost(reason=_reason(error))


def _reason(error: exceptions.RayError) -> str:
    """The line of Ray's message that says why: the first sentence that is not about which call it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, exceptions.RayActorError) and error.actor_init_failed and lines:
        return lines[-1]  # what its constructor raised
    sentences = [line for line in lines[1:] if " " in line and line[0].isupper()]
    return f"{type(error).__name__}: {(sentences or lines or [''])[0]}"
