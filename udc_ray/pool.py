"""The single door to where work is done: in this process (`udc_ray.in_process`), or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # whoever drives simulated hosts needs no torch
    from torch import Tensor

    from udc_ray.plan import Unit
    from udc_ray.probe import Resolved
    from udc_ray.results import UnitResult
    from udc_ray.views import View

Ending = Literal["finish", "cut", "save"]
"""How a run ends early: no unit is begun any more, and what is begun is ended (``finish``); or query chains end where
they are and are scored (``cut``), or only keep their states (``save``)."""
Stop = Callable[[], Ending | None]
"""Asked again and again; None while the run goes on."""
Keep = Callable[["UnitResult"], None]
"""Takes the states of query chains that are under way."""


def never() -> Ending | None:
    """Nothing stops the run early."""
    return None


def keep_nothing(states: UnitResult) -> None:
    """States under way are let go."""


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

    def speeds(self, victims: Sequence[int], seconds: float) -> dict[int, float]:
        """Seconds of one full batch of each victim on a host; see `Host.speeds`."""
        ...

    def map_unordered(self, units: Iterable[Unit], stop: Stop = never, keep: Keep = keep_nothing) -> Iterator[Outcome]:
        """Yield the outcome of every unit as it ends; a failed unit yields its error.

        Args:
            units: all that is to be done; a pool of several hosts reads them at once, to share them out well.
            stop: see `Stop`.
            keep: is given the states of query chains from time to time, so that little is lost with a host.
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
