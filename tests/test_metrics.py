from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from run_doubles import Notes, all_units, make_host, results_of, small_run

from udc_ray.meter import Pulse
from udc_ray.pool import Outcome
from udc_ray_cluster import metrics
from udc_ray_cluster.metrics import METRICS, Metered, Meters, PoolMetrics
from udc_ray_cluster.scheduling import Desk
from udc_ray_cluster.seats import Seat
from udc_ray_cluster.watch import Watch

Said = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """What Ray's metrics were told, without Ray."""
    told: Said = []

    class Fake:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, tag_keys
            assert description

        def inc(self, value: float) -> None:
            assert METRICS[self.name].kind == "counter"
            told.append((self.name, value, {}))

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert METRICS[self.name].kind == "gauge"
            assert tuple(tags) == self.tag_keys
            told.append((self.name, value, tags))

    monkeypatch.setattr(metrics, "Counter", Fake)
    monkeypatch.setattr(metrics, "Gauge", Fake)
    yield told


def seat(name: str) -> Seat:
    return Seat(name=name, actor=None, coming=None, desk=Desk(name=name))


def test_names_are_those_that_prometheus_takes() -> None:
    for name, metric in METRICS.items():
        assert name.startswith("udc_ray_") and name == name.lower()
        assert metric.prometheus(name) == f"ray_{name}" + ("_total" if metric.kind == "counter" else "")


def test_every_metric_is_told_by_someone(said: Said) -> None:
    prepared = small_run(attacks=("square:budget=6",))
    unit = all_units(prepared)[0]
    listener = Metered(Notes())
    listener.begin(2)
    (result,) = results_of(make_host(prepared), [unit])
    listener.unit(Outcome(unit=unit, result=result))
    pool, watch = PoolMetrics(), Watch(600)
    watch.enter("host-0", 0.0)
    watch.heard("host-0", Pulse(busy_s=0.0, slots=4, useful=3.0), 1.0)
    watch.heard("host-0", Pulse(busy_s=1.0, slots=4, useful=3.0), 3.0)
    pool.show([seat("host-0")], 2, watch)
    pool.retried()
    assert {name for name, *_ in said} == set(METRICS)
    values = {(name, *tags.values()): value for name, value, tags in said}
    assert values[("udc_ray_queries",)] == 6 * 3
    assert values[("udc_ray_units_left",)] == 1
    assert values[("udc_ray_hosts", "ready")] == 1
    assert values[("udc_ray_hosts", "pending")] == 2
    assert values[("udc_ray_host_busy_ratio", "host-0")] == 0.5
    assert values[("udc_ray_slots_useful_ratio",)] == 0.75
    assert values[("udc_ray_retries",)] == 1
    pool.gone("host-0")
    assert said[-1] == ("udc_ray_host_busy_ratio", 0.0, {"host": "host-0"})


def test_a_metered_listener_passes_everything_on(said: Said) -> None:
    inner: Any = Notes()
    listener, outcome = Metered(inner), Outcome(unit=all_units(small_run())[0], error="lost")
    listener.note("hello")
    listener.begin(1)
    listener.unit(outcome)
    listener.end()
    assert (inner.notes, inner.begun, inner.outcomes, inner.ended) == (["hello"], [1], [outcome], 1)
    assert not any(name == "udc_ray_queries" for name, *_ in said)  # a failed unit tells of none


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError):
        Meters("udc_ray_something_else")
