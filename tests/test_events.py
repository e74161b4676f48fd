"""Events in a job's log: they survive any cut, any noise between them, and a replay."""

from __future__ import annotations

import io
import json

from hypothesis import given
from hypothesis import strategies as st

from udc_ray.pool import Outcome
from udc_ray_cluster import events
from udc_ray_cluster.events import Decoder, Teller, describe, encode

EVENTS = [{"event": "note", "text": "a\nb \x1f é"}, {"event": "begin", "units": 3}, {"event": "exit", "code": 0}]
LOG = "Loading a model\n" + "".join(encode(e.pop("event"), **e) for e in json.loads(json.dumps(EVENTS))) + "bye\n"
ITEMS = ["Loading a model", *EVENTS, "bye"]


@given(st.lists(st.integers(0, len(LOG)), max_size=12))
def test_pieces_of_any_size(cuts: list[int]) -> None:
    decoder, found, last = Decoder(), [], 0
    for cut in [*sorted(cuts), len(LOG)]:
        found += decoder.feed(LOG[last:cut])
        last = cut
    assert found == ITEMS


@given(st.lists(st.tuples(st.integers(0, len(LOG)), st.integers(1, 9)), max_size=5))
def test_a_replayed_log_tells_nothing_twice(losses: list[tuple[int, int]]) -> None:
    decoder, found = Decoder(), []
    for length, step in [*losses, (len(LOG), 7)]:
        decoder.replay()
        for start in range(0, length, step):
            found += decoder.feed(LOG[start : min(start + step, length)])
    assert found == ITEMS


def test_an_event_after_half_a_line_of_a_users_print() -> None:
    assert list(Decoder().feed("50 %" + encode("end"))) == ["50 %", {"event": "end"}]


def test_what_looks_like_an_event_and_is_none_is_shown() -> None:
    assert list(Decoder().feed('\x1e{"event": \n\x1e[1]\n')) == ['{"event": ', "[1]"]


def outcomes(many: int) -> list[Outcome]:
    from run_doubles import all_units, small_run

    unit = all_units(small_run())[0]
    return [Outcome(unit=unit) for _ in range(many)]


def test_progress_is_thinned_out_and_the_last_word_is_the_total() -> None:
    stream = io.StringIO()
    teller = Teller(stream)
    teller.begin(500)
    for outcome in outcomes(500):
        teller.unit(outcome)
    teller.end()
    teller.close()
    told = list(Decoder().feed(stream.getvalue()))
    progress = [e for e in told if isinstance(e, dict) and e["event"] == "progress"]
    assert len(progress) < 50
    assert progress[-1]["units"] == 500 and progress[-1]["images"] == 1500
    assert isinstance(told[-1], dict) and told[-1]["event"] == "end"


def test_a_silent_job_gives_signs_of_life() -> None:
    stream = io.StringIO()
    teller = Teller(stream, beat=0.02)
    while stream.getvalue().count("progress") < 2:
        pass
    teller.close()


def test_a_log_for_people() -> None:
    told = [describe(e) for e in EVENTS]
    assert told == ["a\nb \x1f é", "3 units to do", "exit code 0"]
    error = {"event": "exit", "code": 2, "error": ["what", "cause", ""]}
    assert describe(error) == "what\ncause\nexit code 2"
    assert describe({"event": "hello"}) == "" and events.SEPARATOR not in encode("note", text="\x1e")[1:]
