"""The estimate of a run against counts made by hand, and against what a run then really did."""

from __future__ import annotations

from typing import Any

import pytest
from run_doubles import all_units, make_host, run_all, small_run

from udc_ray import cost
from udc_ray.cost import estimate, gradient_price, is_long
from udc_ray.prepare import Prepared
from udc_ray.purifiers.base import Purifier
from udc_ray.purifiers.diffusion import DDIM, DDPM

NOISE = "gaussian-noise:samples=3,grad_mode=[blind, bpda]"


def _cost(prepared: Prepared, seconds: dict[int, float] | None) -> cost.Cost:
    return estimate(prepared.setup, all_units(prepared), seconds)


class Guided(DDIM):
    """A chain with a guide, as far as its modes tell."""

    grad_modes = frozenset({*DDIM.grad_modes, "full-no-guide"})


@pytest.mark.parametrize(
    ("purifier", "mode", "price"),
    [
        (None, "full", 0), (DDIM(), "bpda", 1), (DDIM(), "full", 4), (DDIM(), "forward-noise", 0),
        (Guided(), "full", 7), (Guided(), "full-no-guide", 4), (Guided(), "bpda", 1),
        (DDIM(steps=10), "surrogate-2", 0.8), (DDIM(steps=2), "surrogate-9", 4), (DDPM(steps=40), "surrogate-10", 1),
        (Guided(steps=10), "surrogate-5", 3.5),
    ],
)  # fmt: skip
def test_what_a_gradient_takes_of_the_purifier(purifier: Purifier | None, mode: str, price: float) -> None:
    assert gradient_price(purifier, mode) == pytest.approx(price)


def test_gradients_are_iterations_times_draws_of_random_victims() -> None:
    prepared = small_run(attacks=("pgd:steps=10,eot=4,restarts=2",), defenses=("none", NOISE))
    # three images, ten steps, two restarts: once undefended with a draw each, once behind the noise with four
    assert _cost(prepared, None).gradients == 3 * 10 * 2 * (1 + 4)


def test_counts_of_a_run_are_those_that_its_records_tell() -> None:
    prepared = small_run(attacks=("pgd:steps=3,eot=2", "square:budget=5"), defenses=("none", NOISE))
    records = run_all(make_host(prepared), prepared)
    found = _cost(prepared, None)
    crafted = {(r.cell, r.image_id, r.restart): r for r in records if r.grad_mode != "blind"}
    assert found.gradients == sum(r.grad_evals or 0 for r in crafted.values())
    assert found.queries == sum(r.queries or 0 for r in crafted.values() if r.attack == "square")
    once = {r.key[:3]: r for r in records}
    assert found.harness == sum(r.queries_harness or 0 for r in once.values())


def test_time_is_batches_times_what_the_probe_measured() -> None:
    prepared = small_run("run.micro_batch=3", attacks=("pgd:steps=10,eot=4",), defenses=("none", NOISE), limit=3)
    # a batch: 1 s of the restorer, 0.5 s of the purifier
    seconds = {0: 1.0, 1: 1.5}
    bare = 10 * 3 + (1 + 1 + 4)  # gradients; attacked, clean, four controls
    scored = 2 * 3 + 3 + 4  # attacked in two cells and clean three times, controls once: 13 batches
    adaptive = 10 * 4  # four draws of three images fill four batches a step
    compared = 10  # iterates of a random victim, one draw each
    restorer = bare + 3 * adaptive + compared + scored
    purifier = 1 * adaptive + compared + scored
    found = _cost(prepared, seconds)
    assert found.device_hours == pytest.approx((restorer + 0.5 * purifier) / 3600)
    assert found.restorer == restorer * 3
    assert found.denoiser == 0, "noise calls no network"


def test_denoiser_calls_follow_the_model_of_the_gradient() -> None:
    def calls(mode: str) -> int:
        prepared = small_run(
            "run.micro_batch=3", attacks=("pgd:steps=10",), defenses=("none", f"ddim:steps=5,grad_mode=[{mode}]")
        )
        return _cost(prepared, None).denoiser

    rest = 10 + 1 + 1 + 4  # a look at every iterate; attacked, clean, controls
    assert calls("full") == 3 * 5 * (10 * 4 + rest)
    assert calls("bpda") == 3 * 5 * (10 * 1 + rest)


def test_a_victim_that_alone_is_left_is_counted_whole() -> None:
    prepared = small_run(attacks=("pgd:steps=10",), defenses=("none", "ddim:grad_mode=[full]"))
    units = [unit for unit in all_units(prepared) if prepared.setup.plan.defences[unit.victim].purifier is not None]
    assert cost.attacked_victims(units) == [1]
    hours = estimate(prepared.setup, units, {1: 2.0}).device_hours
    assert hours is not None and hours > 10 * 4 * 2 / 3600


@pytest.mark.parametrize(("steps", "long"), [(10, False), (100_000, True)])
def test_long_runs_are_recognised_without_a_probe(steps: int, long: bool) -> None:
    prepared = small_run(attacks=(f"pgd:steps={steps}",))
    assert is_long(prepared.setup, all_units(prepared)) is long


def test_the_estimate_in_words() -> None:
    lines = _cost(small_run(attacks=("pgd:steps=10",)), {0: 1.0}).lines()
    assert "30 gradients" in lines[0] and "144 of the restorer and 0 of denoisers" in lines[1]
    assert "about 36 s of one host" in lines[2]
    assert "time unknown" in _cost(small_run(), None).lines()[2]


@pytest.mark.parametrize(
    ("value", "words"), [(0.0001, "1 s"), (0.02, "72 s"), (0.5, "30 min"), (1.4, "84 min"), (1234.5, "1,234.5 h")]
)
def test_hours(value: float, words: str) -> None:
    assert cost.describe_hours(value) == words


def test_bytes() -> None:
    found: list[Any] = [cost.describe_bytes(n) for n in (0, 999, 1500, 25_000, 3_000_000, 7 * 10**12)]
    assert found == ["0 B", "999 B", "1.5 KB", "25 KB", "3.0 MB", "7.0 TB"]
