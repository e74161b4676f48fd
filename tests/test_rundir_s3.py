"""A run directory on an object store: whole runs, a killed driver, markers of folders, many parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from command_line import call
from pyarrow import fs
from run_doubles import stable
from rundir_doubles import image_of, open_run, record, unit
from store_doubles import Store, running_store
from test_location import make_data, weights

from udc_ray import location, lock
from udc_ray.errors import RunDirectoryError
from udc_ray.lock import LOCK, RunLock
from udc_ray.records import Record
from udc_ray.rundir import RunDirectory
from udc_ray.storage import AT_ONCE, Storage


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv(location.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    with running_store() as running:
        yield running


@pytest.fixture
def command(store: Store, tmp_path: Path) -> list[str]:
    """A run of ten units whose data and weights are in the store."""
    make_data(tmp_path / "photos", "pairs")
    store.mirror(tmp_path / "photos", "photos")
    store.put("net.safetensors", weights(tmp_path / "net.safetensors").read_bytes())
    attacks = ["--attack", "noise", "--attack", "fgsm", "--attack", "pgd:steps=3", "--attack", "square:budget=20"]
    where = ["--data", store.uri("photos"), "--model", store.uri("net.safetensors"), "--defense", "none"]
    return ["evaluate", "--in-process", *where, "--defense", "jpeg", *attacks, "--set", "run.chunk=1"]


def local_twin(command: list[str], tmp_path: Path, store: Store) -> list[Record]:
    """The records of the same command with everything on this machine."""
    here = [word.replace(store.uri(), str(tmp_path)) for word in command]
    assert here != command
    assert call(*here, "--out", tmp_path / "run").code == 0
    return RunDirectory.read(str(tmp_path / "run")).records()


def test_a_run_in_the_store_is_the_run_here(store: Store, command: list[str], tmp_path: Path) -> None:
    out = store.uri("runs/one")
    answer = call(*command, "--out", out)
    assert answer.code == 0, answer.err
    run = RunDirectory.read(out)
    assert stable(run.records()) == stable(local_twin(command, tmp_path, store))
    assert {"spec.yaml", "results.parquet", "summary.json", "checks.json"} <= set(run.storage.names())
    assert not run.storage.exists(LOCK)
    again = call(*command, "--out", out)
    assert again.code == 0 and "everything is done already" in again.err
    assert call("evaluate", "--resume", out, "--in-process").code == 0


def test_a_killed_driver_leaves_whole_parts_and_the_same_command_completes(
    store: Store, command: list[str], tmp_path: Path
) -> None:
    out, started, killed = store.uri("runs/killed"), threading.Event(), threading.Event()

    def watch(method: str, key: str) -> None:
        if method == "PUT" and "/parts/" in key:
            if started.is_set():
                killed.wait(timeout=60)  # however slow the killer is, the driver comes no further
            started.set()

    store.watch = watch
    words = [sys.executable, "-c", "from udc_ray_cli.main import main; main()", *command, "--out", out]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        assert started.wait(timeout=120)
        driver.send_signal(signal.SIGKILL)
    killed.set()
    left = store.keys("runs/killed/parts/")
    expected = local_twin(command, tmp_path, store)
    assert 1 <= len(left) < len(expected)
    assert Storage(out).exists(LOCK)
    answer = call(*command, "--out", out)
    assert answer.code == 0, answer.err
    assert "resuming" in answer.err
    assert stable(RunDirectory.read(out).records()) == stable(expected)
    written = Counter(store.asked("PUT", "/parts/"))
    assert set(left) < set(written) == set(store.keys("runs/killed/parts/"))
    assert set(written.values()) == {1}


def test_a_store_that_refuses_is_one_message(store: Store) -> None:
    answer = call("evaluate", "--in-process", "--model", "identity", "--out", "s3://no-such-bucket/run")
    assert answer.code == 2 and "the bucket does not exist" in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize("explicit", [True, False])
def test_files_in_the_store_with_and_without_markers_of_folders(store: Store, explicit: bool) -> None:
    storage = Storage(store.uri("run", explicit=explicit))
    assert not storage.exists() and storage.names() == [] and storage.find("a") is None
    storage.make()
    storage.write("a.json", b"a")
    storage.write("parts/b.parquet", b"b" * 100)
    assert not [key for key in store.asked("PUT") if key.endswith("/")], "a marker was made for nothing"
    for folder in ("run", "run/parts", "run/empty"):
        store.filesystem.create_dir(f"{store.bucket}/{folder}")
    assert storage.names() == ["a.json", "empty", "parts"]
    assert storage.names("parts") == ["b.parquet"] and storage.names("empty") == storage.names("none") == []
    assert storage.exists() and storage.exists("parts") and storage.exists("a.json") and not storage.exists("a")
    assert storage.modified("a.json") is not None and storage.modified("nothing") is None
    storage.write("a.json", b"other")
    assert storage.read("a.json") == storage.find("a.json") == b"other"
    for _ in range(2):
        storage.delete("parts/b.parquet")
        assert storage.names("parts") == []
    with pytest.raises(RunDirectoryError, match="cannot read"):
        storage.read("parts/b.parquet")


def test_a_run_that_was_refused_leaves_room_for_another(store: Store) -> None:
    with open_run(store.uri("run")) as run:
        run.discard()
    assert store.keys("run/") == []
    open_run(store.uri("run")).close()


def test_a_small_file_is_one_request(store: Store) -> None:
    Storage(store.uri("run")).write("parts/a.parquet", b"a")
    asked = [method for method, key in store.requests if key == "run/parts/a.parquet"]
    assert asked == (["PUT"] if int(pyarrow.__version__.split(".")[0]) >= 21 else ["POST", "PUT", "POST"])


def test_many_parts_are_read_once_together_and_in_order(store: Store) -> None:
    names = [f"{n:04}" for n in range(3 * AT_ONCE)]
    with open_run(store.uri("run")) as run:
        for name in names:
            one = record(name)
            run.append(unit(one, images=[image_of(one)], curves={f"c/{name}/0": [(1, 0.5)]}))
        store.requests.clear()
        assert [r.image_id for r in run.records()] == names
        assert len(run.done_keys({})) == len(names)
        assert [r.image_id for r in run.compact()] == names
        assert sorted(run.curves()) == [f"c/{name}/0" for name in names]
        assert [image.image_id for image in run.images()] == names
    read = Counter(key for key in store.asked("GET", "run/") if key.count("/") == 2)
    assert len(read) == 3 * len(names) and set(read.values()) == {1}
    assert len([key for key in store.asked("GET") if not key]) < 20  # listings, not one a part


def test_a_damaged_part_in_the_store_is_named_and_the_rest_is_read(store: Store) -> None:
    with open_run(store.uri("run")) as run:
        part = run.append(unit(record("0001")))
        run.append(unit(record("0002")))
    store.put(f"run/parts/{part}.parquet", b"damaged")
    found = RunDirectory.read(store.uri("run"))
    assert [r.image_id for r in found.records()] == ["0002"]
    assert list(found.damaged) == [f"{part}.parquet"]
    with open_run(store.uri("run")) as run:
        run.append(unit(record("0001")))
        assert len(run.records()) == 2


def test_a_far_store_is_asked_for_several_at_once_and_for_no_more(tmp_path: Path) -> None:
    together, inside, most, guard = threading.Barrier(AT_ONCE, timeout=60), 0, 0, threading.Lock()

    def work(number: int) -> int:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        together.wait()  # passes only when so many are inside
        with guard:
            inside -= 1
        return number

    far = Storage("s3://bucket/run?endpoint_override=127.0.0.1%3A1&scheme=http&region=us-east-1")
    assert list(far.each(work, range(2 * AT_ONCE))) == list(range(2 * AT_ONCE))
    assert most == AT_ONCE
    assert list(Storage(str(tmp_path)).each(lambda n: threading.current_thread().name, [1])) == ["MainThread"]


def test_a_store_with_folders_is_written_by_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())

    class FileSystem:
        @staticmethod
        def from_uri(uri: str) -> tuple[fs.FileSystem, str]:
            return inner, uri.partition("://")[2]

    monkeypatch.setattr(fs, "FileSystem", FileSystem)
    storage = Storage("hdfs://run")
    storage.write("parts/a", b"one")
    storage.write("parts/a", b"two")
    assert storage.read("parts/a") == b"two" and storage.names("parts") == ["a"]

    def torn(*_: object) -> None:
        raise OSError("the node went away")

    monkeypatch.setattr(Storage, "_upload", torn)
    with pytest.raises(RunDirectoryError, match="the node went away"):
        storage.write("parts/a", b"three")
    assert (tmp_path / "run/parts/a").read_bytes() == b"two"


class TestLock:
    def test_a_second_writer_is_refused(self, store: Store) -> None:
        with (
            open_run(store.uri("run")),
            pytest.raises(RunDirectoryError, match=f"being written by .*:{os.getpid()}"),
        ):
            open_run(store.uri("run"))
        assert [key for key in store.keys("run/") if "lock" in key] == []

    def test_of_two_that_start_together_the_one_that_was_overwritten_sees_it(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = Storage(store.uri("run"))
        first, second = RunLock(storage), RunLock(storage)
        monkeypatch.setattr("udc_ray.lock.time.sleep", lambda _: second._write())
        with pytest.raises(RunDirectoryError, match="being written by"):
            first.acquire()
        monkeypatch.undo()
        found = second._read()
        assert found is not None and found["token"] == second.token
