"""How a campaign is cut into units and shared out changes no number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import call
from faulty_server import FaultyServer
from run_doubles import Notes

from udc_ray.campaign import as_campaign
from udc_ray.config import Overrides, build_spec
from udc_ray.hosting import make_host
from udc_ray.in_process import InProcessPool
from udc_ray.metered.host import LEDGERS_VARIABLE
from udc_ray.prepare import Prepared, prepare
from udc_ray.records import VOLATILE
from udc_ray.run import Settings, execute
from udc_ray_cluster.placement import Placement
from udc_ray_cluster.pool import RayPool
from udc_ray_cluster.session import session

ATTACKS = ("square:budget=10", "simba:budget=9,restarts=2", "nes:budget=8", "rays:budget=10")
IMAGES = 8
Rows = list[dict[str, Any]]


def prepared(chunk: int) -> Prepared:
    flags = Overrides(model="doubles:Conv", attacks=ATTACKS, defenses=("none", "jpeg"), limit=IMAGES)
    sets = ("data.size=32", "run.micro_batch=3", "run.save=none", f"run.chunk={chunk}")
    return prepare(as_campaign(build_spec(flags=flags, sets=sets)))


def rows(run: Path) -> Rows:
    found = pq.read_table(run / "results.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in found]


def carried_out(chunk: int, out: Path, hosts: int | None = None) -> tuple[Rows, Notes]:
    """A campaign in this process, or on so many hosts of the Ray that runs."""
    run, listener = prepared(chunk), Notes()

    def make_pool(setup: Any) -> Any:
        if hosts is None:
            return InProcessPool(make_host(setup, restorer=run.restorer))
        return RayPool(setup, Placement(least=hosts, most=hosts), "cpu", note=listener.note)

    execute(run, make_pool, listener, Settings(out=str(out)))
    return rows(out), listener


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udc_ray.run.PROBE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """All images of a cell in one unit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udc_ray.run.PROBE_SECONDS", 0.0)
        found, listener = carried_out(16, tmp_path_factory.mktemp("whole") / "run")
    assert listener.begun == [len(ATTACKS) * 2]
    assert len(found) == IMAGES * 2 * 5
    return found


@pytest.mark.parametrize(("chunk", "units"), [(7, 2), (1, IMAGES)])
def test_chunks(chunk: int, units: int, whole: Rows, tmp_path: Path) -> None:
    found, listener = carried_out(chunk, tmp_path / "run")
    assert listener.begun == [len(ATTACKS) * 2 * units]
    assert found == whole


@pytest.fixture(scope="module")
def four_workers() -> Iterator[None]:
    with session(4):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_workers_and_chunks(hosts: int, chunk: int, whole: Rows, four_workers: None, tmp_path: Path) -> None:
    found, listener = carried_out(chunk, tmp_path / "run", hosts)
    assert found == whole
    assert 1 <= len({outcome.host for outcome in listener.outcomes}) <= hosts


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


def test_requests_under_way_at_once(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEDGERS_VARIABLE, str(tmp_path / "ledgers"))
    words = ("--target", server.url, "--in-process", "--set", "data.size=32", "--set", "run.save=none", "--limit", "3")
    attacks = ("--attack", "square:budget=8", "--attack", "nes:budget=8")
    found = []
    for concurrency in (1, 7):
        out, limits = tmp_path / str(concurrency), (f"model.concurrency={concurrency}", "model.budget=400")
        assert call("campaign", *words, *attacks, "--set", limits[0], "--set", limits[1], "--out", out).code == 0
        found.append(rows(out))
    assert found[0] == found[1]
