"""kill -9 at random moments of whole campaigns: what was counted, and what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import campaign_chaos
import campaign_forks
import pytest
from ledger_doubles import fast_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SIGKILL, fork and the process tree")

FEW = ({"name": "square"}, {"name": "nes"}, {"name": "rays"})
PLAN = {"attacks": FEW, "queries": 8, "seconds": 0.01}


def after(folder: Path, **plan: Any) -> dict[str, Any]:
    command = [sys.executable, campaign_forks.__file__, str(folder), json.dumps({**PLAN, **plan})]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_metered_campaign_that_is_killed_spends_what_it_says_and_ends_where_it_would_have() -> None:
    with fast_folder() as folder:
        found = after(folder, target="metered", kills=["driver", "driver", "disk"], seed=3)
    assert found["kills"] == 3, "the campaign ended too early to be killed"
    assert found["broken"] == []


def test_a_ledger_that_writes_after_sending_is_caught() -> None:
    with fast_folder() as folder:
        found = after(folder, target="late", attacks=FEW[:1], kills=["driver"] * 2, seconds=0.1, most=6)
    assert found["kills"] == 2
    assert any(promise.startswith("counter <= answered + unknown") for promise in found["broken"])


@pytest.mark.slow
def test_a_campaign_against_our_own_model_that_is_killed_ends_where_it_would_have() -> None:
    with fast_folder() as folder:
        found = after(folder, target="owned", kills=["driver"] * 3, most=25)
    assert found["kills"] == 3
    assert found["broken"] == []


@pytest.mark.slow
def test_all_attacks_on_ray_through_kills_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(campaign_chaos.ROOT))
    from benchmarks.kills import measure

    rows = measure(Namespace(kills=10, seed=1))
    assert [row["broken"] for row in rows[:-1]] == [[]] * 4
    assert rows[-1] == {"kills": 10, "held": True}
