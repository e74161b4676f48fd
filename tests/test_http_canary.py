"""The canaries: images asked again and again, to see whether a target is still the same."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from doubles import images
from faulty_server import FaultyServer
from torch import Tensor

from udc_ray.metered.canary import REPEATS, Canaries
from udc_ray.metered.client import Client
from udc_ray.metered.endpoint import Endpoint
from udc_ray.metered.failures import TargetDrift, TargetError


class Model:
    """Answers that can be told to move; counts queries."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.shift, self.asked = noise, 0.0, 0
        self.rng = np.random.default_rng(0)

    def __call__(self, x_CHW: Tensor) -> Tensor:
        self.asked += 1
        drawn = torch.from_numpy(self.rng.normal(0, 1, x_CHW.shape).astype(np.float32))
        return 0.5 * x_CHW + self.shift + self.noise * drawn


CANARIES = {"a": images(1, 3, 16, 16)[0], "b": images(1, 3, 12, 20, seed=1)[0]}


def test_a_target_that_stays_the_same_passes_every_look() -> None:
    model, now = Model(), 0.0
    canaries = Canaries(CANARIES, model, every_s=60, clock=lambda: now)
    assert canaries.due
    canaries.start()
    assert model.asked == canaries.cost_of_start == 3 and not canaries.due
    now = 60.0
    assert canaries.due
    canaries.check()
    assert model.asked == 3 + canaries.cost_of_check == 5 and not canaries.due


def test_the_last_bit_of_a_deterministic_target_is_drift() -> None:
    model = Model()
    canaries = Canaries(CANARIES, model)
    canaries.start()
    model.shift = 1e-7
    with pytest.raises(TargetDrift, match="changed during the run: a: mean difference .*/255.*; b: ") as drift:
        canaries.check()
    assert "start a new run" in str(drift.value)


def test_a_resumed_run_looks_first_and_compares_with_the_first_session() -> None:
    model = Model()
    first = Canaries(CANARIES, model)
    first.start()
    again = Canaries(CANARIES, model)
    again.load(pickle.loads(pickle.dumps(first.state())))
    assert again.due and again.fingerprint == first.fingerprint
    again.check()
    model.shift = 0.1
    last = Canaries(CANARIES, model)
    last.load(first.state())
    with pytest.raises(TargetDrift, match="since the answers of an earlier session"):
        last.check()
    with pytest.raises(TargetError, match="other images"):
        Canaries({"a": CANARIES["a"]}, model).load(first.state())


def test_another_model_has_another_fingerprint() -> None:
    moved = Model()
    moved.shift = 0.25
    found = []
    for model in (Model(), Model(), moved):
        canaries = Canaries(CANARIES, model)
        canaries.start()
        found.append(canaries.fingerprint)
    assert found[0] == found[1] != found[2]


def test_noise_that_nobody_declared_is_found_at_the_start() -> None:
    with pytest.raises(TargetError, match="twice, and differently.*0.02") as error:
        Canaries(CANARIES, Model(noise=0.02)).start()
    assert "random: true" in str(error.value) and not isinstance(error.value, TargetDrift)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_a_random_target_may_draw_but_not_move(noise: float) -> None:
    model = Model(noise=noise)
    canaries = Canaries(CANARIES, model, random=True)
    canaries.start()
    assert model.asked == canaries.cost_of_start == 2 * REPEATS
    for _ in range(20):
        canaries.check()
    assert model.asked == 2 * REPEATS + 20 * 2  # nothing was asked again
    model.shift = 4 * noise + 0.01
    with pytest.raises(TargetDrift, match="between two answers before"):
        canaries.check()
    assert model.asked <= 2 * REPEATS + 20 * 2 + canaries.cost_of_check


def test_one_answer_far_off_is_asked_again_before_it_is_drift() -> None:
    model = Model(noise=0.01)
    canaries = Canaries({"a": CANARIES["a"]}, model, random=True)
    canaries.start()
    odd = iter([0.03, 0.0, 0.0])

    def once_odd(x_CHW: Tensor) -> Tensor:
        model.shift = next(odd)
        return model(x_CHW)

    canaries._ask = once_odd
    canaries.check()
    assert next(odd, None) is None


def test_an_answer_of_another_shape_is_drift() -> None:
    model = Model()
    canaries = Canaries(CANARIES, model)
    canaries.start()
    canaries._ask = lambda x_CHW: torch.zeros(10)
    with pytest.raises(TargetDrift, match="the shape \\(10,\\), before \\(3, 16, 16\\)"):
        canaries.check()


def test_drift_of_a_server_is_seen_through_the_client() -> None:
    with FaultyServer(plan=["ok"] * 5 + ["drift"] * 2) as server, Client(Endpoint(url=server.url)) as client:
        canaries = Canaries(CANARIES, client.send)
        canaries.start()
        canaries.check()
        with pytest.raises(TargetDrift, match="largest"):
            canaries.check()
    assert server.evaluated == 7
