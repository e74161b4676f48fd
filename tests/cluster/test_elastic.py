"""A cluster that grows while a run is at work: the run grows with it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
from evaluations import User, parts, wait_until
from network import Network
from ray_hosts import RayCluster

HERE = Path(__file__).parent
SLOW = (
    *("--model", "sleepy:Sleepy", "--set", "data.size=48", "--limit", "12", "--attack", "pgd:steps=20"),
    *("--defense", "none", "--set", "run.hosts=1", "--set", "run.chunk=1"),
)


def test_a_node_that_joins_gets_work(network: Network, tmp_path: Path) -> None:
    with RayCluster(network, count=1, cpus=1, env={"SLEEPY_SECONDS": "0.15"}) as cluster:
        user = User(cluster.client(), cluster, HERE, {"UDC_RAY_STORAGE": str(tmp_path)})
        running = user.submit(*SLOW, "--out", tmp_path / "run")
        wait_until(lambda: parts(tmp_path / "run"), "a unit that ended on the one host")
        cluster.start_worker(cpus=1)
        done = running.wait()
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    hosts = {row["host"] for row in table}
    assert len(table) == 12 and len(hosts) >= 2, hosts
    assert not any(row["error"] for row in table) and os.listdir(tmp_path / "run" / "figures")
