"""How fast a target is asked: a rate that is never passed, and a number under way that the target decides.

`Pace` is pure: every method takes the time. `Turnstile` adds threads and a clock.
The number under way grows by one after as many answers as are allowed at once, and falls to 0.8 of
itself at an episode of refusals (429, 503); further refusals within the cool-down belong to the same
episode (additive increase, multiplicative decrease; Chiu and Jain, 1989).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from udc_ray.metered.endpoint import Endpoint
from udc_ray.metered.failures import Refused

LOOK_UP_S = 0.5
"""Seconds after which a waiting thread looks whether it is still wanted."""

Outcome = Literal["answered", "refused", "failed"]


@dataclass(kw_only=True)
class TokenBucket:
    """A rate: a request takes one token, tokens flow in evenly (Turner, 1986).

    A window of T seconds holds at most rate * T + capacity requests, wherever it begins.

    Attributes:
        rate: tokens per second.
        capacity: tokens at most; what a thread that wakes late may catch up with.
    """

    rate: float
    capacity: float
    _tokens: float = 1.0
    _at: float = -math.inf

    def _fill(self, now: float) -> None:
        if now > self._at:
            grown = self._tokens + (now - self._at) * self.rate if self._at > -math.inf else self._tokens
            self._tokens, self._at = min(self.capacity, grown), now

    def wait(self, now: float) -> float:
        """Seconds until there is a token."""
        self._fill(now)
        return max(0.0, (1 - self._tokens) / self.rate)

    def take(self, now: float) -> None:
        """Take a token that is there."""
        self._fill(now)
        self._tokens -= 1


@dataclass(kw_only=True)
class Pace:
    """When the next request may go.

    Attributes:
        concurrency: requests under way at once, at most.
        bucket: bounds the requests per second, or None.
        back_off: what an episode of refusals multiplies the allowed number with.
        cool_down_s: seconds after the start of an episode in which nothing grows and nothing falls again.
        allowed: requests that may be under way now, as a real number; its whole part counts.
        under_way: requests that are.
    """

    concurrency: int
    bucket: TokenBucket | None = None
    back_off: float = 0.8
    cool_down_s: float = 15.0
    allowed: float = 1.0
    under_way: int = 0
    _paused_until: float = -math.inf
    _cool_until: float = -math.inf
    _clean: int = 0

    def wait(self, now: float) -> float:
        """Seconds until the next request may go: 0 is now, infinity is after the next answer."""
        if self.under_way >= math.floor(self.allowed):
            return math.inf
        for_token = 0.0 if self.bucket is None else self.bucket.wait(now)
        return max(0.0, for_token, self._paused_until - now)

    def sent(self, now: float) -> None:
        """A request goes."""
        self.under_way += 1
        if self.bucket is not None:
            self.bucket.take(now)

    def settle(self, now: float, outcome: Outcome, retry_after_s: float | None = None) -> None:
        """A request has come to its end.

        Args:
            now: the time.
            outcome: ``answered``, ``refused``, or ``failed`` in any other way, which says nothing of the pace.
            retry_after_s: seconds that a refusal asks to wait; nobody sends before.
        """
        self.under_way -= 1
        if outcome == "refused":
            self._refused(now, retry_after_s)
        elif outcome == "answered":
            self._answered(now)

    def _refused(self, now: float, retry_after_s: float | None) -> None:
        self._clean = 0
        self._paused_until = max(self._paused_until, now + (retry_after_s or 0.0))
        if now >= self._cool_until:
            self.allowed = max(1.0, self.allowed * self.back_off)
            self._cool_until = now + self.cool_down_s

    def _answered(self, now: float) -> None:
        if now < self._cool_until:
            return
        self._clean += 1
        if self._clean >= math.floor(self.allowed):
            self._clean = 0
            self.allowed = min(float(self.concurrency), self.allowed + 1)


def pace_of(endpoint: Endpoint) -> Pace:
    """The pace that a target's entry asks for; it begins with one request at a time."""
    rate = endpoint.rate
    bucket = None if rate is None else TokenBucket(rate=rate, capacity=max(1.0, rate / 10))
    return Pace(concurrency=endpoint.concurrency, bucket=bucket)


class Turnstile:
    """Lets threads through at a pace.

    Args:
        pace: decides.
        check: raises where nobody is to be let through any more (`Circuit.check`); asked while waiting.
        clock: seconds that never go back.
    """

    def __init__(
        self, pace: Pace, check: Callable[[], None] = lambda: None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.pace, self._check, self._clock = pace, check, clock
        self._changed = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a place, hold it for one request, and learn from how it ends."""
        with self._changed:
            self._check()
            while (seconds := self.pace.wait(self._clock())) > 0:
                self._changed.wait(min(seconds, LOOK_UP_S))
                self._check()
            self.pace.sent(self._clock())
        outcome: Outcome = "failed"
        seconds_asked: float | None = None
        try:
            yield
            outcome = "answered"
        except Refused as refusal:
            outcome, seconds_asked = "refused", refusal.retry_after_s
            raise
        finally:
            with self._changed:
                self.pace.settle(self._clock(), outcome, seconds_asked)
                self._changed.notify_all()
