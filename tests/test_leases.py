from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_doubles import FILE, SAMPLE, TARGET, FailingStorage, ask, attack, fast_folder, harness, sha, ticket

from udc_ray.metered.account import Account, Counts, Tally
from udc_ray.metered.leases import decode_rows, encode_rows, recorded_targets, target_hash
from udc_ray.metered.ledger import BudgetSpent, Ledger, LedgerError, Replay
from udc_ray.metered.reading import read_account, read_rows
from udc_ray.metered.rows import Answer, decode_answer, encode_answer
from udc_ray.storage import Storage

FOLDER = f"ledger/{target_hash(TARGET)}"


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as found:
        yield found


def storage(folder: Path) -> Storage:
    return Storage(str(folder / "run"))


def opened(folder: Path, *, budget: int | None = 20, lease: int = 4, store: Storage | None = None) -> Ledger:
    return Ledger(folder / "disk" / FILE, TARGET, budget, storage(folder) if store is None else store, lease)


def lose_disk(folder: Path) -> None:
    for path in (folder / "disk").iterdir():
        path.unlink()


def same(a: Answer, b: Answer) -> bool:
    """Same kind and same bits."""
    return type(a) is type(b) and np.asarray(a).tobytes() == np.asarray(b).tobytes() and np.shape(a) == np.shape(b)


# Answers as bytes


@given(st.one_of(st.floats(), st.booleans(), st.lists(st.lists(st.floats(), min_size=3, max_size=3), max_size=4)))
def test_answers_come_back_bit_by_bit(answer: Answer) -> None:
    assert same(decode_answer(encode_answer(answer)), answer)


@pytest.mark.parametrize(
    "values", [np.zeros((0, 3)), np.array([[0.1, -0.0], [math.nan, math.inf]]), np.array([5e-324]), np.arange(6.0)[::2]]
)
def test_arrays_come_back_bit_by_bit(values: np.ndarray) -> None:
    found = decode_answer(encode_answer(values))
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    assert same(found, values)
    found += 1  # writable, as a machine may work on it


def test_the_form_of_the_bytes_is_as_documented() -> None:
    """Little-endian IEEE 754, so that a ledger moves between machines."""
    assert encode_answer(1.0) == b"f" + bytes.fromhex("000000000000f03f")
    assert encode_answer(True) == b"b\x01"
    assert encode_answer([[1.0]]) == b"l\x02" + (b"\x01" + b"\x00" * 7) * 2 + bytes.fromhex("000000000000f03f")


def test_whole_numbers_come_back_as_equal_floats() -> None:
    assert same(decode_answer(encode_answer(3)), 3.0)
    assert same(decode_answer(encode_answer([[1, 2]])), [[1.0, 2.0]])
    assert same(decode_answer(encode_answer(np.float32(0.1))), float(np.float32(0.1)))
    assert same(decode_answer(encode_answer(np.bool_(False))), False)


@pytest.mark.parametrize(
    "answer",
    ["1.0", None, 2**53 + 1, [[1.0], [1.0, 2.0]], [[True]], [["a"]], [[2**53 + 1]], np.zeros(2, np.float32), 1j],
)
def test_what_would_lose_something_is_no_answer(answer: Answer) -> None:
    with pytest.raises(TypeError):
        encode_answer(answer)


@given(st.binary(max_size=40))
def test_foreign_bytes_are_no_answer(data: bytes) -> None:
    try:
        found = decode_answer(data)
    except ValueError:
        return
    assert encode_answer(found)[1:] == data[1:] or isinstance(found, bool)


# Rows and accounts as files


def test_rows_come_back_as_they_were() -> None:
    rows = [
        SAMPLE,
        replace(SAMPLE, row=8, answer=[[0.1, 2.0]]),
        replace(SAMPLE, row=9, answer=None, state="unknown", reason="a time-out", key=harness(3)),
    ]
    assert decode_rows(encode_rows(rows)) == rows


def test_an_account_adds_up_and_comes_back_as_it_was() -> None:
    parts = {
        ("a", "attack"): Counts(answered=5, unknown=1, in_flight=2, reserved=1, refused=3),
        ("a", "harness"): Counts(answered=2),
        ("b", "attack"): Counts(unknown=4),
    }
    account = Account(target=TARGET, budget=30, parts=parts, lost=6, outstanding=1, lease=3, leased=25, rebuilt=1)
    assert (account.answered, account.unknown, account.in_flight, account.refused) == (7, 11, 3, 3)
    assert account.spent == account.attack + account.harness + account.lost + account.outstanding == 21
    assert (account.attack, account.harness, account.left) == (12, 2, 8)
    assert account.by_cell == {
        "a": Counts(answered=7, unknown=1, in_flight=2, reserved=1, refused=3),
        "b": Counts(unknown=4),
    }
    assert Account.from_document(json.loads(json.dumps(account.document()))) == account
    assert pickle.loads(pickle.dumps(account)) == account


def test_a_tally_follows_moves_as_a_sum_would() -> None:
    tally = Tally([("a", "attack", "answered", 4), ("a", "attack", "sent", 2), ("b", "harness", "unknown", 1)])
    tally.move(("a", "attack"), None, "reserved")
    tally.move(("a", "attack"), "sent", "answered")
    tally.move(("a", "attack"), "sent", "refused")
    tally.move(("b", "harness"), "unknown", None)
    assert tally.parts() == {("a", "attack"): Counts(answered=5, reserved=1, refused=1)}
    assert (tally.settled, tally.spent, tally.held) == (5, 5, 6)


# Leases


def test_a_lease_lies_in_the_storage_before_its_first_query(folder: Path) -> None:
    with opened(folder) as ledger:
        assert storage(folder).names(FOLDER) == []
        ticket(ledger, attack(0))
        assert storage(folder).names(FOLDER) == ["lease-000001.json"]
        assert read_account(storage(folder)).leased == 4


def test_a_lease_comes_with_the_answers_since_the_last_one(folder: Path) -> None:
    with opened(folder) as ledger:
        for step in range(9):
            ask(ledger, attack(step), step / 4)
        names = [f"answers-{n:06d}.parquet" for n in (2, 3)] + [f"lease-{n:06d}.json" for n in (1, 2, 3)]
        assert storage(folder).names(FOLDER) == names
        assert [row.answer for row in read_rows(storage(folder))] == [step / 4 for step in range(8)]
        assert [row.lease for row in ledger.rows()] == [1, 1, 1, 1, 2, 2, 2, 2, 3]
        account = read_account(storage(folder))
        assert (account.answered, account.outstanding, account.spent, account.leased) == (8, 4, 12, 12)


def test_a_lease_never_allows_more_than_the_budget(folder: Path) -> None:
    with opened(folder, budget=6) as ledger:
        for step in range(6):
            ask(ledger, attack(step))
            assert (read_account(storage(folder)).leased or 0) <= 6


def test_what_is_in_flight_counts_against_the_new_lease(folder: Path) -> None:
    with opened(folder) as ledger:
        flying = [ticket(ledger, attack(step)) for step in range(3)]
        ledger.sent_many(flying)
        ask(ledger, attack(3))
        ask(ledger, attack(4))  # 3 under way, 1 answered: the new total is 1 + 4, so there is room for one
        assert ledger.account().leased == 5
        known = read_account(storage(folder))
        assert (known.answered, known.in_flight, known.outstanding, known.attack) == (1, 4, 4, 1)
        ticket(ledger, attack(5))
        with pytest.raises(LedgerError, match="4 queries are under way, 1 more are asked for, and a lease is of 4"):
            ledger.reserve(attack(6), sha(6))
        ledger.answered(flying[0], 1.0)
        ticket(ledger, attack(6))


def test_closing_takes_back_what_is_not_used_and_mirrors_the_rest(folder: Path) -> None:
    with opened(folder) as ledger:
        for step in range(5):
            ask(ledger, attack(step))
        ticket(ledger, attack(5))
    account = read_account(storage(folder))
    assert (account.answered, account.unknown, account.outstanding, account.leased) == (5, 0, 0, 5)
    names = storage(folder).names(FOLDER)
    with opened(folder):
        pass
    assert storage(folder).names(FOLDER) == names  # nothing new, nothing written


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


# Reading without a lock


def test_the_storage_of_several_targets_is_read_by_target(folder: Path) -> None:
    storage(folder).write("ledger/canary.npz", b"")  # others keep files there too
    assert recorded_targets(storage(folder)) == []
    with pytest.raises(LedgerError, match="no ledger"):
        read_account(storage(folder))
    for n, target in enumerate(("http://b/", "http://a/")):
        with Ledger(folder / f"{n}.sqlite", target, None, storage(folder)) as ledger:
            for step in range(n + 1):
                ask(ledger, attack(step))
    assert recorded_targets(storage(folder)) == ["http://a/", "http://b/"]
    assert read_account(storage(folder), "http://a/").spent == 2
    with pytest.raises(LedgerError, match="2 targets\n.*http://a/, http://b/"):
        list(read_rows(storage(folder)))
    with pytest.raises(LedgerError, match="no ledger"):
        read_account(storage(folder), "http://c/")


def test_nothing_is_leased_without_a_storage(folder: Path) -> None:
    with Ledger(folder / FILE, TARGET, 300, None, lease=2) as ledger:
        flying = [ticket(ledger, attack(step)) for step in range(300)]
        ledger.sent_many(flying)
        assert (ledger.account().leased, ledger.account().lease, ledger.account().left) == (None, 0, 0)
