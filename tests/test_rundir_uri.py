from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from rundir_doubles import image_of, open_run, record, unit

from udc_ray import lock
from udc_ray.errors import RunDirectoryError
from udc_ray.rundir import RunDirectory


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that is no local file system to us, kept in a folder so that a test can look into it."""
    (tmp_path / "bucket").mkdir()
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())

    class FileSystem:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            return store, uri.partition("://")[2].partition("?")[0]

    monkeypatch.setattr(fs, "FileSystem", FileSystem)
    return tmp_path / "bucket"


def test_a_run_on_a_uri_is_the_same_run(remote: Path) -> None:
    with open_run("s3://bucket/run") as run:
        run.append(unit(record(), images=[image_of(record())], curves={"c/0001/0": [(1, 0.5)]}))
        with pytest.raises(RunDirectoryError, match="being written"):
            open_run("s3://bucket/run")
        run.compact()
    with open_run("s3://bucket/run") as run:
        assert run.resumed
        assert run.records() == [record()]
        assert len(list(run.images())) == 1
    with pytest.raises(RunDirectoryError, match="differs in seed"):
        open_run("s3://bucket/run", seed=9)
    assert {p.name for p in (remote / "run").iterdir()} >= {"spec.yaml", "results.parquet", "parts", "artifacts"}
    assert not (remote / "run/lock").exists()


def test_a_real_store_of_pyarrow_holds_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, _ = fs.FileSystem.from_uri("mock:///")

    class FileSystem:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            return memory, uri.partition(":///")[2]

    monkeypatch.setattr(fs, "FileSystem", FileSystem)
    with open_run("mock:///runs/one") as run:
        run.append(unit(record()))
    assert RunDirectory.read("mock:///runs/one").records() == [record()]


def test_a_file_uri_is_a_local_run(tmp_path: Path) -> None:
    open_run(f"file://{tmp_path}/run").close()
    assert (tmp_path / "run/spec.yaml").exists()


@pytest.mark.parametrize("out", ["s3://AK:planted-secret@bucket/x", "nosuch://place/x"])
def test_a_uri_with_a_secret_or_of_no_store_is_refused(out: str) -> None:
    with pytest.raises(RunDirectoryError) as caught:
        open_run(out)
    assert "planted-secret" not in str(caught.value)
