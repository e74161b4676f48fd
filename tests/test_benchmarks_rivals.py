"""What the benchmarks of query attacks make of what they measured; nothing is timed here."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are in no package that is installed

from benchmarks.cifar import row  # noqa: E402  # only now can it be found
from benchmarks.rivals import summarised  # noqa: E402  # as above
from benchmarks.rivals_child import Beside, timed  # noqa: E402  # as above


def measured(useful: float, seconds: float, bare_per_s: float, rows: float = 100) -> dict[str, float]:
    return {"useful": useful, "rows": rows, "seconds": seconds, "bare_per_s": bare_per_s}


def test_a_row_is_the_median_share_of_its_rounds_and_its_range() -> None:
    """50 queries in 1 s beside 100 bare rows a second are half; the rounds of other names do not mix in."""
    found = [
        ("ours", measured(50, 1.0, 100.0)),
        ("other", measured(10, 1.0, 100.0, rows=300)),
        ("ours", measured(90, 2.0, 50.0)),
        ("ours", measured(40, 4.0, 100.0)),
    ]
    ours, other = summarised(found)
    assert (ours["name"], ours["share_of_bare"], ours["lowest"], ours["highest"]) == ("ours", 0.5, 0.1, 0.9)
    assert (ours["rounds"], ours["rows_a_useful_query"]) == (3, round(300 / 180, 3))
    assert (other["share_of_bare"], other["rows_a_useful_query"], other["rounds"]) == (0.1, 30.0, 1)


def test_bare_batches_come_between_the_calls_and_are_no_rows_of_the_attack() -> None:
    sizes: list[int] = []

    def model(x_BCHW: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x_BCHW))
        return x_BCHW.sum(dim=(1, 2, 3))

    beside = Beside(model, torch.zeros(8, 3, 2, 2), every=10)
    for _ in range(5):
        assert torch.equal(beside(torch.ones(4, 3, 2, 2)), torch.full((4,), 12.0))
    # due at 0, at 12 (the first call that finds 10 rows behind it), and at 24 only after the last call
    assert sizes == [8, 4, 4, 4, 8, 4, 4]
    assert (beside.rows, beside.bare_rows) == (20, 16)


def test_the_warm_up_is_in_no_count() -> None:
    beside = Beside(lambda x: x, torch.zeros(8, 1, 2, 2), every=1000)

    def attack() -> int:
        beside(torch.zeros(3, 1, 2, 2))
        return 2

    found = timed(beside, attack)
    assert (found["useful"], found["rows"]) == (2, 3)
    assert found["bare_per_s"] == pytest.approx(8 / beside.bare_seconds)


def test_failures_are_in_rate_median_and_restricted_mean_but_not_in_the_mean_over_successes() -> None:
    times = {"a": 10, "b": 20, "c": 60, "d": None, "e": None}
    found = row("x", times, [10, 20, 64], budget=100, seed=0)
    assert (found["images"], found["success"]) == (5, 0.6)
    assert (found["mean_of_successes"], found["charged_mean_of_successes"]) == (30.0, round(94 / 3, 1))
    assert (found["median"], found["restricted_mean"]) == (60.0, 58.0)


def test_an_attack_that_never_succeeds_has_no_mean_and_no_median() -> None:
    found = row("x", {"a": None, "b": None}, [], budget=100, seed=0)
    assert (found["success"], found["mean_of_successes"], found["median"]) == (0.0, None, None)
    assert found["charged_mean_of_successes"] is None
    assert found["restricted_mean"] == 100.0
