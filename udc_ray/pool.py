"""The single door to where work is done: in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from udc_ray.plan import Unit
from udc_ray.results import UnitResult


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a unit: a result, or an error text."""

    unit: Unit
    result: UnitResult | None = None
    error: str | None = None
    host: str = ""
    seconds: float = 0.0
    retries: int = 0
    queries_reexecuted: int = 0


class WorkPool(Protocol):
    """Runs units anywhere, in any order; a bounded number is in flight."""

    def map_unordered(self, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Yield the outcome of every unit as it ends; a failed unit yields its error."""
        ...

    def describe(self) -> dict[str, object]:
        """Devices, threads, versions and probes of the hosts, for environment.json."""
        ...

    def close(self) -> None:
        """Let go of the hosts."""
        ...
