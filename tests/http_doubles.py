"""Doubles for the tests of HTTP targets."""

from __future__ import annotations

import socket
from typing import Any

from udc_ray.errors import UdcRayError


def free_port() -> int:
    """A TCP port of loopback at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Spent(UdcRayError):
    """The budget leaves nothing."""


class Book:
    """Writes down what a bill is told."""

    def __init__(self, budget: int = 10**6) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.left = budget

    def reserve(self) -> int:
        if self.left == 0:
            raise Spent
        self.left -= 1
        self.lines.append(("reserve",))
        return len(self.lines)

    def answered(self, ticket: int, answer: Any) -> None:
        self.lines.append(("answered", answer))

    def lost(self, ticket: int, reason: str) -> None:
        self.lines.append(("lost", reason))

    def refused(self, ticket: int, reason: str) -> None:
        self.lines.append(("refused", reason))

    def not_sent(self, ticket: int, reason: str) -> None:
        self.left += 1
        self.lines.append(("not sent", reason))

    @property
    def ends(self) -> list[str]:
        return [line[0] for line in self.lines if line[0] != "reserve"]
