"""Ctrl-C and SIGTERM: finish what is in flight, keep it, and say how to go on."""

from __future__ import annotations

import signal
from types import FrameType

from udc_ray.errors import Interrupted

DRAIN_SECONDS = 25
"""How long units in flight may take to end after the first signal."""


class Drain:
    """While active, the first signal asks for a drain; a second one, or the deadline, ends at once.

    Attributes:
        signal_number: the signal that was received, or None.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Drain:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it came from signal.signal

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    def raise_if_asked(self) -> None:
        """Raise `Interrupted` when a signal has come."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)
        if number != signal.SIGALRM:
            self.signal_number = number
            signal.alarm(DRAIN_SECONDS)
