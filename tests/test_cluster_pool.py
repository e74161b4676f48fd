"""The pool on local Ray equals the in-process pool, whatever dies in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from run_doubles import Notes

from udc_ray.config import Overrides, build_spec
from udc_ray.data.open import open_dataset
from udc_ray.errors import UserError
from udc_ray.host import Host
from udc_ray.in_process import InProcessPool
from udc_ray.pool import Outcome
from udc_ray.prepare import Prepared, prepare
from udc_ray.records import VOLATILE
from udc_ray.run import Settings, execute
from udc_ray.rundir import RunDirectory
from udc_ray.setup import HostSetup
from udc_ray.spec import Entry
from udc_ray_cluster.placement import Placement
from udc_ray_cluster.pool import RayPool
from udc_ray_cluster.session import session

ATTACKS = ("noise", "fgsm", "pgd:steps=3,restarts=2", "square:budget=25", "simba:budget=15")
DEFENSES = ("none", "jpeg:grad_mode=[blind, full]", "gaussian-noise:samples=2")
DEADLY, STUCK = "doubles_deadly:make", "doubles_deadly:make_stuck"


class Watching(Notes):
    """A listener that remembers; `on_unit` may do mischief."""

    on_unit: Any = staticmethod(lambda outcome: None)

    def unit(self, outcome: Outcome) -> None:
        super().unit(outcome)
        self.on_unit(outcome)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    flags = Overrides(attacks=ATTACKS, defenses=DEFENSES, limit=3)
    return prepare(build_spec(flags=flags, sets=("data.size=32", "run.chunk=1", "run.micro_batch=2")))


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(2):
        yield


@pytest.fixture(scope="module")
def reference(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("reference") / "run"
    host = Host(prepared.setup, restorer=prepared.restorer)
    execute(prepared, lambda setup: InProcessPool(host), Watching(), Settings(out=str(out)))
    return table(out)


def table(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run / "results.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]


def run_on_ray(
    prepared: Prepared, out: Path, hosts: int | Placement, listener: Watching, mischief: Any = None
) -> RayPool:
    made: list[RayPool] = []
    placement = hosts if isinstance(hosts, Placement) else Placement(least=hosts, most=hosts)

    def make(setup: Any) -> RayPool:
        pool = RayPool(setup, placement, "cpu", note=listener.note)
        made.append(pool)
        if mischief is not None:
            listener.on_unit = lambda outcome: mischief(pool, outcome)
        return pool

    execute(prepared, make, listener, Settings(out=str(out)))
    return made[0]


@pytest.mark.parametrize("hosts", [1, 2])
def test_equals_the_in_process_pool(
    hosts: int, prepared: Prepared, ray_session: None, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    listener = Watching()
    run_on_ray(prepared, tmp_path / "run", hosts, listener)
    assert table(tmp_path / "run") == reference
    assert len({o.host for o in listener.outcomes}) == hosts


def test_a_killed_host_changes_no_number(
    prepared: Prepared, ray_session: None, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    listener, killed = Watching(), []

    def kill_a_host(pool: RayPool, outcome: Outcome) -> None:
        if len(listener.outcomes) == 3:
            facts: Any = pool.describe()
            killed.append(facts["host-0"]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    pool = run_on_ray(prepared, tmp_path / "run", 2, listener, kill_a_host)
    assert killed and not psutil.pid_exists(killed[0])
    assert any(o.retries for o in listener.outcomes)
    assert table(tmp_path / "run") == reference
    rows = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    assert any(row["retries"] for row in rows)
    assert len(pool.seats) == 2


def test_a_killed_stepper_changes_no_number_and_costs_no_host(
    prepared: Prepared, ray_session: None, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    listener, killed = Watching(), list[str]()

    def kill_a_stepper(pool: RayPool, outcome: Outcome) -> None:
        for seat in pool.seats:
            if not killed and seat.stepper is not None and len(seat.desk.held) > 1:
                killed.append(seat.name)
                ray.kill(seat.stepper)

    pool = run_on_ray(prepared, tmp_path / "run", 1, listener, kill_a_stepper)
    assert killed == ["host-0"] == [seat.name for seat in pool.seats]
    assert any(o.retries for o in listener.outcomes)
    assert table(tmp_path / "run") == reference


def queries_only(*sets: str) -> Prepared:
    attacks, defenses = ("square:budget=14,restarts=2", "simba:budget=14"), ("none", "gaussian-noise:grad_mode=[full]")
    cheap = ("data.size=32", "run.micro_batch=2", "run.save=none", "perceptual=none")
    return prepare(build_spec(flags=Overrides(attacks=attacks, defenses=defenses, limit=2), sets=(*cheap, *sets)))


def in_process(setup: HostSetup) -> InProcessPool:
    return InProcessPool(Host(setup))


def kept(run: Path) -> tuple[Any, ...]:
    return table(run), RunDirectory.read(str(run)).curves()


def test_an_account_ends_a_run_as_it_does_in_process_and_a_larger_one_goes_on(
    ray_session: None, tmp_path: Path
) -> None:
    """What is continued on hosts comes from the states that they find on the disk of the run."""
    bounded, whole = queries_only("run.max_queries=61", "run.chunk=1"), queries_only()
    for made, out in ((bounded, "bounded"), (whole, "whole")):
        execute(made, in_process, Watching(), Settings(out=str(tmp_path / out)))
    run_on_ray(bounded, tmp_path / "run", 1, Watching())
    assert kept(tmp_path / "run") == kept(tmp_path / "bounded")
    triples = {(row["cell"], row["image_id"], row["restart"]): row["queries"] for row in table(tmp_path / "run")}
    assert sum(triples.values()) == 61
    run_on_ray(whole, tmp_path / "run", 1, Watching())
    assert kept(tmp_path / "run") == kept(tmp_path / "whole")


def test_only_loopback_is_listened_on(ray_session: None, tmp_path: Path) -> None:
    flags = Overrides(attacks=("noise", "simba:budget=2"), defenses=("none",), limit=1)
    small = prepare(build_spec(flags=flags, sets=("data.size=32", "run.micro_batch=1")))
    found: set[str] = set()

    def look(pool: RayPool, outcome: Outcome) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                connections = process.net_connections(kind="inet")
            except psutil.NoSuchProcess:
                continue
            found.update(c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN)

    run_on_ray(small, tmp_path / "run", 1, Watching(), look)
    assert found
    assert {ip.removeprefix("::ffff:") for ip in found} <= {"127.0.0.1", "::1"}


def with_a_marked_image(model: str, folder: Path, *sets: str) -> tuple[Prepared, str]:
    """A run on a model that misbehaves on one image, and the id of that image."""
    images = open_dataset(Entry(name="shipped", params={"size": 32}), limit=3)
    marked = images.image_ids[1]
    marker = folder / "mean.txt"
    marker.write_text(repr(float(images.load(marked).degraded.mean())))
    flags = Overrides(attacks=("noise",), defenses=("none",), limit=3, model=model, weights=str(marker))
    spec = build_spec(flags=flags, sets=("data.size=32", "run.chunk=1", "run.micro_batch=1", *sets))
    return prepare(spec), marked


def test_a_unit_that_kills_its_hosts_is_recorded_and_skipped(ray_session: None, tmp_path: Path) -> None:
    deadly, condemned = with_a_marked_image(DEADLY, tmp_path)
    run_on_ray(deadly, tmp_path / "run", 1, Watching())
    rows = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    assert [row["image_id"] for row in rows if row["error"]] == [condemned]
    assert all((row["psnr_adv"] is None) == (row["error"] is not None) for row in rows)
    assert "died 3 times" in next(row["error"] for row in rows if row["error"])


def test_a_host_whose_model_never_returns_is_replaced(ray_session: None, tmp_path: Path) -> None:
    stuck, image_id = with_a_marked_image(STUCK, tmp_path)
    listener = Watching()
    run_on_ray(stuck, tmp_path / "run", Placement(least=1, most=1, silence_s=4), listener)
    assert (tmp_path / "mean.txt.met").exists()
    assert [o.retries for o in listener.outcomes if image_id in o.unit.image_ids] == [1]
    assert any("taken for hung" in note for note in listener.notes)
    host = Host(stuck.setup, restorer=stuck.restorer)  # harmless from now on
    execute(stuck, lambda setup: InProcessPool(host), Watching(), Settings(out=str(tmp_path / "reference")))
    assert table(tmp_path / "run") == table(tmp_path / "reference")


def test_a_model_that_no_host_can_load_is_one_message(ray_session: None, tmp_path: Path) -> None:
    flags = Overrides(attacks=("noise",), defenses=("none",), limit=1)
    fine = prepare(build_spec(flags=flags, sets=("data.size=32",)))
    elsewhere = replace(fine.setup, spec=fine.setup.spec.model_copy(update={"model": Entry(name="only_here:make")}))
    pool = RayPool(elsewhere, Placement(least=1, most=1), "cpu")
    with pytest.raises(UserError, match="only_here"):
        pool.resolve(fine.shapes)
    pool.close()
