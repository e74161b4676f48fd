"""Leases in the storage, and answers and accounts as bytes."""

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
from ledger_doubles import FILE, FOLDER, SAMPLE, TARGET, ask, attack, fast_folder, harness, sha, storage, ticket
from ledger_doubles import opened_on_disk as opened

from udc_ray.metered.account import Account, Counts, Tally
from udc_ray.metered.leases import decode_rows, encode_rows, recorded_targets
from udc_ray.metered.ledger import Ledger, LedgerError
from udc_ray.metered.reading import read_account, read_rows
from udc_ray.metered.rows import Answer, decode_answer, encode_answer


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as found:
        yield found


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
