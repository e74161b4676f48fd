"""The way to a metered target, with many threads on it: nobody takes another's query, and the end is orderly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_server import FaultyServer, darker
from ledger_doubles import attack

from udc_ray.metered import gate as module
from udc_ray.metered.account import Account, LedgerError
from udc_ray.metered.attempts import Patience
from udc_ray.metered.client import Client
from udc_ray.metered.endpoint import Endpoint
from udc_ray.metered.failures import TargetError
from udc_ray.metered.gate import Gate
from udc_ray.metered.ledger import Ledger
from udc_ray.metered.reading import read_account

GREY = torch.full((3, 4, 4), 128 / 255)
SECONDS = 20.0
"""After so long a test has failed; none waits for it."""


class Held:
    """A model that answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, image_HWC: Any) -> Any:
        self.asked.set()
        self.may_answer.wait(SECONDS)
        return darker(image_HWC)


class Asking(threading.Thread):
    """A query in a thread of its own, and what became of it."""

    def __init__(self, gate: Gate, step: int = 0) -> None:
        super().__init__(daemon=True)
        self.gate, self.key = gate, attack(step)
        self.answer: object = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.gate.ask(self.key, GREY, lambda image: float(image.mean()))
        except Exception as error:
            self.answer = error

    def ended(self) -> object:
        self.join(SECONDS)
        assert not self.is_alive()
        return self.answer


Open = Callable[[FaultyServer], Gate]


@pytest.fixture
def open_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setattr(module, "PATIENCE", Patience(first_pause_s=100))
    gates: list[Gate] = []

    def opened(server: FaultyServer) -> Gate:
        endpoint = Endpoint(url=server.url)
        gate = Gate(Client(endpoint), Ledger(tmp_path / "l.sqlite", server.url, None, None), seed=0)
        gate._pace.allowed = 4.0  # as after some answers
        gates.append(gate)
        return gate

    yield opened
    for gate in gates:
        gate.close()


def account(tmp_path: Path) -> Account:
    return read_account(tmp_path / "l.sqlite")


def wait_for(told: Callable[[], bool]) -> None:
    """Wait until something is so."""
    pause = threading.Event()
    for _ in range(round(SECONDS / 0.01)):
        if told():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to that")


def test_whoever_pauses_learns_that_the_target_cannot_be_used(open_gate: Open, tmp_path: Path) -> None:
    with FaultyServer(plan=["500", "redirect"]) as server:
        gate = open_gate(server)
        pausing = Asking(gate)
        wait_for(lambda: account(tmp_path).unknown == 1)
        assert isinstance(Asking(gate, step=1).ended(), TargetError)
        assert "redirects" in str(pausing.ended())
        assert len(server.bodies) == 2


def test_closing_ends_the_pauses(open_gate: Open, tmp_path: Path) -> None:
    with FaultyServer(plan=["500"]) as server:
        gate = open_gate(server)
        pausing = Asking(gate)
        wait_for(lambda: account(tmp_path).unknown == 1)
        gate.close()
        assert "has ended" in str(pausing.ended())


def test_closing_waits_for_the_requests_under_way(open_gate: Open, tmp_path: Path) -> None:
    model = Held()
    with FaultyServer(model) as server:
        gate = open_gate(server)
        asking = Asking(gate)
        assert model.asked.wait(SECONDS)
        closing = threading.Thread(target=gate.close)
        closing.start()
        wait_for(gate._closing.is_set)
        model.may_answer.set()
        assert isinstance(asking.ended(), float)
        closing.join(SECONDS)
    assert (account(tmp_path).answered, account(tmp_path).unknown) == (1, 0)


def test_a_query_that_was_asked_anew_is_left_alone_by_whoever_asked_first(open_gate: Open, tmp_path: Path) -> None:
    """A stepper dies while its host pauses before a further attempt, and the next stepper asks the same."""
    model, woken = Held(), threading.Event()
    with FaultyServer(model, plan=["500"]) as server:
        gate = open_gate(server)
        gate._trying = replace(gate._trying, sleep=lambda _: woken.wait(SECONDS) and None)
        first = Asking(gate)
        wait_for(lambda: account(tmp_path).unknown == 1)
        second = Asking(gate)
        assert model.asked.wait(SECONDS)
        woken.set()
        assert isinstance(first.ended(), LedgerError)
        model.may_answer.set()
        assert second.ended() == pytest.approx(64 / 255, abs=1 / 255)
        assert (account(tmp_path).answered, account(tmp_path).unknown) == (1, 1)
        assert len(server.bodies) == 2
