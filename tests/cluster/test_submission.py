"""What `udc-ray ... --cluster --address http://HEAD:8265` does from a machine that is no node of the cluster."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluations import TESTS, User, parts, printed, rows, summary, wait_until
from network import Host, Network
from PIL import Image
from ray_hosts import HTTP_PORT, RayCluster

SMALL = (
    *("--model", "doubles:Conv", "--set", "data.size=48", "--limit", "3"),
    *("--attack", "fgsm", "--attack", "square:budget=10", "--defense", "none", "--defense", "jpeg"),
)
TWO_HOSTS = ("--set", "run.max_hosts=2", "--set", "run.chunk=1")
SLOW = (
    "--model",
    "sleepy:Sleepy",
    "--set",
    "data.size=48",
    "--attack",
    "pgd:steps=20",
    "--defense",
    "none",
    *TWO_HOSTS,
)
UNITS = 10
HERE = Path(__file__).parent
STORE_PORT = 5000
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def store(network: Network) -> Host:
    """A host with an S3 store; the cluster's nodes know its address."""
    return network.add("store")


@pytest.fixture(scope="module")
def s3(store: Host) -> dict[str, str]:
    return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://{store.address}:{STORE_PORT}"}


@pytest.fixture(scope="module")
def cluster(network: Network, s3: dict[str, str]) -> Iterator[RayCluster]:
    with RayCluster(network, env=s3 | {"SLEEPY_SECONDS": "0.15"}) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all nodes see: the storage root."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def user(cluster: RayCluster, shared: Path) -> User:
    return User(cluster.client(), cluster, TESTS, {"UDC_RAY_STORAGE": str(shared)})


@pytest.fixture(scope="module")
def slow_user(user: User) -> User:
    return User(user.host, user.cluster, HERE, user.env)


@pytest.fixture(scope="module")
def finished(user: User, shared: Path) -> subprocess.CompletedProcess[str]:
    """A run on the cluster to its end."""
    return user.submit(*SMALL, *TWO_HOSTS).wait()


@pytest.fixture(scope="module")
def reference(user: User, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process, without Ray."""
    out = tmp_path_factory.mktemp("reference") / "run"
    done = user.run("evaluate", "--in-process", *SMALL, *TWO_HOSTS, "--out", out)
    assert done.returncode == 0, done.stderr
    (out / "report.txt").write_text(done.stdout)
    return out


def place_of(report: str) -> Path:
    return Path(report.splitlines()[-1].removeprefix("run: "))


def nodes_of_hosts(cluster: RayCluster, pids: set[int]) -> set[str]:
    """Nodes on which these processes were hosts."""
    actors = cluster.ask("/api/v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
    return {actor["node_id"] for actor in actors if actor["pid"] in pids and actor["class_name"] == "HostActor"}


def test_a_job_gives_what_one_process_gives(
    cluster: RayCluster, finished: subprocess.CompletedProcess[str], reference: Path, shared: Path
) -> None:
    assert finished.returncode == 0, finished.stderr
    run = place_of(finished.stdout)
    assert run.parent == shared
    assert rows(run) == rows(reference)
    assert printed(finished.stdout) == printed((reference / "report.txt").read_text())
    assert summary((run / "summary.json").read_text()) == summary((reference / "summary.json").read_text())
    devices = json.loads((run / "environment.json").read_text())["devices"]
    working = {name for name, facts in devices.items() if facts["executed"]}
    assert len(working) == 2
    nodes = nodes_of_hosts(cluster, {devices[name]["pid"] for name in working})
    assert nodes == {cluster.node_id(node) for node in cluster.workers}


def test_nothing_of_rays_own_is_shown(finished: subprocess.CompletedProcess[str]) -> None:
    assert "INFO" not in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_finished_run_is_printed_again(user: User, finished: subprocess.CompletedProcess[str]) -> None:
    run = place_of(finished.stdout)
    before = parts(run)
    skewed = (
        "import sys; from unittest import mock; from udc_ray import environment; from udc_ray_cli.main import main\n"
        "sys.argv[0] = 'udc-ray'; there = environment.versions()\n"
        "with mock.patch.object(environment, 'versions', lambda: there | {'ray': '2.9.0', 'torch': '1.13.0'}): main()"
    )
    words = ("evaluate", "--cluster", "--address", user.cluster.http, *SMALL, *TWO_HOSTS)
    again = user.start(*words, program=(sys.executable, "-c", skewed)).wait()
    assert again.returncode == 0, again.stderr
    assert again.stdout == finished.stdout
    assert "everything is done already" in again.stderr
    assert parts(run) == before
    assert "warning: ray is 2.9.0 here and " in again.stderr
    assert "warning: torch is 1.13.0 here and " in again.stderr


def test_a_job_outlives_its_clients_and_goes_on_after_a_stop(slow_user: User, user: User, tmp_path: Path) -> None:
    words, address = (*SLOW, "--limit", str(UNITS)), ("--address", user.cluster.http)
    out = tmp_path / "run"
    detached = slow_user.submit(*words, "--out", out, "--detach").wait()
    assert (detached.returncode, detached.stdout) == (0, "")
    [job] = [word for word in detached.stderr.split() if word.endswith("-1")][:1]
    assert f"udc-ray logs {job} --address {user.cluster.http}" in detached.stderr
    followers = [slow_user.submit(*words, "--out", out) for _ in range(3)]
    log = user.start("logs", job, *address, "--follow")
    wait_until(lambda: len(parts(out)) >= 2, "the first units")
    assert [follower.job() for follower in followers] == [job] * 3

    followers[0].kill(signal.SIGKILL)
    followers[1].kill(signal.SIGINT)
    left = followers[1].wait()
    assert left.returncode == 130
    assert f"udc-ray stop {job}" in left.stderr
    listing, log_so_far = user.start("jobs", "--json", *address), user.start("logs", job, *address)
    assert user.run("stop", job, *address).returncode == 0
    listed = json.loads(listing.wait().stdout)["jobs"]
    assert [j["status"] for j in listed if j["submission_id"] == job] == ["RUNNING"]
    assert "writing to" in log_so_far.wait().stdout
    stopped = followers[2].wait()
    assert (stopped.returncode, stopped.stdout) == (143, "")
    assert log.wait().returncode == 0
    assert "exit code 143" in log.out
    before = parts(out)
    assert 0 < len(before) < UNITS

    resumed = slow_user.submit(*words, "--out", out).wait()
    assert resumed.returncode == 0, resumed.stderr
    assert job.removesuffix("-1") + "-2" in resumed.stderr
    after = parts(out)
    assert len(after) == UNITS
    assert {name: after[name] for name in before} == before
    again = slow_user.run("evaluate", "--in-process", *words, "--out", tmp_path / "reference")
    assert rows(out) == rows(tmp_path / "reference")
    assert printed(resumed.stdout) == printed(again.stdout)


def test_a_job_is_refused_without_the_clusters_token(user: User) -> None:
    wrong = User(user.host, user.cluster, TESTS, {**user.env, "RAY_AUTH_TOKEN": "a" * 32})
    nobody = Path(user.host.folder)
    missing = User(user.host, user.cluster, TESTS, {**user.env, "RAY_AUTH_TOKEN": "", "HOME": str(nobody)})
    unaware = User(user.host, user.cluster, TESTS, {**missing.env, "RAY_AUTH_MODE": "disabled"})
    started = [somebody.submit(*SMALL) for somebody in (wrong, missing, unaware)]
    started.append(wrong.start("jobs", "--address", user.cluster.http))
    for command in started:
        done = command.wait()
        assert (done.returncode, done.stdout) == (2, "")
        assert "RAY_AUTH_MODE=token" in done.stderr
        assert done.stderr.count("udc-ray: ") == 1
        assert "Traceback" not in done.stderr


def test_too_large_an_upload_and_a_wrong_address_are_refused(user: User, slow_user: User, tmp_path: Path) -> None:
    large = tmp_path / "weights.pth"
    with large.open("wb") as file:
        file.truncate(300 * 1024**2)
    upload = slow_user.submit("--model", "sleepy:Sleepy", "--weights", large, "--limit", "1")
    stray = user.start("evaluate", "--cluster", "--address", f"http://{user.host.address}:{HTTP_PORT}", *SMALL)
    done, lost = upload.wait(), stray.wait()
    assert (done.returncode, lost.returncode) == (2, 2)
    assert "300 MB would have to be uploaded, weights.pth among them; the limit is 200 MB" in done.stderr
    assert "no Ray head answers at" in lost.stderr
    assert "Traceback" not in done.stderr + lost.stderr


def test_files_of_the_client_travel_and_a_resume_needs_them_no_more(user: User, slow_user: User, shared: Path) -> None:
    mine = user.host.folder / "mine"  # no node knows of it
    (mine / "images").mkdir(parents=True)
    for n, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(mine / "images" / f"{n}.png")
    (mine / "weights.txt").write_text("0.5")
    words = (
        *("--model", "sleepy:Sleepy", "--weights", mine / "weights.txt", "--data", mine / "images"),
        *("--display", "toled", "--set", "data.size=48", "--attack", "fgsm", "--attack", "pgd:steps=2", *TWO_HOSTS),
    )
    whole = slow_user.submit(*words).wait()
    assert whole.returncode == 0, whole.stderr
    run = place_of(whole.stdout)
    assert {path.name for path in (shared / "inputs").glob("*/*")} == {"images", "weights.txt"}
    assert str(mine) not in (run / "spec.yaml").read_text()

    shutil.rmtree(mine)
    before, [lost, *_] = rows(run), parts(run)
    (run / "parts" / lost).unlink()
    (run / "results.parquet").unlink()
    resumed = slow_user.submit("--resume", run).wait()
    assert resumed.returncode == 0, resumed.stderr
    assert rows(run) == before
    assert lost in parts(run)


def test_nodes_that_do_not_share_the_output_are_refused(user: User, cluster: RayCluster, tmp_path: Path) -> None:
    lonely = cluster.start_worker(cpus=0, private=(tmp_path,))
    try:
        done = user.submit(*SMALL, "--out", tmp_path / "run").wait()
    finally:
        cluster.terminate(lonely)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"the nodes do not share {tmp_path / 'run'}: {lonely.host.address}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", ["host:port on the head", "ray:// from outside"])
def test_a_driver_attaches(way: str, user: User, cluster: RayCluster, reference: Path, tmp_path: Path) -> None:
    outside = way.startswith("ray://")
    there = User(user.host if outside else cluster.head.host, cluster, TESTS)
    words = ("--cluster", "--address", cluster.ray_client if outside else cluster.gcs, "--out", tmp_path / "run")
    done = there.run("evaluate", *SMALL, *TWO_HOSTS, *words)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "run") == rows(reference)
    assert printed(done.stdout) == printed((reference / "report.txt").read_text())


def test_the_doctor_looks_at_every_node(user: User, cluster: RayCluster, shared: Path) -> None:
    words = ("--cluster", "--address", cluster.http, "--seconds", "0.5", "--out", shared, "--json")
    done = user.run("doctor", *words)
    assert done.returncode in (0, 1), done.stderr
    findings = json.loads(done.stdout)["findings"]
    named = {finding["node"].split()[0] for finding in findings if finding["node"]}
    assert named == {node.host.address for node in cluster.nodes if node.process is not None}
    verdicts = {finding["name"]: finding["verdict"] for finding in findings if not finding["node"]}
    assert (verdicts["nodes"], verdicts["shared output"]) == ("ok", "ok")


def in_bucket(user: User, code: str) -> str | None:
    """What a line of code prints that speaks to the store from the user's host; None where it fails."""
    begin = "from pyarrow import fs; disk = fs.LocalFileSystem(); store, _ = fs.FileSystem.from_uri("
    begin += "'s3://bucket?allow_bucket_creation=true'); "
    done = user.host.run([sys.executable, "-c", begin + code], env=user.env)
    return done.stdout if done.returncode == 0 else None


def test_a_bucket_is_storage_and_a_lost_driver_is_replaced(
    slow_user: User, store: Host, s3: dict[str, str], tmp_path: Path
) -> None:
    store.popen([str(Path(sys.executable).with_name("moto_server")), "-H", "0.0.0.0", "-p", str(STORE_PORT)])
    user = User(slow_user.host, slow_user.cluster, HERE, s3 | {"UDC_RAY_STORAGE": "s3://bucket/runs"})
    wait_until(lambda: in_bucket(user, "store.create_dir('bucket')") is not None, "the store")
    gain = user.host.folder / "gain.txt"
    gain.write_text("0.7")
    words = (*SLOW, "--limit", "5", "--weights", gain)
    following = user.submit(*words)
    listed = "print([found.path for found in store.get_file_info(fs.FileSelector('bucket', recursive=True))])"
    wait_until(lambda: "/parts/" in (in_bucket(user, listed) or ""), "the first part")
    assert user.cluster.kill_driver() is not None
    done = following.wait()
    assert done.returncode == 0, done.stderr
    assert "lost its driver" in done.stderr
    assert [job[-2:] for job in following.jobs] == ["-1", "-2"]
    run = done.stdout.splitlines()[-1].removeprefix("run: ")
    assert run.startswith("s3://bucket/runs/")
    assert re.search(r"bucket/runs/inputs/[0-9a-f]+/gain\.txt'", in_bucket(user, listed) or "")
    copy = f"fs.copy_files({run.removeprefix('s3://')!r}, {str(tmp_path / 'run')!r}, store, disk)"
    assert in_bucket(user, copy) is not None
    plain = user.run("evaluate", "--in-process", *words, "--out", tmp_path / "reference")
    assert plain.returncode == 0, plain.stderr
    assert rows(tmp_path / "run") == rows(tmp_path / "reference")
    assert printed(done.stdout) == printed(plain.stdout)
