"""Leases when the disk of the ledger is lost, and when the storage fails or is not what it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_doubles import (
    FILE,
    FOLDER,
    TARGET,
    FailingStorage,
    ask,
    attack,
    fast_folder,
    harness,
    lose_disk,
    sha,
    storage,
    ticket,
)
from ledger_doubles import opened_on_disk as opened

from udc_ray.metered.ledger import BudgetSpent, Ledger, LedgerError, Replay
from udc_ray.metered.reading import read_account, read_rows


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as found:
        yield found


# The disk of the ledger is lost


def test_a_lost_disk_costs_what_was_leased_and_not_mirrored(folder: Path) -> None:
    ledger = opened(folder)
    for step in range(6):
        ask(ledger, attack(step), step / 4)
    lose_disk(folder)
    ledger._database._guard.close()  # its process is gone with the disk
    ledger._database.connection.close()
    with opened(folder) as rebuilt:
        account = rebuilt.account()
        assert (account.answered, account.unknown, account.lost, account.rebuilt) == (4, 4, 4, 1)
        assert account.spent == 8  # of the total that the second lease said
        for step in range(4):
            assert rebuilt.reserve(attack(step), sha(attack(step))) == Replay(answer=step / 4)
        with pytest.raises(LedgerError, match="another candidate"):
            rebuilt.reserve(attack(0), sha("else"))
        for step in range(4, 10):
            ask(rebuilt, attack(step))
            assert rebuilt.account().spent <= (read_account(storage(folder)).leased or 0)
        assert [row.row for row in rebuilt.rows()] == list(range(1, 11))
    lose_disk(folder)  # after a close nothing is lost with the disk
    with opened(folder) as again:
        assert (again.account().answered, again.account().lost, again.account().rebuilt) == (10, 4, 2)


def test_unknown_and_refused_rows_survive_the_disk_as_such(folder: Path) -> None:
    with opened(folder) as ledger:
        first, second = ticket(ledger, attack(0)), ticket(ledger, harness(1))
        ledger.sent_many([first, second])
        ledger.lost(first, "a time-out")
        ledger.refused(second, "429", charged=False)
    lose_disk(folder)
    with opened(folder) as rebuilt:
        assert [(row.state, row.reason) for row in rebuilt.rows()] == [("unknown", "a time-out"), ("refused", "429")]
        assert (rebuilt.account().unknown, rebuilt.account().lost, rebuilt.account().refused) == (1, 0, 1)
        assert ticket(rebuilt, attack(0)).attempt == 2


def test_a_budget_below_the_lease_of_a_lost_disk_is_refused_with_figures(folder: Path) -> None:
    with opened(folder) as ledger:
        ask(ledger, attack(0))
        lose_disk(folder)
        ledger._database._guard.close()
        with pytest.raises(LedgerError, match="budget of 3 queries is below the 4"):
            opened(folder, budget=3)
        assert not (folder / "disk" / FILE).exists()
        with opened(folder, budget=4) as rebuilt:
            assert rebuilt.account().left == 0
            with pytest.raises(BudgetSpent, match="4 of 4 queries"):
                rebuilt.reserve(attack(1), sha(1))


def test_a_lowered_budget_bounds_what_a_lost_disk_can_cost(folder: Path) -> None:
    ledger = opened(folder, budget=20, lease=10)
    ask(ledger, attack(0))
    ledger._database._guard.close()  # killed: the lease of 10 stands
    ledger._database.connection.close()
    with opened(folder, budget=5):
        assert read_account(storage(folder)).leased == 1
    lose_disk(folder)
    with opened(folder, budget=5) as rebuilt:
        assert rebuilt.account().spent == 1


# The storage fails, or is not what it was


@pytest.mark.parametrize("start", ["answers", "lease"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_storage_that_fails_costs_no_answer_and_no_budget(folder: Path, when: str, start: str) -> None:
    store = FailingStorage(str(folder / "run"))
    ledger = opened(folder, store=store)
    for step in range(4):
        ask(ledger, attack(step), float(step))
    store.fails = (when, start)
    with pytest.raises(LedgerError, match="the storage is gone"):
        ledger.reserve(attack(4), sha(attack(4)))
    assert ledger.account().spent == 4
    ask(ledger, attack(4), 4.0)
    assert ledger.account().leased == 8
    lose_disk(folder)
    ledger._database._guard.close()
    ledger._database.connection.close()
    assert [row.row for row in read_rows(storage(folder))] == [1, 2, 3, 4]  # once each
    with opened(folder) as rebuilt:
        assert (rebuilt.account().answered, rebuilt.account().lost) == (4, 4)


def test_answers_whose_lease_was_not_written_outlive_two_lost_disks(folder: Path) -> None:
    store = FailingStorage(str(folder / "run"))
    ledger = opened(folder, store=store)
    for step in range(4):
        ask(ledger, attack(step), float(step))
    store.fails = ("before", "lease")
    with pytest.raises(LedgerError, match="the storage is gone"):
        ledger.reserve(attack(4), sha(attack(4)))
    for _ in range(2):
        lose_disk(folder)
        ledger._database._guard.close()
        ledger._database.connection.close()
        ledger = opened(folder)
        assert [row.answer for row in ledger.rows()][:4] == [0.0, 1.0, 2.0, 3.0]
        ask(ledger, attack(4 + ledger.account().rebuilt))
    assert (ledger.account().answered, ledger.account().lost) == (5, 4)
    ledger.close()


def test_closing_takes_back_a_lease_that_was_written_and_not_noted(folder: Path) -> None:
    opened(folder).close()
    with opened(folder) as ledger:
        ask(ledger, attack(0))
    store = FailingStorage(str(folder / "run"))
    with opened(folder, store=store) as ledger:
        store.fails = ("after", "lease")
        with pytest.raises(LedgerError, match="the storage is gone"):
            ledger.reserve(attack(1), sha(1))
    assert read_account(storage(folder)).spent == 1


def test_nothing_is_reserved_under_a_lease_that_could_not_be_replaced(folder: Path) -> None:
    store = FailingStorage(str(folder / "run"))
    with opened(folder, store=store) as ledger:
        for step in range(3):
            ask(ledger, attack(step))
        for name in store.names(FOLDER):
            store.delete(f"{FOLDER}/{name}")
        store.fails = ("before", "lease")
        with pytest.raises(LedgerError, match="the storage is gone"):
            ledger.reserve_many([(attack(step), sha(step)) for step in (3, 4)])
        ticket(ledger, attack(3))  # the old lease would have room for it, but the storage has lost that
        assert (read_account(store).leased, len(list(read_rows(store)))) == (7, 3)


def test_a_lost_storage_is_written_again(folder: Path) -> None:
    with opened(folder) as ledger:
        for step in range(6):
            ask(ledger, attack(step), float(step))
    for name in storage(folder).names(FOLDER):
        storage(folder).delete(f"{FOLDER}/{name}")
    with opened(folder) as ledger:
        ask(ledger, attack(6), 6.0)
    assert [row.answer for row in read_rows(storage(folder))] == [float(step) for step in range(7)]
    assert read_account(storage(folder)).spent == 7


def test_an_old_copy_of_the_ledger_is_refused(folder: Path) -> None:
    with opened(folder) as ledger:
        ask(ledger, attack(0))
    copy = (folder / "disk" / FILE).read_bytes()
    with opened(folder) as ledger:
        for step in range(1, 6):
            ask(ledger, attack(step))
    (folder / "disk" / FILE).write_bytes(copy)
    with pytest.raises(LedgerError, match="an old copy, or another ledger is at work"):
        opened(folder)


def test_two_ledgers_on_one_storage_do_not_both_go_on(folder: Path) -> None:
    first = opened(folder)
    ask(first, attack(0))
    second = Ledger(folder / "elsewhere" / FILE, TARGET, 20, storage(folder), 4)  # takes the first's lease for lost
    ask(second, attack(1))
    for step in range(2, 5):
        ask(first, attack(step))  # what its lease allows
    with pytest.raises(LedgerError, match="another ledger is at work"):
        first.reserve(attack(5), sha(attack(5)))
    assert second.account().spent == 5
    second.close()
    with pytest.raises(LedgerError, match="another ledger is at work"):
        first.close()


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("lease-000009.json", b"{"),
        ("lease-000009.json", b"[]"),
        ("lease-000009.json", b'{"schema_version": 2}'),
        ("lease-000009.json", b'{"schema_version": 1}'),
        ("answers-000001.parquet", b"PAR1"),
    ],
)
def test_damaged_leases_are_told_in_one_message(folder: Path, file: str, data: bytes) -> None:
    with opened(folder) as ledger:
        ask(ledger, attack(0))
    lose_disk(folder)
    storage(folder).write(f"{FOLDER}/{file}", data)
    with pytest.raises(LedgerError, match=f"{file} cannot be read"):
        opened(folder)


def test_leases_that_do_not_fit_the_answers_are_refused(folder: Path) -> None:
    with opened(folder) as ledger:
        for step in range(5):
            ask(ledger, attack(step))
    names = [name for name in storage(folder).names(FOLDER) if name.startswith("lease")]
    for name in names[1:]:
        storage(folder).delete(f"{FOLDER}/{name}")
    lose_disk(folder)
    with pytest.raises(LedgerError, match="5 queries .* its last lease allows 4"):
        opened(folder)
