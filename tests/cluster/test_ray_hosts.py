"""A Ray cluster over a network: addresses, tokens, and the faults that later tests rely on."""

from __future__ import annotations

import json
import random
import sys
import time
import urllib.error
from collections.abc import Callable

import psutil
import pytest
from network import Host
from ray_hosts import RAY, RayCluster

ACTORS = """
import json, socket, sys, time
import ray
ray.init(address={gcs!r}, log_to_driver=False, logging_level="ERROR", namespace="bench")

class {name}:
    def where(self):
        return ray.util.get_node_ip_address(), socket.gethostname()

actors = [ray.remote({name}).options(num_cpus=0, resources={{f"node:{{ip}}": 0.01}}).remote() for ip in {addresses}]
print(json.dumps(ray.get([actor.where.remote() for actor in actors])), flush=True)
time.sleep({seconds})
"""


def program(cluster: RayCluster, host: Host, name: str, seconds: int) -> list[str]:
    """A driver with one actor of class `name` on every worker."""
    addresses = [node.host.address for node in cluster.workers]
    path = host.folder / f"{name}.py"
    path.write_text(ACTORS.format(gcs=cluster.gcs, name=name, addresses=addresses, seconds=seconds))
    return [sys.executable, str(path)]


def wait_until(ready: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def test_every_node_has_an_address_and_an_actor_runs_on_each(cluster: RayCluster) -> None:
    assert list(cluster.states().values()) == ["ALIVE"] * 3
    host = cluster.head.host
    answer = host.run(program(cluster, host, "Anywhere", seconds=0), env=cluster.environment)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [[node.host.address, node.host.name] for node in cluster.workers]


def test_a_wrong_token_is_refused(cluster: RayCluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.ask("/api/jobs/", token="a" * 32)
    assert refused.value.code == 403
    wrong = cluster.environment | {"RAY_AUTH_TOKEN": "a" * 32}
    answer = cluster.client().run([RAY, "job", "list", "--address", cluster.http], env=wrong)
    assert answer.returncode != 0
    assert "token" in answer.stderr


def test_a_client_reaches_the_job_server_and_has_no_raylet(cluster: RayCluster) -> None:
    client = cluster.client()
    answer = client.run([RAY, "job", "list", "--address", cluster.http], env=cluster.environment)
    assert answer.returncode == 0, answer.stderr
    assert client.pids() == []


def test_a_local_run_listens_on_loopback_alone(cluster: RayCluster) -> None:
    code = (
        "import subprocess\nfrom udc_ray_cluster.session import session\n"
        "with session(1):\n    print(subprocess.run(['ss', '-Hltn'], capture_output=True, text=True).stdout)"
    )
    answer = cluster.client().run([sys.executable, "-c", code], env={"RAY_USAGE_STATS_ENABLED": "0"})
    assert answer.returncode == 0, answer.stderr
    listening = [line.split()[3].rpartition(":")[0] for line in answer.stdout.splitlines() if line.strip()]
    assert listening
    assert set(listening) <= {"127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"}


def test_killing_the_worker_process_of_one_actor(cluster: RayCluster) -> None:
    driver = cluster.head.host.popen(program(cluster, cluster.head.host, "HostActor", 120), env=cluster.environment)
    node, other = cluster.workers
    wait_until(lambda: node.workers("HostActor") and other.workers("HostActor"))
    before = {p.pid for p in other.processes()}
    killed = cluster.kill_worker(node, random.Random(0))
    assert killed is not None
    wait_until(lambda: not psutil.pid_exists(killed))
    assert node.workers("HostActor") == []
    assert cluster.kill_worker(node, random.Random(0)) is None
    assert {p.pid for p in other.processes()} >= before
    driver.kill()


def test_killing_the_driver_of_a_job(cluster: RayCluster) -> None:
    client = cluster.client()
    entrypoint = program(cluster, client, "Working", seconds=120)
    submit = [RAY, "job", "submit", "--no-wait", "--submission-id=one", "--address", cluster.http, "--"]
    answer = client.run([*submit, *entrypoint], env=cluster.environment)
    assert answer.returncode == 0, answer.stderr
    wait_until(lambda: '[["10.' in cluster.ask("/api/jobs/one/logs")["logs"])
    assert len(cluster.drivers()) == 1
    killed = cluster.kill_driver()
    assert killed is not None
    wait_until(lambda: cluster.ask("/api/jobs/one")["status"] == "FAILED")
    assert cluster.kill_driver() is None


def test_a_short_partition_is_survived(cluster: RayCluster) -> None:
    node = cluster.workers[0]
    before = cluster.node_id(node)
    cluster.partition(node, 3)
    assert cluster.ask("/api/jobs/") is not None
    assert cluster.node_id(node) == before
    assert node.process is not None
    assert node.process.poll() is None


def test_a_node_told_to_drain_goes_and_comes_back(cluster: RayCluster) -> None:
    node = cluster.workers[1]
    before = cluster.node_id(node)
    cluster.drain(node, seconds=5)
    cluster.wait_dead(before)
    cluster.restart_worker(node)
    assert cluster.node_id(node) != before


def test_a_terminated_node_is_dead_at_once_and_a_killed_one_is_noticed(cluster: RayCluster) -> None:
    first, second = cluster.workers
    ids = [cluster.node_id(first), cluster.node_id(second)]
    cluster.terminate(first)
    cluster.wait_dead(ids[0])
    cluster.kill_raylet(second)
    assert second.host.pids() == []
    cluster.wait_dead(ids[1])


def test_a_head_that_was_lost_begins_anew(cluster: RayCluster) -> None:
    address = cluster.http
    cluster.kill_head()
    assert cluster.head.host.pids() == []
    with pytest.raises(OSError, match="refused"):
        cluster.ask("/api/version")
    cluster.restart_head()
    assert cluster.http == address
    assert list(cluster.states().values()) == ["ALIVE"] * 3  # those that were lost are forgotten
    assert cluster.ask("/api/jobs/") == []


def test_a_worker_with_resources_and_labels(cluster: RayCluster) -> None:
    node = cluster.start_worker(cpus=1, resources={"fast": 2}, labels={"tier": "spot"})
    rows = cluster.ask("/api/v0/nodes")["data"]["result"]["result"]
    row = next(r for r in rows if r["node_id"] == cluster.node_id(node))
    assert row["resources_total"]["fast"] == 2
    assert row["resources_total"]["CPU"] == 1
    assert row["labels"]["tier"] == "spot"
