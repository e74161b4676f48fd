from __future__ import annotations

import itertools
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ledger_doubles import (
    FILE,
    TARGET,
    Counter,
    FailingStorage,
    WritesTooLate,
    ask,
    attack,
    fast_folder,
    harness,
    killed,
    sha,
    ticket,
)

from udc_ray.errors import RunDirectoryError
from udc_ray.metered.ledger import Answer, BudgetSpent, Ledger, LedgerError, QueryKey, Replay, Ticket
from udc_ray.metered.reading import read_account, read_rows
from udc_ray.storage import Storage


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as found:
        yield found


def opened(folder: Path, budget: int | None = 10, *, target: str = TARGET, **options: Any) -> Ledger:
    return Ledger(folder / FILE, target, budget, Storage(str(folder / "run")), **options)


def states(ledger: Ledger) -> list[str]:
    return [row.state for row in ledger.rows()]


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


# Crashes and damage


def test_after_a_crash_what_was_sent_is_unknown_and_what_was_not_is_released(folder: Path) -> None:
    with opened(folder) as ledger:
        ask(ledger, attack(0))
        ledger.sent(ticket(ledger, attack(1)))
        ticket(ledger, attack(2))
        ledger.sent(ticket(ledger, attack(3)))  # commits the reservation before it too
        ticket(ledger, attack(4))
        path = killed(ledger, folder / "killed")
    assert read_account(path).reserved == 1
    with Ledger(path, TARGET, 10, Storage(str(folder / "run"))) as again:
        assert states(again) == ["answered", "unknown", "unknown"]
        assert again.account().spent == 3
        assert "killed" in (again.rows()[1].reason or "")
        assert ticket(again, attack(1)).attempt == 2


def test_a_second_writer_is_refused_and_a_reader_is_not(folder: Path) -> None:
    with opened(folder) as ledger:
        ask(ledger, attack())
        code = (
            "import sys; from pathlib import Path; from udc_ray.metered.ledger import Ledger, LedgerError\n"
            "from udc_ray.metered.reading import read_account\n"
            "path = Path(sys.argv[1]); print(read_account(path).answered)\n"
            f"try: Ledger(path, {TARGET!r}, 10, None)\n"
            "except LedgerError as error: print(error.what)"
        )
        command = [sys.executable, "-c", code, str(folder / FILE)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["1", f"{folder / FILE} is being written by another process"]
        with pytest.raises(LedgerError, match="another process"):
            opened(folder)
        ask(ledger, attack(1))
    opened(folder).close()


def test_a_ledger_belongs_to_one_target(folder: Path) -> None:
    opened(folder).close()
    with pytest.raises(LedgerError, match="is the ledger of .* not of http://other/"):
        opened(folder, target="http://other/")
    opened(folder).close()  # the refused one holds nothing


def test_a_closed_ledger_closes_again_and_does_nothing(folder: Path) -> None:
    ledger = opened(folder)
    t = ticket(ledger, attack())
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.sent(t)


@pytest.mark.parametrize("damage", ["empty", "text", "head", "pages"])
def test_a_damaged_ledger_is_refused_with_a_way_out(folder: Path, damage: str) -> None:
    with opened(folder, budget=400) as ledger:
        for step in range(200):
            ticket(ledger, attack(step))
        ledger.sent(ticket(ledger, attack(200)))
        rows = [(ticket(ledger, attack(step)), 0.5) for step in range(201, 210)]
        ledger.sent_many([t for t, _ in rows])
        ledger.answered_many(rows)
    path = folder / FILE
    data = bytearray(path.read_bytes())
    if damage == "pages":
        data[4096 * 2 :] = b"\xff" * (len(data) - 4096 * 2)
    path.write_bytes({"empty": b"", "text": b"not a database " * 300, "pages": bytes(data)}.get(damage, bytes(data)))
    if damage == "head":
        connection = sqlite3.connect(path)
        connection.execute("DELETE FROM ledger")
        connection.commit()
        connection.close()
    for _ in range(2):  # the first refusal leaves nothing behind
        with pytest.raises(LedgerError, match="is damaged") as caught:
            opened(folder, budget=400)
        assert "remove it" in caught.value.change
    path.unlink()
    with opened(folder, budget=400) as ledger:  # as after the loss of a disk
        assert (ledger.account().answered, ledger.account().spent) == (9, 10)


def test_a_ledger_of_another_version_is_refused(folder: Path) -> None:
    opened(folder).close()
    connection = sqlite3.connect(folder / FILE)
    connection.execute("UPDATE ledger SET schema_version = 2")
    connection.commit()
    connection.close()
    for act in (lambda: opened(folder), lambda: read_account(folder / FILE)):
        with pytest.raises(LedgerError, match="schema 2"):
            act()


def test_a_missing_file_is_not_made_by_reading(folder: Path) -> None:
    with pytest.raises(LedgerError):
        read_account(folder / FILE)
    assert not (folder / FILE).exists()


def test_the_log_of_a_removed_file_is_not_played_into_the_next(folder: Path) -> None:
    ledger = opened(folder)
    ledger.sent(ticket(ledger, attack()))
    path = killed(ledger, folder / "killed")
    assert path.with_name(f"{FILE}-wal").stat().st_size > 0
    path.unlink()
    shutil.rmtree(folder / "run")
    with Ledger(path, TARGET, 10, Storage(str(folder / "run"))) as fresh:
        assert fresh.account().spent == 0


def test_a_folder_that_cannot_be_made_is_told(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(folder / "file" / FILE, TARGET, 10, None)


def test_a_full_disk_stops_the_send_and_leaves_the_account_right(folder: Path) -> None:
    with Ledger(folder / FILE, TARGET, None, None) as ledger:
        connection = ledger._database.connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        held: list[Ticket] = []
        with pytest.raises(LedgerError, match="full"):
            for step in range(1000):
                held.append(ticket(ledger, attack(step)))
        before = ledger.account()
        assert before.spent == 0
        connection.execute("PRAGMA max_page_count = 100000")
        survivors = {row.row for row in ledger.rows()}
        assert before.reserved == len(survivors)
        for t in held:
            if t.row not in survivors:
                with pytest.raises(LedgerError, match="not reserved any more"):
                    ledger.sent(t)
        ask(ledger, attack(2000))
        assert ledger.account().answered == 1


class _Refusing:
    """A connection whose next commit fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self.refuses = connection, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if statement == "COMMIT" and self.refuses:
            self.refuses = False
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *values)


def test_a_commit_that_fails_is_told_to_the_one_who_wants_to_send(folder: Path) -> None:
    with opened(folder) as ledger:
        ask(ledger, attack(0))
        t = ticket(ledger, attack(1))
        database: Any = ledger._database
        database.connection = _Refusing(database.connection)
        with pytest.raises(LedgerError, match="disk I/O error"):
            ledger.sent(t)
        assert (states(ledger), ledger.account().spent) == (["answered"], 1)
        ask(ledger, attack(1))
        assert ledger.account().spent == 2


def test_what_could_not_be_read_after_a_failure_is_read_before_the_next_query(folder: Path) -> None:
    with opened(folder, budget=2) as ledger:
        ask(ledger, attack(0))
        t = ticket(ledger, attack(1))
        ledger.sent(t)
        database: Any = ledger._database
        read_again, connection = database.rolled_back, database.connection

        def fails() -> None:
            raise sqlite3.OperationalError("disk I/O error")

        database.rolled_back, database.connection = fails, _Refusing(connection)
        for _ in range(2):
            with pytest.raises(LedgerError, match="disk I/O error"):
                ledger.not_sent(t, "no connection")  # the tally has moved, the file has not
        database.rolled_back, database.connection = read_again, connection
        with pytest.raises(BudgetSpent):
            ledger.reserve(attack(2), sha(2))
        assert ledger.account().spent == 2


def test_a_commit_that_fails_is_told_to_all_that_share_it(folder: Path) -> None:
    with opened(folder) as ledger:
        tickets, failures = [ticket(ledger, attack(step)) for step in range(2)], list[str]()

        def send(t: Ticket) -> None:
            try:
                ledger.sent(t)
            except LedgerError as error:
                failures.append(error.what)

        database: Any = ledger._database
        threads = [threading.Thread(target=send, args=(t,)) for t in tickets]
        with database._turn:  # a commit is under way, so the next one is for both
            for thread in threads:
                thread.start()
            while ledger.account().in_flight < 2:
                time.sleep(0.001)
            database.connection = _Refusing(database.connection)
        for thread in threads:
            thread.join()
        assert len(failures) == 2
        assert ledger.account().spent == 0


# Any order of everything


class Life(RuleBasedStateMachine):
    """Any order of asking, sending, answering, kills, lost disks and failing storage, against a counter."""

    kind: type[Ledger] = Ledger
    LEASE = 4

    def __init__(self) -> None:
        super().__init__()
        self._context = fast_folder()
        self.folder = self._context.__enter__()
        self.counter = Counter(self.folder / "counter")
        self.storage = FailingStorage(str(self.folder / "run"))
        self.budget, self.highest, self.openings = 12, 12, 0
        self.may_be_unknown = 0
        self.answers: dict[QueryKey, Answer] = {}
        self.forget()
        self.path = self.folder / "0" / FILE
        self.open()

    def forget(self) -> None:
        self.reserved: dict[QueryKey, Ticket] = {}
        self.under_way: dict[QueryKey, Ticket] = {}
        self.called: dict[QueryKey, float] = {}

    def open(self) -> None:
        self.ledger = self.kind(self.path, TARGET, self.budget, self.storage, self.LEASE, 2)

    def teardown(self) -> None:
        self.storage.fails = None
        self.ledger.close()
        self._context.__exit__(None, None, None)

    @rule(step=st.integers(0, 30), purpose=st.sampled_from(["attack", "harness"]))
    def reserve(self, step: int, purpose: Any) -> None:
        key = QueryKey(purpose=purpose, cell="c", image_id="i", step=step, replay=True)
        before = self.ledger.account()
        superseded = self.reserved.pop(key, None)
        if self.under_way.pop(key, None) is not None:
            self.may_be_unknown += 1
            self.called.pop(key, None)
        held = before.spent + before.reserved - (superseded is not None)
        try:
            found = self.ledger.reserve(key, sha(key))
        except BudgetSpent:
            assert held >= self.budget - (2 if purpose == "attack" else 0)
        except LedgerError as error:
            if "storage is gone" in error.what:
                self.reserved = {k: t for k, t in self.reserved.items() if k != key}
            else:
                assert len(self.reserved) + len(self.under_way) + 1 > self.LEASE, error
        else:
            if isinstance(found, Replay):
                assert found.answer == self.answers[key]
            else:
                assert held < self.budget - (2 if purpose == "attack" else 0)
                self.reserved[key] = found

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def sent(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.reserved)))
        self.ledger.sent(self.reserved[key])
        self.under_way[key] = self.reserved.pop(key)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.ledger.release(self.reserved.pop(data.draw(st.sampled_from(list(self.reserved)))))

    @precondition(lambda self: self.under_way.keys() - self.called.keys())
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([k for k in self.under_way if k not in self.called]))
        self.called[key] = self.counter.call(sha(key))

    @precondition(lambda self: self.called)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.called)))
        self.answers[key] = self.called.pop(key)
        self.ledger.answered(self.under_way.pop(key), self.answers[key])

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), refused=st.booleans())
    def give_up(self, data: st.DataObject, refused: bool) -> None:
        key = data.draw(st.sampled_from(list(self.under_way)))
        t = self.under_way.pop(key)
        if refused and key not in self.called:
            self.ledger.refused(t, "429", charged=False)
            return
        self.called.pop(key, None)
        self.may_be_unknown += 1
        self.ledger.lost(t, "a time-out")

    @rule(lost=st.booleans())
    def kill(self, lost: bool) -> None:
        self.openings += 1
        self.may_be_unknown += self.LEASE if lost else len(self.under_way)
        self.path = killed(self.ledger, self.folder / str(self.openings))
        if lost:
            self.path.unlink()
        self.forget()
        self.open()

    @rule(more=st.integers(-30, 10))
    def close(self, more: int) -> None:
        self.storage.fails = None
        spent = self.ledger.account().spent
        self.ledger.close()
        self.may_be_unknown += len(self.under_way)
        self.forget()
        try:
            self.budget, before = self.budget + more, self.budget
            self.open()
            assert self.budget >= spent
        except LedgerError:
            assert self.budget < spent
            self.budget = before
            self.open()
        self.highest = max(self.highest, self.budget)

    @rule(when=st.sampled_from(["before", "after"]), start=st.sampled_from(["answers", "lease"]))
    def storage_fails_next(self, when: str, start: str) -> None:
        self.storage.fails = (when, start)

    @invariant()
    def the_account_holds(self) -> None:
        account = self.ledger.account()
        assert account.answered <= self.counter.count <= account.spent
        assert account.spent + account.reserved <= self.budget
        assert account.unknown <= self.may_be_unknown
        assert account.in_flight == len(self.under_way)
        assert account.reserved == len(self.reserved)
        assert account.spent == account.attack + account.harness + account.lost
        if account.leased is not None:
            assert account.spent + account.reserved <= account.leased
            there = read_account(self.storage)
            assert self.counter.count <= there.spent <= self.highest


class LateLife(Life):
    """The same with the planted defect; a kill between a call and its answer must show it."""

    kind = WritesTooLate


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=20, stateful_step_count=40)


def test_the_planted_defect_breaks_the_account() -> None:
    life = LateLife()
    life.reserve(0, "attack")
    (key,) = life.reserved
    life.ledger.sent(life.reserved[key])
    life.under_way[key] = life.reserved.pop(key)
    life.called[key] = life.counter.call(sha(key))
    life.kill(lost=False)
    with pytest.raises(AssertionError):
        life.the_account_holds()
    life.teardown()


def test_errors_are_user_errors_of_one_message() -> None:
    error = LedgerError("what", "cause", "change")
    assert str(error) == "what\nlikely cause: cause\nwhat to change: change"
    assert not isinstance(error, RunDirectoryError)
