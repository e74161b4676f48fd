"""kill -9 at random moments against a target that counts every call: what the ledger says must hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ledger_doubles
import pytest
from ledger_doubles import FILE, TARGET, chain, fast_folder

from udc_ray.metered.ledger import Ledger
from udc_ray.metered.reading import read_account, read_rows
from udc_ray.storage import Storage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")

PLAN = {"chains": 3, "steps": 40, "seconds": 0.004, "budget": 150, "lease": 8, "seed": 5, "most": 12, "delete": []}


def rounds(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    command = [sys.executable, ledger_doubles.__file__, str(folder), json.dumps({**PLAN, "kind": kind, **changes})]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sequences(ledger: Ledger) -> dict[str, list[tuple[str, object]]]:
    found: dict[str, list[tuple[str, object]]] = {}
    answered = [row for row in ledger.rows() if row.state == "answered"]
    for row in sorted(answered, key=lambda row: row.key.step):
        found.setdefault(row.key.image_id, []).append((row.candidate, row.answer))
    return found


def test_nothing_is_unknown_where_nothing_is_killed() -> None:
    with fast_folder() as folder:
        found = rounds(folder, "ledger", kills=0, budget=None)
        account = read_account(folder / "disk" / FILE)
        assert (account.answered, account.unknown, account.spent) == (120, 0, 120)
        assert found["counter"] == 120
        assert read_account(Storage(str(folder / "run"))).spent == 120


@pytest.mark.parametrize(("delete", "seed"), [([], 5), ([2, 6, 7], 6)], ids=["kills", "kills and lost disks"])
def test_kills_at_random_moments(delete: list[int], seed: int) -> None:
    with fast_folder() as folder:
        found = rounds(folder, "ledger", kills=10, delete=delete, seed=seed)
        with Ledger(folder / "disk" / FILE, TARGET, 150, Storage(str(folder / "run")), 8) as ledger:
            account, chains = ledger.account(), sequences(ledger)
        assert found["kills"] >= 8, "the campaign ended too early to be killed"
        assert account.answered <= found["counter"] <= account.answered + account.unknown <= 150
        assert account.unknown <= found["in_flight"] + 8 * found["deletions"]
        assert found["in_flight"] <= 3 * found["kills"]
        assert account.rebuilt <= found["deletions"] == len(delete)
        for image, sequence in chains.items():
            assert sequence == chain(image, 40)[: len(sequence)]
        assert sum(map(len, chains.values())) == account.answered


def test_an_interrupted_campaign_ends_where_an_uninterrupted_one_does() -> None:
    with fast_folder() as folder:
        found = rounds(folder, "ledger", kills=5, budget=None, seed=9)
        assert found["kills"] >= 4
        rows = [row for row in read_rows(Storage(str(folder / "run"))) if row.state == "answered"]
        for image in ("im0", "im1", "im2"):
            told = sorted((row for row in rows if row.key.image_id == image), key=lambda row: row.key.step)
            assert [(row.candidate, row.answer) for row in told] == chain(image, 40)


def test_a_ledger_that_writes_after_sending_is_caught() -> None:
    with fast_folder() as folder:
        found = rounds(folder, "writes too late", kills=10)
        with Ledger(folder / "disk" / FILE, TARGET, None, Storage(str(folder / "run")), 8) as ledger:
            account = ledger.account()
        assert found["kills"] >= 8
        assert found["counter"] > account.answered + account.unknown, "the planted defect was not seen"
