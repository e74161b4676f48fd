"""The single door to where work is done: in this process, or on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from udc_ray.errors import Interrupted

if TYPE_CHECKING:  # whoever drives simulated hosts needs no torch
    from torch import Tensor

    from udc_ray.host import Host
    from udc_ray.plan import Unit
    from udc_ray.probe import Resolved
    from udc_ray.results import UnitResult
    from udc_ray.views import View

Stop = Callable[[], bool]
"""Asked before a unit is begun; once it says yes no unit is begun any more, and what is begun is ended."""


def never() -> bool:
    """Nothing stops the run early."""
    return False


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

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """Probe what must be known of the hosts before the run."""
        ...

    def configure(self, resolved: Resolved) -> None:
        """Make every host work as was resolved."""
        ...

    def map_unordered(self, units: Iterable[Unit], stop: Stop = never) -> Iterator[Outcome]:
        """Yield the outcome of every unit as it ends; a failed unit yields its error.

        Args:
            units: all that is to be done; a pool of several hosts reads them at once, to share them out well.
            stop: see `Stop`.
        """
        ...

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """Pictures of some attacked images in one cell, for the report, by image id."""
        ...

    def describe(self) -> dict[str, object]:
        """Devices and threads of the hosts, for environment.json."""
        ...

    def close(self) -> None:
        """Let go of the hosts."""
        ...


class InProcessPool:
    """One host in this process: the reference that every other pool must equal."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """See `WorkPool`."""
        return self.host.resolve(shapes)

    def configure(self, resolved: Resolved) -> None:
        """See `WorkPool`."""
        self.host.configure(resolved)

    def map_unordered(self, units: Iterable[Unit], stop: Stop = never) -> Iterator[Outcome]:
        """Run one unit after the other."""
        for unit in units:
            if stop():
                return
            started = time.monotonic()
            try:
                result, error = self.host.run(unit), None
            except Interrupted:
                raise
            except Exception as failure:  # a unit that fails is recorded and skipped, whatever failed in it
                result, error = None, f"{type(failure).__name__}: {failure}"
            seconds = time.monotonic() - started
            yield Outcome(unit=unit, result=result, error=error, host=self.host.name, seconds=seconds)

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """See `WorkPool`."""
        return self.host.views(cell, x_adv)

    def describe(self) -> dict[str, object]:
        """See `WorkPool`."""
        return {self.host.name: self.host.describe()}

    def close(self) -> None:
        """See `WorkPool`."""
