"""Rate, concurrency, pauses and attempts, by a clock that the tests turn."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from http_doubles import Book, Spent
from hypothesis import given
from hypothesis import strategies as st

from udc_ray.metered.attempts import Circuit, Patience, Trying, attempts, keyed_draws
from udc_ray.metered.client import retry_after
from udc_ray.metered.endpoint import Endpoint
from udc_ray.metered.failures import AttemptFailure, LostAnswer, NotSent, Refused, TargetError
from udc_ray.metered.pace import Pace, TokenBucket, Turnstile, pace_of

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@given(
    st.floats(0.1, 50),
    st.floats(1, 5),
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_no_window_holds_more_than_the_rate_allows(rate: float, capacity: float, idle: list[float]) -> None:
    bucket, now, starts = TokenBucket(rate=rate, capacity=capacity), 0.0, []
    for pause in idle:
        now += pause
        now += bucket.wait(now) * (1 + 1e-12) + 1e-12
        bucket.take(now)
        starts.append(now)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            assert last - first + 1 <= rate * (starts[last] - starts[first]) + capacity + 1e-6


def test_a_steady_sender_reaches_the_rate() -> None:
    bucket, now = TokenBucket(rate=4.0, capacity=1.0), 0.0
    for _ in range(101):
        now += bucket.wait(now)
        bucket.take(now)
    assert now == pytest.approx(25.0)


def answered(pace: Pace, count: int, now: float) -> None:
    for _ in range(count):
        pace.sent(now)
        pace.settle(now, "answered")


def test_the_allowed_number_grows_by_one_a_clean_round_and_never_beyond_the_limit() -> None:
    pace = Pace(concurrency=4)
    grown = []
    for _ in range(14):
        answered(pace, 1, 0.0)
        grown.append(pace.allowed)
    # rounds of 1, 2 and 3 answers
    assert grown == [2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4]


def test_an_episode_of_refusals_falls_once_and_cools_down() -> None:
    pace = Pace(concurrency=10, allowed=10.0)
    for now in (100.0, 101.0, 114.9):  # one episode
        pace.sent(now)
        pace.settle(now, "refused")
        assert pace.allowed == 8.0
    answered(pace, 50, 114.9)
    assert pace.allowed == 8.0
    answered(pace, 8, 115.0)
    assert pace.allowed == 9.0
    pace.sent(116.0)
    pace.settle(116.0, "refused")
    assert pace.allowed == pytest.approx(7.2)


def test_one_request_may_always_go() -> None:
    pace = Pace(concurrency=3, allowed=3.0)
    for episode in range(50):
        pace.sent(episode * 20.0)
        pace.settle(episode * 20.0, "refused")
    assert pace.allowed == 1.0 and pace.wait(5000.0) == 0.0


def test_nobody_sends_before_the_time_that_a_refusal_named() -> None:
    pace = Pace(concurrency=8, allowed=8.0)
    pace.sent(0.0)
    pace.sent(0.0)
    pace.settle(1.0, "refused", 30.0)
    pace.settle(2.0, "refused", 3.0)  # a shorter one does not end the longer
    assert pace.wait(2.0) == 29.0 and pace.wait(31.0) == 0.0


def test_failures_other_than_refusals_do_not_change_the_pace() -> None:
    pace = Pace(concurrency=8, allowed=5.0)
    pace.sent(0.0)
    pace.settle(0.0, "failed")
    assert (pace.allowed, pace.under_way) == (5.0, 0)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["sent", "answered", "refused", "failed"]), st.floats(0, 20)), max_size=80),
)
def test_never_more_under_way_than_allowed(limit: int, story: list[tuple[Any, float]]) -> None:
    pace, now = Pace(concurrency=limit), 0.0
    for event, later in story:
        now += later
        if event == "sent":
            if pace.wait(now) == 0.0:
                pace.sent(now)
                assert pace.under_way <= math.floor(pace.allowed)
        elif pace.under_way:
            pace.settle(now, event)
        assert 1.0 <= pace.allowed <= limit


def test_the_pace_of_an_entry() -> None:
    assert pace_of(Endpoint(url="http://a.test")).bucket is None
    pace = pace_of(Endpoint(url="http://a.test", rate=50, concurrency=7))
    assert pace.concurrency == 7 and pace.bucket == TokenBucket(rate=50.0, capacity=5.0)


def test_a_turnstile_lets_at_most_the_allowed_number_through() -> None:
    turnstile = Turnstile(Pace(concurrency=3, allowed=3.0))
    lock, here, most, done = threading.Lock(), 0, 0, 0
    everyone = threading.Barrier(3)

    def work() -> None:
        nonlocal here, most, done
        with turnstile.slot():
            with lock:
                here += 1
                most = max(most, here)
            everyone.wait(timeout=30)  # three meet inside, so three are let in at once
            with lock:
                here -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done, turnstile.pace.under_way) == (3, 12, 0)


def test_a_turnstile_waits_for_the_time_and_learns_from_refusals() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.25
        return now

    turnstile = Turnstile(Pace(concurrency=1), clock=clock)
    turnstile._changed.wait = lambda timeout=None: True  # type: ignore[method-assign, assignment]  # time is the clock's
    with pytest.raises(Refused), turnstile.slot():
        raise Refused(50.0)
    began = now
    with turnstile.slot():
        assert now >= began + 50.0


def test_a_turnstile_lets_nobody_through_once_the_circuit_is_open() -> None:
    circuit = Circuit()
    turnstile = Turnstile(Pace(concurrency=1), circuit.check)
    with turnstile.slot():
        waiting = threading.Thread(target=_expect_closed, args=(turnstile, seen := []))
        waiting.start()
        circuit.open(TargetError("it is gone"))
        waiting.join(timeout=30)
    assert [str(error) for error in seen] == ["it is gone"]


def _expect_closed(turnstile: Turnstile, seen: list[TargetError]) -> None:
    try:
        with turnstile.slot():
            pass
    except TargetError as error:
        seen.append(error)


@given(st.integers(0, 10**6))
def test_retry_after_as_date_and_as_seconds_agree(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after(date, NOW) == retry_after(str(seconds), NOW) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("soon", None),
        ("-5", None),
        ("1e3", None),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("Sun, 01 Mar 2026 12:00:10 -0000", 10.0),
        ("Sunday, 01-Mar-26 12:00:10 GMT", 10.0),
        ("Sun, 99 Mar 2026 12:00:10 GMT", None),
        (" 7 ", 7.0),
    ],
)
def test_retry_after_in_all_spellings(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True), st.one_of(st.none(), st.floats(0, 1000)))
def test_a_pause_is_bounded_and_never_shorter_than_asked(failures: int, draw: float, asked: float | None) -> None:
    patience = Patience(first_pause_s=0.5, longest_pause_s=60.0)
    pause = patience.pause(failures, draw, asked)
    grown = min(60.0, 0.5 * 2 ** min(failures - 1, 30))
    assert max(grown / 2, asked or 0.0) <= pause <= max(grown, (asked or 0.0) * 1.1)


def test_the_draws_of_the_pauses_are_keyed() -> None:
    one, same, other = keyed_draws(0, "a", 5), keyed_draws(0, "a", 5), keyed_draws(0, "a", 6)
    assert [one(n) for n in range(4)] == [same(n) for n in (0, 1, 2, 3)] != [other(n) for n in range(4)]
    assert all(0 <= one(n) < 1 for n in range(100))


class Story:
    """Sends nothing: each attempt is the next entry, an answer or something to raise."""

    def __init__(self, *entries: Any, circuit: Circuit | None = None, **patience: Any) -> None:
        self.entries, self.slept, self.book = list(entries), [], Book()
        self.trying = Trying(
            slot=nullcontext, circuit=circuit or Circuit(), patience=Patience(**patience), sleep=self.slept.append
        )

    def send(self) -> Any:
        entry = self.entries.pop(0)
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def tell(self) -> Any:
        return attempts(self.send, self.book, self.trying, lambda attempt: 0.0)


def test_every_attempt_is_charged_and_settled_once() -> None:
    story = Story(LostAnswer("a"), Refused(7.0), NotSent("c"), "the answer")
    assert story.tell() == "the answer"
    assert [line[0] for line in story.book.lines] == [
        word for end in ("lost", "refused", "not sent", "answered") for word in ("reserve", end)
    ]
    assert story.slept == [1.0, 7.0, 4.0]
    assert story.book.left == 10**6 - 3


def test_attempts_are_bounded() -> None:
    story = Story(*[LostAnswer("it fell")] * 5, attempts=3)
    with pytest.raises(TargetError, match="3 times without an answer, at last: it fell") as error:
        story.tell()
    assert story.book.ends == ["lost"] * 3 and len(story.slept) == 2
    assert "--resume" in str(error.value)


def test_a_refusal_for_longer_than_we_wait_ends_the_run() -> None:
    story = Story(Refused(3600.0), "never")
    with pytest.raises(TargetError, match="3600 s"):
        story.tell()
    assert story.slept == [] and story.book.ends == ["refused"]


@pytest.mark.parametrize("error", [TargetError("no entry"), KeyboardInterrupt(), ZeroDivisionError()])
def test_what_no_attempt_mends_is_charged_and_raised_at_once(error: BaseException) -> None:
    story = Story(error, "never")
    with pytest.raises(type(error)):
        story.tell()
    assert story.book.ends == ["lost"] and story.slept == []


def test_nothing_is_sent_once_the_budget_is_spent() -> None:
    story = Story(LostAnswer("a"), "never")
    story.book.left = 1
    with pytest.raises(Spent):
        story.tell()
    assert story.entries == ["never"]


def test_failures_in_a_row_over_several_candidates_open_the_circuit() -> None:
    circuit = Circuit(limit=4)
    Story(LostAnswer("a"), NotSent("b"), "answer", circuit=circuit).tell()  # an answer begins a new row
    Story(LostAnswer("a"), Refused(), NotSent("b"), LostAnswer("c"), "answer", circuit=circuit).tell()
    story = Story(*[NotSent("no line")] * 9, circuit=circuit)
    story.trying = Trying(
        slot=Turnstile(Pace(concurrency=1), circuit.check).slot, circuit=circuit, sleep=story.slept.append
    )
    with pytest.raises(TargetError, match="failed 4 times in a row, at last: no line"):
        story.tell()
    assert len(story.entries) == 5
    other = Story("never", circuit=circuit)
    other.trying = story.trying
    with pytest.raises(TargetError, match="4 times in a row"):
        other.tell()
    assert other.book.lines == []


def test_a_target_error_stops_the_candidates_of_other_threads() -> None:
    circuit = Circuit()
    with pytest.raises(TargetError):
        Story(TargetError("401", "cause", "change"), circuit=circuit).tell()
    with pytest.raises(TargetError, match="what to change: change"):
        circuit.check()


@given(st.lists(st.sampled_from(["lost", "refused", "not sent", "answered"]), max_size=20), st.integers(1, 6))
def test_books_balance_whatever_happens(events: list[str], budget: int) -> None:
    made: dict[str, AttemptFailure] = {"lost": LostAnswer("x"), "refused": Refused(), "not sent": NotSent("x")}
    story = Story(*(made.get(event, event) for event in events), "answered", attempts=100, first_pause_s=0.0)
    story.book = Book(budget)
    with suppress(Spent, TargetError):
        story.tell()
    reserved = [line for line in story.book.lines if line[0] == "reserve"]
    assert len(reserved) == len(story.book.ends)
    spent = sum(end != "not sent" for end in story.book.ends)
    assert spent <= budget and story.book.left == budget - spent
