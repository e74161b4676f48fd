from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_record

from udc_ray.compaction import compact, done_keys, quarantined_keys
from udc_ray.errors import RunDirectoryError
from udc_ray.records import Record

STOPS = ("budget", "success", "error")


def answer(image: int, budget: int, stop: str) -> Record:
    error = "it failed" if stop == "error" else None
    return make_record(cell="c", image_id=f"{image}", budget=budget, stop_reason=stop, error=error, psnr_adv=budget)


histories = st.dictionaries(
    st.tuples(st.integers(0, 3), st.sampled_from([50, 100, 200])), st.sampled_from(STOPS), max_size=12
)


@settings(deadline=None)
@given(histories, st.randoms(use_true_random=False))
def test_one_record_a_key_the_best_one_whatever_the_order(
    history: dict[tuple[int, int], str], chance: random.Random
) -> None:
    records = [answer(image, budget, stop) for (image, budget), stop in history.items()]
    shuffled = list(records)
    chance.shuffle(shuffled)
    kept = compact(shuffled)
    assert kept == compact(records) == compact(kept)
    assert [r.key for r in kept] == sorted({r.key for r in records})
    for record in kept:
        rivals = [r for r in records if r.key == record.key]
        sound = [r for r in rivals if r.stop_reason != "error"]
        if sound:
            assert record.stop_reason != "error"
            assert record.budget == max(r.budget or 0 for r in sound)
        else:
            assert record.budget == max(r.budget or 0 for r in rivals)


@settings(deadline=None)
@given(histories, st.sampled_from([50, 100, 150, 200, 400]))
def test_done_is_what_the_definition_says_and_compaction_does_not_change_it(
    history: dict[tuple[int, int], str], asked: int
) -> None:
    records = [answer(image, budget, stop) for (image, budget), stop in history.items()]
    done = done_keys(records, {"c": asked})
    wanted = {
        f"{image}"
        for (image, budget), stop in history.items()
        if stop == "success" or (stop == "budget" and budget >= asked)
    }
    assert {key[1] for key in done} == wanted
    # a success at a small budget is superseded by a record at a larger one that still falls short: no work is lost
    assert done_keys(compact(records), {"c": asked}) <= done
    assert not done & quarantined_keys(records, {"c": asked})


def test_a_raised_budget_reopens_only_what_stopped_at_the_old_one() -> None:
    records = [answer(0, 100, "budget"), answer(1, 100, "success"), answer(2, 100, "error")]
    assert {k[1] for k in done_keys(records, {"c": 100})} == {"0", "1"}
    assert {k[1] for k in done_keys(records, {"c": 101})} == {"1"}
    assert {k[1] for k in done_keys(records, {})} == {"0", "1"}


def test_a_failure_is_quarantined_until_the_budget_is_raised() -> None:
    records = [answer(0, 100, "error")]
    assert {k[1] for k in quarantined_keys(records, {"c": 100})} == {"0"}
    assert quarantined_keys(records, {"c": 200}) == set()
    assert quarantined_keys([*records, answer(0, 100, "budget")], {"c": 100}) == set()


def test_two_answers_for_one_key_and_budget_are_refused() -> None:
    with pytest.raises(RunDirectoryError, match="two results for cell c, image 1"):
        compact([answer(1, 100, "success"), answer(1, 100, "budget")])


def test_two_failures_of_one_key_count_as_one_whatever_their_order() -> None:
    one = make_record(cell="c", stop_reason="error", error="a", retries=1)
    two = make_record(cell="c", stop_reason="error", error="b", retries=0)
    assert compact([one, two]) == compact([two, one]) == [one]
