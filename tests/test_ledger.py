"""The ledger of queries: the life of a query, and budgets."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ledger_doubles import (
    FILE,
    TARGET,
    Counter,
    ask,
    attack,
    fast_folder,
    harness,
    opened,
    sha,
    states,
    ticket,
)

from udc_ray.errors import RunDirectoryError
from udc_ray.metered.ledger import Answer, BudgetSpent, Ledger, LedgerError, Replay, Ticket
from udc_ray.metered.reading import read_account, read_rows


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as found:
        yield found


# The life of a query


def test_a_query_is_reserved_sent_and_answered(folder: Path) -> None:
    with opened(folder) as ledger:
        t = ticket(ledger, attack(3, image="x/y"), sha("bytes"))
        assert (states(ledger), ledger.account().reserved, ledger.account().spent) == (["reserved"], 1, 0)
        ledger.sent(t)
        assert (states(ledger), ledger.account().in_flight, ledger.account().spent) == (["sent"], 1, 1)
        ledger.answered(t, [[0.5, 1.5]])
        (row,) = ledger.rows()
        assert (row.state, row.answer, row.attempt, row.candidate) == ("answered", [[0.5, 1.5]], 1, sha("bytes"))
        assert row.key == attack(3, image="x/y")
        assert row.reserved_at <= (row.sent_at or 0) <= (row.settled_at or 0)
        account = ledger.account()
        assert (account.answered, account.unknown, account.in_flight, account.left) == (1, 0, 0, 9)


def test_what_is_sent_is_on_the_disk_before_it_is_sent(folder: Path) -> None:
    """Another process sees it, and power loss keeps it: that is what synchronous=FULL in WAL mode is for."""
    with opened(folder) as ledger:
        connection = ledger._database.connection
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        t = ticket(ledger, attack())
        assert read_account(folder / FILE).reserved == 0  # not committed yet, and that costs nothing
        ledger.sent(t)
        assert read_account(folder / FILE).in_flight == 1
        ledger.answered(t, 1.0)
        assert [row.answer for row in read_rows(folder / FILE)] == [1.0]


def test_an_answered_query_is_never_sent_again(folder: Path) -> None:
    answers: list[Answer] = [0.25, True, [[1.0, -0.0]]]
    with opened(folder) as ledger:
        for step, answer in enumerate(answers):
            ask(ledger, attack(step), answer)
    with opened(folder) as ledger:
        for step, answer in enumerate(answers):
            assert ledger.reserve(attack(step), sha(attack(step))) == Replay(answer=answer)
        assert ledger.account().spent == 3


def test_an_array_is_replayed_as_an_array(folder: Path) -> None:
    with opened(folder) as ledger:
        ask(ledger, attack(), np.array([[0.1, 0.2]]))
        found = ledger.reserve(attack(), sha(attack()))
        assert isinstance(found, Replay)
        assert isinstance(found.answer, np.ndarray)
        assert found.answer.tolist() == [[0.1, 0.2]]


@pytest.mark.parametrize("state", ["reserved", "sent", "answered", "unknown"])
def test_a_key_with_another_candidate_is_another_attack(folder: Path, state: str) -> None:
    with opened(folder) as ledger:
        t = ticket(ledger, attack(), sha("a"))
        if state != "reserved":
            ledger.sent(t)
        if state == "answered":
            ledger.answered(t, 1.0)
        if state == "unknown":
            ledger.lost(t, "a time-out")
        with pytest.raises(LedgerError, match="the attack is not what it was"):
            ledger.reserve_many([(attack(1), sha(1)), (attack(), sha("b"))])
        assert states(ledger) == [state]  # all or nothing


def test_a_lost_query_is_charged_again(folder: Path) -> None:
    with opened(folder) as ledger:
        for attempt in (1, 2, 3):
            t = ticket(ledger, attack())
            assert t.attempt == attempt
            ledger.sent(t)
            ledger.lost(t, "a time-out") if attempt < 3 else ledger.answered(t, 1.0)
        account = ledger.account()
        assert (account.answered, account.unknown, account.spent) == (1, 2, 3)
        assert ledger.reserve(attack(), sha(attack())) == Replay(answer=1.0)


@pytest.mark.parametrize(("charged", "state", "spent"), [(True, "unknown", 1), (False, "refused", 0)])
def test_a_refusal_is_charged_unless_the_owner_says_that_it_is_free(
    folder: Path, charged: bool, state: str, spent: int
) -> None:
    with opened(folder) as ledger:
        t = ticket(ledger, attack())
        ledger.sent(t)
        ledger.refused(t, "429", charged)
        assert (states(ledger), ledger.account().spent) == ([state], spent)
        assert ticket(ledger, attack()).attempt == 2


def test_what_never_left_this_machine_is_not_spent(folder: Path) -> None:
    with opened(folder, budget=1) as ledger:
        first = ticket(ledger, attack(0))
        ledger.release(first)
        second = ticket(ledger, attack(1))
        ledger.sent(second)
        ledger.not_sent(second, "no connection")
        assert (states(ledger), ledger.account().left) == (["refused"], 1)
        with pytest.raises(LedgerError, match="not reserved any more"):
            ledger.sent(first)


def test_harness_queries_are_sent_anew_unless_they_say_otherwise(folder: Path) -> None:
    with opened(folder) as ledger:
        ask(ledger, harness())
        assert ticket(ledger, harness(), sha("another canary")).attempt == 2
        with pytest.raises(LedgerError, match="another candidate"):
            ledger.reserve(harness(replay=True), sha("a third one"))
    with opened(folder) as ledger:
        ask(ledger, harness(1, replay=True), 2.0)
        assert ledger.reserve(harness(1, replay=True), sha(harness(1))) == Replay(answer=2.0)


def test_a_query_asked_anew_takes_the_place_of_one_under_way(folder: Path) -> None:
    """Whoever held the ticket is dead, or it would not be asked again; a late answer changes nothing."""
    with opened(folder) as ledger:
        first = ticket(ledger, attack())
        second = ticket(ledger, attack())
        with pytest.raises(LedgerError, match="not reserved any more"):
            ledger.sent(first)
        ledger.sent(second)
        third = ticket(ledger, attack())
        with pytest.raises(LedgerError, match="not sent any more"):
            ledger.answered(second, 1.0)
        ledger.sent(third)
        ledger.answered(third, 2.0)
        assert (ledger.account().answered, ledger.account().unknown) == (1, 1)


def test_a_ticket_serves_once(folder: Path) -> None:
    with opened(folder) as ledger:
        t = ticket(ledger, attack())
        for act in (lambda: ledger.answered(t, 1.0), lambda: ledger.lost(t, "x"), lambda: ledger.refused(t, "x", True)):
            with pytest.raises(LedgerError, match="not sent any more"):
                act()
        ledger.sent(t)
        for act in (lambda: ledger.sent(t), lambda: ledger.release(t)):
            with pytest.raises(LedgerError, match="not reserved any more"):
                act()
        assert ledger.account().spent == 1


def test_a_ticket_of_another_opening_is_refused(folder: Path) -> None:
    ledger = opened(folder)
    old = ticket(ledger, attack())
    ledger.close()
    with opened(folder) as ledger:
        new = ticket(ledger, attack(1))
        assert new.row == old.row  # the same number, of another query
        with pytest.raises(LedgerError, match="the ledger was opened anew"):
            ledger.sent(old)
        assert states(ledger) == ["reserved"]


def test_several_are_sent_all_or_none(folder: Path) -> None:
    with opened(folder) as ledger:
        found = ledger.reserve_many([(attack(step), sha(step)) for step in range(3)])
        tickets = [t for t in found if isinstance(t, Ticket)]
        ledger.release(tickets[2])
        with pytest.raises(LedgerError):
            ledger.sent_many(tickets)
        assert (states(ledger), ledger.account().in_flight) == (["reserved", "reserved"], 0)
        ledger.sent_many(tickets[:2])
        ledger.answered_many([(t, 1.0) for t in tickets[:2]])
        assert ledger.account().answered == 2
        ledger.sent_many([])


def test_a_secret_in_a_reason_is_masked(folder: Path) -> None:
    with opened(folder) as ledger:
        t = ticket(ledger, attack())
        ledger.sent(t)
        ledger.lost(t, "HTTP 500: Authorization: Bearer abcdef")
        assert "abcdef" not in (ledger.rows()[0].reason or "")
    with pytest.raises(LedgerError, match="holds a secret"):
        opened(folder, target="http://me:secret@host/restore")


# Budgets


def test_a_budget_is_never_exceeded_by_one(folder: Path) -> None:
    with opened(folder, budget=3) as ledger:
        for step in range(3):
            ask(ledger, attack(step))
        with pytest.raises(BudgetSpent) as caught:
            ledger.reserve(attack(3), sha(3))
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.spent, error.reserved, error.limit) == (3, 0, 3)
        assert str(error) == f"3 of 3 queries to {TARGET} are spent and 0 reserved"
        assert ledger.reserve(attack(0), sha(attack(0))) == Replay(answer=0.5)  # costs nothing


def test_what_is_reserved_counts(folder: Path) -> None:
    with opened(folder, budget=2) as ledger:
        found = ledger.reserve_many([(attack(step), sha(step)) for step in range(4)])
        assert [type(x) for x in found] == [Ticket, Ticket, BudgetSpent, BudgetSpent]
        assert isinstance(found[0], Ticket)
        ledger.release(found[0])
        ticket(ledger, attack(2))


def test_attacks_leave_the_harness_its_part(folder: Path) -> None:
    with opened(folder, budget=4, reserve_for_harness=2) as ledger:
        ask(ledger, harness(0))
        ask(ledger, attack(0))
        with pytest.raises(BudgetSpent, match="2 are kept"):
            ledger.reserve(attack(1), sha(1))
        ledger.reserve_for_harness = 1
        ask(ledger, attack(1))
        ask(ledger, harness(1))
        with pytest.raises(BudgetSpent):
            ledger.reserve(harness(2), sha(2))
        account = ledger.account()
        assert (account.attack, account.harness, account.spent) == (2, 2, 4)


def test_a_budget_can_be_raised_and_lowered_to_what_is_spent(folder: Path) -> None:
    with opened(folder, budget=2) as ledger:
        ask(ledger, attack(0))
        ask(ledger, attack(1))
    with pytest.raises(LedgerError, match="a budget of 1 queries is below the 2"):
        opened(folder, budget=1)
    with opened(folder, budget=2) as ledger, pytest.raises(BudgetSpent):
        ledger.reserve(attack(2), sha(2))
    with opened(folder, budget=3) as ledger:
        ask(ledger, attack(2))
        assert read_account(folder / FILE).budget == 3
    with opened(folder, budget=None) as ledger:
        assert ledger.account().left is None


@pytest.mark.parametrize("options", [{"lease": 0}, {"reserve_for_harness": -1}, {"budget": -1}])
def test_numbers_that_make_no_sense_are_refused(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(LedgerError, match="too small"):
        opened(folder, **options)


def test_threads_together_never_exceed(folder: Path) -> None:
    counter, steps, failures = Counter(folder / "counter"), itertools.count(), list[BaseException]()

    def work(ledger: Ledger, number: int) -> None:
        try:
            while True:
                key = attack(next(steps), image=f"im{number}")
                t = ticket(ledger, key)
                ledger.sent(t)
                value = counter.call(t.candidate)
                if t.row % 5 == 0:
                    ledger.lost(t, "a time-out")
                else:
                    ledger.answered(t, value)
        except BudgetSpent:
            pass
        except BaseException as error:  # a thread's error would be lost
            failures.append(error)

    with opened(folder, budget=150, lease=20) as ledger:
        threads = [threading.Thread(target=work, args=(ledger, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        account = ledger.account()
        assert failures == []
        assert (counter.count, account.spent, account.in_flight, account.unknown) == (150, 150, 0, 30)
        counted = [row.state for row in read_rows(folder / FILE)]
        assert (counted.count("answered"), counted.count("unknown")) == (120, 30)


def test_errors_are_user_errors_of_one_message() -> None:
    error = LedgerError("what", "cause", "change")
    assert str(error) == "what\nlikely cause: cause\nwhat to change: change"
    assert not isinstance(error, RunDirectoryError)
