"""What Prometheus is told of a run, by way of Ray's own metrics agent.

Ray puts ``ray_`` before every name, and ``_total`` behind those of counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ray.util.metrics import Counter, Gauge

if TYPE_CHECKING:
    from udc_ray.pool import Outcome
    from udc_ray.run import Listener
    from udc_ray_cluster.seats import Seat
    from udc_ray_cluster.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        kind: what Prometheus takes it for.
        text: what it says.
        tags: keys of its labels.
    """

    kind: Literal["counter", "gauge"]
    text: str
    tags: tuple[str, ...] = ()

    def prometheus(self, name: str) -> str:
        """The name under which it is found in Prometheus."""
        return f"ray_{name}_total" if self.kind == "counter" else f"ray_{name}"


METRICS = {
    "udc_ray_queries": Metric(kind="counter", text="Queries that attacks asked for, in units that ended."),
    "udc_ray_slots_useful_ratio": Metric(kind="gauge", text="Batch slots that held a wanted image, of all slots."),
    "udc_ray_host_busy_ratio": Metric(
        kind="gauge", text="Share of the time in which a host was at work.", tags=("host",)
    ),
    "udc_ray_retries": Metric(kind="counter", text="Executions of units that were lost and done again."),
    "udc_ray_units_left": Metric(kind="gauge", text="Units that have not ended."),
    "udc_ray_hosts": Metric(kind="gauge", text="Hosts, ready or asked for and not there yet.", tags=("state",)),
}
"""Every metric by its name; dashboards are checked against this table."""


class Meters:
    """Ray's objects for some metrics of the table.

    Args:
        names: which.
    """

    def __init__(self, *names: str) -> None:
        makers: dict[str, Any] = {"counter": Counter, "gauge": Gauge}
        self._made = {
            n: makers[METRICS[n].kind](n, description=METRICS[n].text, tag_keys=METRICS[n].tags) for n in names
        }

    def add(self, name: str, value: float) -> None:
        """Raise a counter; nothing happens for 0."""
        if value > 0:
            self._made[name].inc(value)

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        self._made[name].set(value, tags=tags)


class PoolMetrics:
    """What a pool knows of its hosts."""

    def __init__(self) -> None:
        self._meters = Meters(
            "udc_ray_slots_useful_ratio", "udc_ray_host_busy_ratio", "udc_ray_retries", "udc_ray_hosts"
        )

    def show(self, ready: Sequence[Seat], pending: int, watch: Watch) -> None:
        """Tell how the hosts do."""
        self._meters.set("udc_ray_hosts", len(ready), state="ready")
        self._meters.set("udc_ray_hosts", pending, state="pending")
        for seat in ready:
            self._meters.set("udc_ray_host_busy_ratio", watch.busy(seat.name), host=seat.name)
        useful = watch.useful_share()
        if useful is not None:
            self._meters.set("udc_ray_slots_useful_ratio", useful)

    def gone(self, name: str) -> None:
        """A host is gone."""
        self._meters.set("udc_ray_host_busy_ratio", 0.0, host=name)

    def retried(self) -> None:
        """An execution was lost."""
        self._meters.add("udc_ray_retries", 1)


class Metered:
    """A listener that also tells Prometheus how far the run is.

    Args:
        inner: who else is told.
    """

    def __init__(self, inner: Listener) -> None:
        self._inner, self._left = inner, 0
        self._meters = Meters("udc_ray_queries", "udc_ray_units_left")

    def note(self, text: str) -> None:
        """See `Listener`."""
        self._inner.note(text)

    def begin(self, units: int) -> None:
        """See `Listener`."""
        self._left = units
        self._meters.set("udc_ray_units_left", units)
        self._inner.begin(units)

    def unit(self, outcome: Outcome) -> None:
        """See `Listener`."""
        self._left -= 1
        self._meters.set("udc_ray_units_left", self._left)
        self._meters.add("udc_ray_queries", outcome.result.queries if outcome.result is not None else 0)
        self._inner.unit(outcome)

    def end(self) -> None:
        """See `Listener`."""
        self._inner.end()
