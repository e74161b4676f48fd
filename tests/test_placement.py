from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udc_ray.errors import SpecError
from udc_ray.fingerprint import fingerprint
from udc_ray.spec import RunSettings, parse_spec
from udc_ray_cluster.placement import Census, Placement, hosts_to_ask_for, place

SPEC = {"attacks": ["fgsm"]}


def settings(**values: Any) -> RunSettings:
    return parse_spec({**SPEC, "run": values}).run


def test_on_a_machine_of_our_own_every_host_fits() -> None:
    assert place(settings(), "cpu", existing=False) == Placement(least=2, most=2)
    assert place(settings(hosts=3, host_cpus=8), "cpu", existing=False) == Placement(least=3, most=3)
    assert place(settings(hosts=2, max_hosts=6), "cpu", existing=False) == Placement(least=2, most=6)


@pytest.mark.parametrize(
    ("gpus", "values", "least", "most", "share"),
    [
        (1, {}, 1, 1, 1.0),
        (1, {"host_gpus": 0.5}, 2, 2, 0.5),
        (8, {"hosts": 4}, 4, 4, 1.0),
        (8, {"hosts": 16, "host_gpus": 0.25}, 16, 16, 0.25),
        (4, {"hosts": 3, "host_gpus": 2}, 2, 2, 2.0),
        (0, {}, 1, 1, 1.0),  # it waits, and the user is told
    ],
)
def test_gpus_bound_the_hosts_of_one_machine(
    gpus: int, values: dict[str, Any], least: int, most: int, share: float
) -> None:
    placed = place(settings(**values), "cuda", existing=False, gpus=gpus)
    assert (placed.least, placed.most, placed.num_gpus, placed.num_cpus) == (least, most, share, 0)


def test_on_an_existing_cluster_hosts_reserve_what_they_use() -> None:
    placed = place(settings(threads=4), "cuda", existing=True)
    assert placed == Placement(least=2, most=None, num_cpus=4, num_gpus=1.0)
    placed = place(settings(host_cpus=0.5, max_hosts=1, silence_minutes=1), "cpu", existing=True)
    assert placed == Placement(least=1, most=1, num_cpus=0.5, num_gpus=0, silence_s=60)


@pytest.mark.parametrize(
    "values", [{"host_gpus": 1.5}, {"host_gpus": 0}, {"max_hosts": 0}, {"host_cpus": -1}, {"silence_minutes": 0}]
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(values))):
        settings(**values)


@pytest.mark.parametrize(
    ("most", "ready", "pending", "waiting", "asked"),
    [
        (None, 0, 0, 100, 2),  # the first ones
        (None, 0, 2, 100, 0),  # they are not there yet: no more than that is asked of a cluster unseen
        (None, 1, 1, 100, 0),
        (None, 2, 0, 100, 2),
        (None, 4, 1, 100, 3),  # doubling
        (None, 4, 4, 100, 0),
        (5, 4, 0, 100, 1),
        (5, 5, 0, 100, 0),
        (None, 8, 0, 3, 2),  # not more than can be given two units each
        (None, 8, 0, 0, 0),
        (None, 8, 5, 0, -5),  # needed no more
        (None, 0, 5, 0, -3),  # the first ones stay
        (None, 1, 0, 1, 1),  # one of the first died
    ],
)
def test_growth(most: int | None, ready: int, pending: int, waiting: int, asked: int) -> None:
    census = Census(ready=ready, pending=pending, waiting=waiting)
    assert hosts_to_ask_for(Placement(least=2, most=most), census) == asked


def test_none_of_it_is_in_the_fingerprint() -> None:
    asked = {"hosts": 9, "max_hosts": 12, "host_gpus": 0.5, "host_cpus": 3, "silence_minutes": 2, "memory": True}
    asked |= dict.fromkeys(("max_queries", "max_queries_per_cell", "max_queries_per_target", "resubmissions"), 7)
    assert set(asked) | {"micro_batch", "threads", "chunk", "save", "device"} == set(RunSettings.model_fields)
    assert fingerprint(parse_spec({**SPEC, "run": asked}), {}, "cpu") == fingerprint(parse_spec(SPEC), {}, "cpu")


@given(most=st.integers(1, 40), waiting=st.integers(1, 10_000), room=st.integers(1, 60))
def test_growth_comes_to_an_end_within_its_bounds(most: int, waiting: int, room: int) -> None:
    placement, ready, pending = Placement(least=1, most=most), 0, 0
    for _ in range(20):
        asked = hosts_to_ask_for(placement, Census(ready=ready, pending=pending, waiting=waiting))
        assert 0 <= asked <= max(1, ready)
        pending += asked
        arrived = min(pending, room - ready)
        ready, pending = ready + arrived, pending - arrived
        assert ready + pending <= most
    assert ready >= min(most, room, (waiting + 1) // 2)
