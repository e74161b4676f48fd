"""Doubles for the ledger: a target that counts every call in a file, kills, and a ledger that writes too late.

As a program (``python ledger_doubles.py``) it starts campaigns against that target and kills them with SIGKILL.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from udc_ray.metered.leases import encode_rows, target_hash
from udc_ray.metered.ledger import Answer, BudgetSpent, Ledger, LedgerError, QueryKey, Replay, Row, Ticket
from udc_ray.metered.reading import read_account
from udc_ray.storage import Storage

TARGET = "http://127.0.0.1:9/restore"
FILE = "ledger.sqlite"
FOLDER = f"ledger/{target_hash(TARGET)}"


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a kill leaves what was written, flushed or not."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


class Counter:
    """A target that counts every call in a file, and answers with a function of the candidate."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def count(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def call(self, candidate: str) -> float:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, b".")
        os.close(descriptor)
        return int(candidate[:12], 16) / 7


def sha(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def attack(step: int = 0, *, image: str = "im0", cell: str = "c") -> QueryKey:
    return QueryKey(purpose="attack", cell=cell, image_id=image, restart=0, step=step)


def harness(step: int = 0, **options: Any) -> QueryKey:
    return QueryKey(purpose="harness", cell="c", image_id="im0", restart=0, step=step, **options)


def storage(folder: Path) -> Storage:
    """The storage of the run in this folder."""
    return Storage(str(folder / "run"))


def opened(folder: Path, budget: int | None = 10, *, target: str = TARGET, **options: Any) -> Ledger:
    """A ledger whose file lies beside its storage."""
    return Ledger(folder / FILE, target, budget, storage(folder), **options)


def opened_on_disk(folder: Path, *, budget: int | None = 20, lease: int = 4, store: Storage | None = None) -> Ledger:
    """A ledger whose file lies on a disk of its own, with short leases."""
    return Ledger(folder / "disk" / FILE, TARGET, budget, storage(folder) if store is None else store, lease)


def lose_disk(folder: Path) -> None:
    """Remove what lies on the disk of its own."""
    for path in (folder / "disk").iterdir():
        path.unlink()


def states(ledger: Ledger) -> list[str]:
    return [row.state for row in ledger.rows()]


def ticket(ledger: Ledger, key: QueryKey, candidate: str | None = None) -> Ticket:
    """A reservation that must be a ticket."""
    found = ledger.reserve(key, sha(key) if candidate is None else candidate)
    assert isinstance(found, Ticket)
    return found


def ask(ledger: Ledger, key: QueryKey, answer: Answer = 0.5) -> None:
    """One query from end to end."""
    t = ticket(ledger, key)
    ledger.sent(t)
    ledger.answered(t, answer)


def killed(ledger: Ledger, folder: Path) -> Path:
    """The ledger's file as a SIGKILL would leave it now, in a new folder; the object is done for."""
    folder.mkdir()
    for end in ("", "-wal"):
        source = ledger.path.with_name(ledger.path.name + end)
        if source.exists():
            shutil.copy(source, folder / source.name)
    database = ledger._database  # a dead process closes nothing; here the locks must go, in the old folder
    database.connection.close()
    database._guard.close()
    database.closed = True
    return folder / ledger.path.name


SAMPLE = Row(
    row=7,
    key=QueryKey(purpose="attack", cell="c", image_id="a/b", restart=2, step=9),
    attempt=3,
    candidate=sha("x"),
    state="answered",
    reason=None,
    answer=0.25,
    lease=1,
    reserved_at=1.5,
    sent_at=2.5,
    settled_at=3.5,
)


class FailingStorage(Storage):
    """A storage that fails once: before or after it has written the file of a name that starts so.

    It also sees to it that no file is written twice, whatever failed in between.
    """

    def __init__(self, out: str) -> None:
        super().__init__(out)
        self.fails: tuple[str, str] | None = None

    def write(self, name: str, data: bytes) -> None:
        assert not self.exists(name), f"{name} is written over"
        when, start = self.fails or ("", "?")
        if not name.rpartition("/")[2].startswith(start):
            super().write(name, data)
            return
        self.fails = None
        if when == "after":
            super().write(name, data)
        raise LedgerError("the storage is gone")


class WritesTooLate(Ledger):
    """A planted defect: what is sent is written once the answer is there."""

    def sent(self, ticket: Ticket) -> None:
        pass

    def answered(self, ticket: Ticket, answer: Answer) -> None:
        super().sent(ticket)
        super().answered(ticket, answer)


def chain(image: str, steps: int) -> list[tuple[str, float]]:
    """Candidates and answers of an attack that was never interrupted; each candidate needs the answer before."""
    found: list[tuple[str, float]] = []
    for step in range(steps):
        candidate = sha(image, step, found[-1][1] if found else 0.0)
        found.append((candidate, int(candidate[:12], 16) / 7))
    return found


def run_chain(ledger: Ledger, counter: Counter, image: str, steps: int, seconds: float) -> None:
    """The same chain through a ledger; the target takes some time to answer."""
    last = 0.0
    for step in range(steps):
        candidate = sha(image, step, last)
        try:
            found = ledger.reserve(attack(step, image=image), candidate)
        except BudgetSpent:
            return
        if isinstance(found, Replay):
            assert isinstance(found.answer, float)
            last = found.answer
            continue
        ledger.sent(found)
        last = counter.call(candidate)
        time.sleep(seconds)
        ledger.answered(found, last)


def campaign(folder: Path, kind: type[Ledger], plan: dict[str, Any]) -> None:
    """Chains in threads of their own, until all are done or the budget is spent."""
    counter = Counter(folder / "counter")
    storage = Storage(str(folder / "run"))
    with kind(folder / "disk" / FILE, TARGET, plan["budget"], storage, plan["lease"]) as ledger:
        chains = [
            threading.Thread(target=run_chain, args=(ledger, counter, f"im{n}", plan["steps"], plan["seconds"]))
            for n in range(plan["chains"])
        ]
        for thread in chains:
            thread.start()
        for thread in chains:
            thread.join()


def kill_rounds(folder: Path, kind: type[Ledger], plan: dict[str, Any]) -> dict[str, Any]:
    """Start the campaign again and again and kill it; then let it end. What was in flight is written down."""
    encode_rows([SAMPLE])  # what is loaded at the first use is loaded here, once, and not in every child
    counter, rng = Counter(folder / "counter"), random.Random(plan["seed"])
    in_flight, deletions, kills = 0, 0, 0
    for n in range(plan["kills"]):
        pid = os.fork()
        if pid == 0:
            campaign(folder, kind, plan)
            os._exit(0)
        kills += _kill(pid, counter, counter.count + rng.randrange(1, plan["most"]), rng.random() * plan["seconds"])
        if n in plan["delete"]:
            shutil.rmtree(folder / "disk", ignore_errors=True)
            deletions += 1
        elif (folder / "disk" / FILE).exists():
            in_flight += read_account(folder / "disk" / FILE).in_flight
    campaign(folder, kind, plan)
    gc.collect()
    return {"in_flight": in_flight, "deletions": deletions, "kills": kills, "counter": counter.count}


def _kill(pid: int, counter: Counter, until: int, after: float) -> bool:
    """Kill a child some seconds after the counter has reached a number; False where it ended before."""
    deadline = time.monotonic() + 5
    while counter.count < until and time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


if __name__ == "__main__":
    plan = json.loads(sys.argv[2])
    kinds = {"ledger": Ledger, "writes too late": WritesTooLate}
    sys.stdout.write(json.dumps(kill_rounds(Path(sys.argv[1]), kinds[plan["kind"]], plan)))
