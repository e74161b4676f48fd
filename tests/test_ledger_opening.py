"""The ledger of queries: crashes, damaged files, and disks that refuse."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_doubles import FILE, TARGET, ask, attack, fast_folder, killed, opened, sha, states, ticket

from udc_ray.metered.ledger import BudgetSpent, Ledger, LedgerError, Ticket
from udc_ray.metered.reading import read_account
from udc_ray.storage import Storage


@pytest.fixture
def folder() -> Iterator[Path]:
    with fast_folder() as found:
        yield found


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
