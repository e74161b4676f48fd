"""Signals drain a run: the first asks, the second ends."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator

import pytest

from udc_ray.errors import Interrupted
from udc_ray.interrupt import DRAIN_SECONDS, Drain

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_lets_nothing_new_begin(number: int) -> None:
    with Drain() as drain:
        drain.raise_if_asked()
        assert not drain.asked
        send(number)
        assert drain.asked and drain.signal_number == number
        with pytest.raises(Interrupted) as raised:
            drain.raise_if_asked()
    assert raised.value.signal_number == number


@pytest.mark.parametrize("second", [*SIGNALS, signal.SIGALRM])
def test_second_signal_or_the_deadline_ends_at_once(second: int) -> None:
    with Drain() as drain:
        send(signal.SIGTERM)
        with pytest.raises(Interrupted) as raised:
            send(second)
        assert drain.signal_number == signal.SIGTERM
    assert raised.value.signal_number == signal.SIGTERM


def test_the_deadline_runs_from_the_first_signal_only() -> None:
    with Drain():
        assert signal.alarm(0) == 0
        send(signal.SIGINT)
        assert 0 < signal.alarm(0) <= DRAIN_SECONDS < 30


def test_an_alarm_of_its_own_asks_for_nothing() -> None:
    with Drain() as drain:
        send(signal.SIGALRM)
        drain.raise_if_asked()
        assert not drain.asked


@pytest.fixture
def listening() -> Iterator[None]:
    """A process that listens to Ctrl-C; one that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_handlers_and_alarm_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (*SIGNALS, signal.SIGALRM)]
    with pytest.raises(Interrupted), Drain() as drain:
        assert signal.getsignal(signal.SIGINT) not in before
        send(signal.SIGINT)
        drain.raise_if_asked()
    assert [signal.getsignal(n) for n in (*SIGNALS, signal.SIGALRM)] == before
    assert signal.alarm(0) == 0
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_interrupted_crosses_processes() -> None:
    copied = pickle.loads(pickle.dumps(Interrupted(15, "runs/one")))
    assert (copied.signal_number, copied.where) == (15, "runs/one") and str(copied) == "stopped by signal 15"
