from __future__ import annotations

import threading
import time

import pytest
import torch
from doubles import Conv
from run_doubles import all_units, make_host, results_of, score_request, small_run

from udc_ray.meter import Meter, Pulse, count_networks
from udc_ray_cluster.watch import Watch


def watched(silence_s: float = 600.0) -> Watch:
    watch = Watch(silence_s)
    watch.enter("a", 0.0)
    return watch


def test_a_host_whose_counters_move_is_well_however_long_its_unit_takes() -> None:
    watch = watched()
    for minute in range(1, 60):
        watch.asked("a", 60.0 * minute)
        watch.heard("a", Pulse(steps=minute), 60.0 * minute)
        assert watch.trouble("a", 60.0 * minute) is None


def test_counters_that_stand_still_are_trouble_only_at_work() -> None:
    idle, stuck = watched(), watched()
    for second in range(0, 700, 5):
        for watch in (idle, stuck):
            watch.asked("a", second)
            watch.heard("a", Pulse(steps=3, unit="u"), second)
        idle.rested("a", second)
    assert idle.trouble("a", 700.0) is None
    assert stuck.trouble("a", 599.0) is None
    assert "no forward pass came back for" in (stuck.trouble("a", 700.0) or "")


def test_an_ended_call_without_forward_passes_is_progress_too() -> None:
    watch = watched()
    watch.heard("a", Pulse(calls=1), 10.0)
    watch.heard("a", Pulse(calls=2), 590.0)
    assert watch.trouble("a", 1000.0) is None


@pytest.mark.parametrize(("silence_s", "patience"), [(600.0, 60.0), (60.0, 30.0), (6.0, 30.0)])
def test_a_pulse_that_does_not_answer(silence_s: float, patience: float) -> None:
    watch = watched(silence_s)
    watch.asked("a", 100.0)
    watch.rested("a", 100.0 + patience)
    assert watch.trouble("a", 100.0 + patience) is None
    assert "its pulse has not answered" in (watch.trouble("a", 101.0 + patience) or "")
    watch.heard("a", Pulse(), 101.0 + patience)
    assert watch.trouble("a", 101.0 + patience) is None


def test_busy_and_useful_shares() -> None:
    watch = watched()
    assert (watch.busy("a"), watch.useful_share()) == (0.0, None)
    watch.heard("a", Pulse(busy_s=1.0, slots=8, useful=4.0), 5.0)
    watch.heard("a", Pulse(busy_s=4.0, slots=16, useful=12.0), 9.0)
    assert (watch.busy("a"), watch.useful_share()) == (0.75, 0.75)
    watch.enter("b", 9.0)
    watch.heard("b", Pulse(slots=16, useful=4.0), 10.0)
    assert watch.useful_share() == 0.5
    watch.leave("b")
    assert watch.useful_share() == 0.75


def test_a_meter_is_read_while_its_host_works() -> None:
    meter, begun, go_on = Meter(), threading.Event(), threading.Event()

    def work() -> None:
        with meter.work("unit", share=0.5):
            meter.step(4)
            begun.set()
            go_on.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    time.sleep(0.01)
    pulse = meter.read()
    assert (pulse.steps, pulse.calls, pulse.slots, pulse.useful, pulse.unit) == (1, 0, 4, 2.0, "unit")
    assert 0 < pulse.busy_s < meter.read().busy_s
    go_on.set()
    thread.join()
    ended = meter.read()
    assert (ended.calls, ended.unit, ended.busy_s) == (1, "", meter.read().busy_s)


def test_inner_work_does_not_count_twice() -> None:
    meter = Meter()
    with meter.work("outer"), meter.work(share=0.25):
        assert meter.read().unit == "outer"
        meter.step(4)
    assert (meter.read().calls, meter.read().useful) == (1, 1.0)


def test_a_hosts_forward_passes_and_useful_slots_are_counted() -> None:
    prepared = small_run(attacks=("fgsm", "square:budget=5"), defenses=("none",))
    host = make_host(prepared)
    before = host.meter.read()
    assert (before.steps, before.useful) == (0, 0.0)
    results_of(host, all_units(prepared, 3))  # three images in four slots
    pulse = host.meter.read()
    assert pulse.steps > 0 and pulse.slots == 4 * pulse.steps
    assert pulse.useful == pytest.approx(0.75 * pulse.slots)
    assert pulse.calls == 1 + 5 + 1, "a unit of gradients, five scores, and the records of the queries"


def test_a_request_counts_its_own_share() -> None:
    prepared = small_run(attacks=("square:budget=5",))
    host = make_host(prepared)
    image_id = prepared.setup.dataset.image_ids[0]
    host.sample(image_id), host.reference(0, image_id, "truth")
    x = host.sample(image_id).degraded[None]
    before = host.meter.read()
    host.score(score_request([image_id], x))
    after = host.meter.read()
    assert (after.slots - before.slots, after.useful - before.useful) == (4, 1.0)


def test_the_networks_of_a_purifier_are_counted() -> None:
    class Prior:
        def __init__(self) -> None:
            self.network, self.schedule = Conv(), "linear"

    meter, prior = Meter(), Prior()
    for prepared in (prior, prior.network, None, "text"):
        count_networks(prepared, meter)
    prior.network(torch.zeros(1, 3, 8, 8))
    assert meter.read().steps == 2


def test_a_host_lets_go_of_what_it_is_not_to_keep() -> None:
    prepared = small_run(defenses=("none", "jpeg", "gaussian-noise:samples=2"))
    host = make_host(prepared)
    for defence in (1, 2):
        host.victim(defence)
    host.keep({0, 2})
    assert list(host._prepared) == [2]
    assert host.victim(1).purifier is not None
