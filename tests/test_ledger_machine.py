"""The ledger of queries in any order of everything that can happen to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ledger_doubles import FILE, TARGET, Counter, FailingStorage, WritesTooLate, fast_folder, killed, sha

from udc_ray.metered.ledger import Answer, BudgetSpent, Ledger, LedgerError, QueryKey, Replay, Ticket
from udc_ray.metered.reading import read_account


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
