"""Asking until there is an answer: bounded attempts, each of them charged, with growing pauses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from udc_ray import rng
from udc_ray.metered.failures import RESUME, AttemptFailure, LostAnswer, NotSent, Refused, TargetError

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Bill(Protocol[T_contra]):
    """Who is charged for the attempts at one candidate; the ledger's account of it, seen from here."""

    def reserve(self) -> Any:
        """Charge one attempt before it is sent and return what names it; raises where the budget is spent."""
        ...

    def answered(self, ticket: Any, answer: T_contra) -> None:
        """The attempt was answered: it stays charged."""
        ...

    def lost(self, ticket: Any, reason: str) -> None:
        """The attempt may have been evaluated: it stays charged."""
        ...

    def refused(self, ticket: Any, reason: str) -> None:
        """The attempt was refused (429, 503): free only where the target's entry says so."""
        ...

    def not_sent(self, ticket: Any, reason: str) -> None:
        """Nothing was sent: the charge is taken back."""
        ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long one candidate is tried.

    Attributes:
        attempts: requests for one candidate, at most.
        first_pause_s: pause after the first failure; each further one is twice as long.
        longest_pause_s: pause at most; a target that asks for a longer one ends the run.
        jitter: share of a pause that is drawn, so that many clients do not come back at once.
    """

    attempts: int = 8
    first_pause_s: float = 1.0
    longest_pause_s: float = 120.0
    jitter: float = 0.5

    def pause(self, failures: int, draw: float, retry_after_s: float | None = None) -> float:
        """Seconds to wait.

        Args:
            failures: failures of this candidate so far, at least 1.
            draw: in [0, 1).
            retry_after_s: seconds that the target asked for; the pause is never shorter.
        """
        # the exponent is bounded, as 2.0**1024 is no float
        grown = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(failures - 1, 64))
        return max(grown * (1 - self.jitter * draw), (retry_after_s or 0.0) * (1 + 0.1 * draw))


class Circuit:
    """Counts failures in a row, over all candidates and threads; opens after `limit` of them.

    Refusals do not count: a target that refuses is there, and each candidate bounds them for itself.

    Args:
        limit: failures in a row after which the target is taken for down.
    """

    def __init__(self, limit: int = 20) -> None:
        self.limit, self._in_a_row = limit, 0
        self._open: TargetError | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise where the circuit is open.

        Raises:
            TargetError: why.
        """
        if self._open is not None:
            raise type(self._open)(self._open.what, self._open.cause, self._open.change)

    def open(self, why: TargetError) -> None:
        """Let no request of any candidate through any more; the first reason is kept."""
        with self._lock:
            self._open = self._open or why

    def worked(self) -> None:
        """An answer came."""
        with self._lock:
            self._in_a_row = 0

    def failed(self, reason: str) -> None:
        """An attempt failed."""
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row < self.limit or self._open is not None:
                return
            self._open = TargetError(
                f"the target failed {self._in_a_row} times in a row, at last: {reason}",
                "it is down, overloaded, or does not want these requests",
                f"look after it; {RESUME}",
            )


@dataclass(frozen=True, kw_only=True)
class Trying:
    """What the attempts of all candidates share.

    Attributes:
        slot: makes the wait for a place among the requests under way (`Turnstile.slot`).
        circuit: ends the run where the target is down.
        patience: bounds and pauses.
        sleep: waits; raises where the run is to stop.
    """

    slot: Callable[[], AbstractContextManager[None]]
    circuit: Circuit
    patience: Patience = Patience()
    sleep: Callable[[float], None] = time.sleep


def keyed_draws(seed: int, image_id: str, query: int) -> Callable[[int], float]:
    """Draws in [0, 1) for the pauses of one candidate, by attempt; independent of time and threads."""

    def draw(attempt: int) -> float:
        return float(rng.generator(seed, image_id, "control/retry", sample=query, step=attempt).random())

    return draw


def attempts(send: Callable[[], T], bill: Bill[T], trying: Trying, draw: Callable[[int], float]) -> T:
    """Ask for one candidate until it is answered.

    An attempt is charged after its place among the requests under way is free and before it is sent, so
    that what is charged and open is what is under way.

    Args:
        send: one attempt (`Client.send` on the candidate).
        bill: is told of each attempt and its end.
        trying: shared by all candidates.
        draw: keyed draws for the pauses, by attempt.

    Raises:
        TargetError: what no attempt mends, or too many failures; the run can be resumed.
    """
    try:
        attempt = 0
        while True:
            attempt += 1
            try:
                return _once(send, bill, trying)
            except AttemptFailure as failure:
                trying.sleep(_pause(trying.patience, failure, attempt, draw))
    except TargetError as error:
        trying.circuit.open(error)
        raise


def _pause(patience: Patience, failure: AttemptFailure, attempt: int, draw: Callable[[int], float]) -> float:
    """Seconds until the next attempt; raises where there is none."""
    if attempt >= patience.attempts:
        raise _gave_up(attempt, failure) from failure
    asked = failure.retry_after_s if isinstance(failure, Refused) else None
    if asked is not None and asked > patience.longest_pause_s:
        raise _too_long(asked, patience.longest_pause_s) from failure
    return patience.pause(attempt, draw(attempt), asked)


def _once(send: Callable[[], T], bill: Bill[T], trying: Trying) -> T:
    """One attempt: place, charge, send, settle."""
    with trying.slot():
        ticket = bill.reserve()
        try:
            answer = send()
        except Refused as refusal:
            bill.refused(ticket, str(refusal))
            raise
        except NotSent as failure:
            bill.not_sent(ticket, str(failure))
            trying.circuit.failed(str(failure))
            raise
        except LostAnswer as failure:
            bill.lost(ticket, str(failure))
            trying.circuit.failed(str(failure))
            raise
        except BaseException as error:  # Ctrl-C too: it was reserved, and it may have been sent
            bill.lost(ticket, f"{type(error).__name__}: {error}")
            raise
        bill.answered(ticket, answer)
        trying.circuit.worked()
        return answer


def _gave_up(count: int, failure: AttemptFailure) -> TargetError:
    return TargetError(
        f"one image was sent to the target {count} times without an answer, at last: {failure}",
        "it is down, overloaded, or fails on this image",
        f"look after it; {RESUME}",
    )


def _too_long(asked: float, longest: float) -> TargetError:
    return TargetError(
        f"the target asks to be left alone for {asked:g} s; {longest:g} s are the most that the run waits",
        "a quota that is spent for this hour or day",
        f"come back later; {RESUME}",
    )
