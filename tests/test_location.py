"""Weights and data behind a URI: the same as local ones, fetched once per node."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from purifier_doubles import tiny_prior
from safetensors.torch import save_file
from store_doubles import Store, running_store

from udc_ray import location
from udc_ray.config import Overrides, build_spec
from udc_ray.data.base import Dataset
from udc_ray.data.open import open_dataset
from udc_ray.data.simulate import get_display
from udc_ray.errors import DataError, WeightsError
from udc_ray.location import RemoteFile, list_files, local, local_folder, place
from udc_ray.models.loading import load_restorer
from udc_ray.models.nafnet import NAFNet
from udc_ray.plan import read_defence
from udc_ray.prepare import Prepared, prepare
from udc_ray.spec import Entry
from udc_ray.stores import child, explained


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv(location.CACHE, str(tmp_path / "cache"))
    with running_store() as running:
        yield running


def picture(path: Path, seed: int, edge: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def weights(path: Path) -> Path:
    torch.manual_seed(0)
    save_file(NAFNet(2, (1,), 1, (1,)).state_dict(), path)
    return path


def psf(path: Path) -> Path:
    np.save(path, np.eye(5, dtype=np.float32))
    return path


class TestFiles:
    def test_a_local_path_is_returned_as_it_is(self, tmp_path: Path) -> None:
        assert local("some/where.pt") == Path("some/where.pt")
        assert local(tmp_path) == tmp_path
        assert local(f"file://{tmp_path}/a.pt") == tmp_path / "a.pt"
        assert not location.is_uri("C:/a") and not location.is_uri("package:factory") and location.is_uri("gs://b/a")

    @pytest.mark.parametrize("explicit", [True, False])
    def test_a_file_is_fetched_once(self, store: Store, explicit: bool) -> None:
        store.put("deep/net.pt", b"content")
        uri = store.uri("deep/net.pt", explicit=explicit)
        first = local(uri)
        assert (first.read_bytes(), first.name, first.suffix) == (b"content", "net.pt", ".pt")
        assert local(uri) == first
        assert store.asked("GET", "net.pt") == ["deep/net.pt"]
        assert not [p for p in first.parent.iterdir() if p.name.endswith(".tmp")]

    def test_another_version_of_a_file_is_another_file(self, store: Store) -> None:
        first = local(store.put("net.pt", b"one"))
        second = local(store.put("net.pt", b"three"))
        assert (first.read_bytes(), second.read_bytes()) == (b"one", b"three")

    def test_a_file_that_was_cut_short_in_the_cache_is_fetched_again(self, store: Store) -> None:
        path = local(store.put("net.pt", b"content"))
        path.write_bytes(b"con")
        assert local(store.uri("net.pt")).read_bytes() == b"content"

    def test_processes_of_one_node_fetch_a_file_once_and_end(self, store: Store) -> None:
        uri = store.put("net.pt", os.urandom(20_000))
        script = (
            "import sys\nfrom udc_ray.location import local\n"
            "sys.stdin.readline(); print(len(local(sys.argv[1]).read_bytes()))"
        )
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes = [subprocess.Popen([sys.executable, "-c", script, uri], text=True, **pipes) for _ in range(3)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60) for process in processes]
        assert answers == [("20000\n", "")] * 3
        assert store.asked("GET", "net.pt") == ["net.pt"]

    def test_a_listing_is_that_of_the_folder(self, store: Store, tmp_path: Path) -> None:
        names = ["a b.png", "c%20d.png", "deep/er/e.npy", "q?x.txt", "ü#1.png"]
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_text(name)
        uri = store.mirror(tmp_path / "data", "my data")
        store.filesystem.create_dir(f"{store.bucket}/my data/empty")  # a marker of a folder is no file
        assert list_files(uri) == list_files(str(tmp_path / "data")) == sorted(names)
        assert list_files(f"{uri}/") == sorted(names)
        found = location.look(uri)
        assert isinstance(found, location.RemoteFolder)
        assert {name: local(file).read_text() for name, file in found.files.items()} == {n: n for n in names}
        alone = place(store.uri("my data/ü#1.png"))
        assert isinstance(alone, RemoteFile) and alone.key == found.files["ü#1.png"].key

    @pytest.mark.parametrize("explicit", [True, False])
    def test_a_name_below_a_uri_is_escaped_and_stands_before_the_query(self, store: Store, explicit: bool) -> None:
        store.put("root/a b/ü?#%20.pt", b"content")
        assert local(child(store.uri("root", explicit=explicit), "a b/ü?#%20.pt")).read_bytes() == b"content"
        assert child("s3://bucket/", "x") == "s3://bucket/x"
        assert child("/some/where", "a b") == "/some/where/a b"

    def test_a_file_that_is_replaced_under_way_is_refused(self, store: Store) -> None:
        found = place(store.put("net.pt", b"one"))
        store.put("net.pt", b"three")
        with pytest.raises(DataError, match="has 5 bytes, not 3 as when"):
            local(found)

    @pytest.mark.parametrize(
        "uri",
        [
            "s3://KEY:planted-secret@bucket/x",
            "s3://bucket/x?secret_key=planted-secret",
            "abfs://c@a.dfs.core.windows.net/x?client_secret=planted-secret",
            "https://host/x?sig=planted-secret",
        ],
    )
    def test_a_uri_with_a_secret_is_refused_and_not_repeated(self, uri: str) -> None:
        with pytest.raises(WeightsError, match="secret") as caught:
            local(uri, WeightsError)
        assert "planted-secret" not in str(caught.value)

    def test_what_is_not_there_is_one_message(self, store: Store, tmp_path: Path) -> None:
        store.put("folder/a.txt", b"a")
        for uri in (store.uri("nothing.pt"), "s3://no-such-bucket/x.pt"):
            with pytest.raises(DataError, match="there is nothing at s3://"):
                local(uri)
        with pytest.raises(WeightsError, match="is a folder, where a file"):
            local(store.uri("folder"), WeightsError)
        with pytest.raises(DataError, match="is a file, where a folder"):
            list_files(store.uri("folder/a.txt"))
        with pytest.raises(DataError, match="cannot open nosuch://"):
            local("nosuch://x/y")

    def test_a_cache_that_cannot_be_written_is_one_message(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = store.put("net.pt", b"x")
        (tmp_path / "file").touch()
        monkeypatch.setenv(location.CACHE, str(tmp_path / "file"))
        with pytest.raises(DataError, match="cannot fetch .*net.pt"):
            local(uri)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError("AWS Error ACCESS_DENIED during HeadObject operation"), "no credentials"),
            (OSError("AWS Error SLOW_DOWN during PutObject operation: reduce your rate"), "asked for too much"),
            (OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28"), "does not answer"),
            (OSError(errno.ENOSPC, "No space left on device"), "give UDC_RAY_CACHE on another disk"),
        ],
    )
    def test_what_a_store_refuses_has_a_likely_cause(self, error: OSError, message: str) -> None:
        with pytest.raises(DataError, match=message), explained("cannot", DataError, location.CACHE):
            raise error


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(location.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert location._cache(DataError) == tmp_path / "udc-ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert location._cache(DataError) == Path.home() / ".cache" / "udc-ray"
    monkeypatch.setenv(location.CACHE, str(tmp_path / "mine"))
    assert location._cache(DataError) == tmp_path / "mine"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (location.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(WeightsError, match="set UDC_RAY_CACHE"):
        location._cache(WeightsError)


def make_data(root: Path, layout: str) -> dict[str, Any]:
    """A data set on disk; returns the parameters that open it."""
    if layout == "clean":
        picture(root / "a.png", 1)
        picture(root / "b/a.png", 2)
        picture(root / "b/.hidden/c.png", 3)
        (root / "notes.txt").write_text("no image")
        return {"display": "toled", "size": 20}
    if layout == "degraded":
        picture(root / "a.png", 1)
        picture(root / "c d.png", 2)
        return {"reference": False}
    degraded, clean = {"pairs": ("LQ", "HQ"), "synth": ("input", "GT")}[layout]
    for n, name in enumerate(("0001", "b/0002")):
        picture(root / degraded / (f"new_{n}/{name}.png" if layout == "synth" else f"{name}.png"), n)
        picture(root / clean / f"{name}.png", 10 + n)
    return {}


def loaded(dataset: Dataset) -> list[torch.Tensor]:
    samples = [dataset.load(i) for i in dataset.image_ids]
    return [t for s in samples for t in (s.degraded, s.truth) if t is not None]


class TestData:
    @pytest.mark.parametrize("layout", ["pairs", "synth", "degraded", "clean"])
    def test_a_folder_behind_a_uri_is_the_local_one(self, store: Store, tmp_path: Path, layout: str) -> None:
        params = make_data(tmp_path / "photos", layout)
        here = open_dataset(Entry(name=str(tmp_path / "photos"), params=params))
        there = open_dataset(Entry(name=store.mirror(tmp_path / "photos", "some/photos"), params=params))
        assert there.image_ids == here.image_ids and len(here.image_ids) == 2
        assert (there.name, there.domain, there.has_truth) == (here.name, here.domain, here.has_truth)
        assert there.file_hashes() == here.file_hashes()
        assert all(torch.equal(a, b) for a, b in zip(loaded(there), loaded(here), strict=True))

    def test_one_file_behind_a_uri_is_the_local_one(self, store: Store, tmp_path: Path) -> None:
        path = picture(tmp_path / "one.v2.png", 1)
        here = open_dataset(Entry(name=str(path), params={"display": "poled"}))
        uri = store.put("one.v2.png", path.read_bytes())
        there = open_dataset(Entry(name=uri, params={"display": "poled"}))
        assert (there.image_ids, there.name) == (here.image_ids, here.name) == (("one.v2",), "one.v2")
        assert torch.equal(there.load("one.v2").degraded, here.load("one.v2").degraded)

    def test_another_node_fetches_what_it_needs_and_no_more(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_data(tmp_path / "photos", "pairs")
        dataset = open_dataset(Entry(name=store.mirror(tmp_path / "photos", "photos")))
        packed = pickle.dumps(dataset)
        monkeypatch.setenv(location.CACHE, str(tmp_path / "another node"))
        store.requests.clear()
        moved: Dataset = pickle.loads(packed)
        assert torch.equal(moved.load("0001").degraded, dataset.load("0001").degraded)
        assert sorted(set(store.asked("GET"))) == ["photos/HQ/0001.png", "photos/LQ/0001.png"]
        moved.load("0001")
        assert len(store.asked("GET")) == 2

    def test_a_limit_fetches_only_the_images_that_are_used(self, store: Store, tmp_path: Path) -> None:
        for n in range(6):
            picture(tmp_path / f"{n}.png", n)
        uri = store.mirror(tmp_path, "photos")
        dataset = open_dataset(Entry(name=uri, params={"reference": False}), limit=2)
        assert len(dataset.image_ids) == len(set(store.asked("GET", ".png"))) == 2

    def test_damaged_and_missing_data_are_named_by_their_uri(self, store: Store) -> None:
        store.put("bad/a.png", b"no picture")
        with pytest.raises(DataError, match=rf"cannot use {store.uri('bad/a.png')}: "):
            open_dataset(Entry(name=store.uri("bad"), params={"reference": False}))
        with pytest.raises(DataError, match=f"there is nothing at {store.uri('gone')}"):
            open_dataset(Entry(name=store.uri("gone")))
        store.put("pairs/LQ/a.png", b"x")
        store.put("pairs/HQ/b.png", b"x")
        with pytest.raises(DataError, match=r"1 of 1 degraded images have no truth in s3://.*/pairs/HQ: LQ/a.png"):
            open_dataset(Entry(name=store.uri("pairs")))


class TestWeights:
    def test_a_model_behind_a_uri_is_the_local_one(self, store: Store, tmp_path: Path) -> None:
        path = weights(tmp_path / "net.safetensors")
        uri = store.put("models/net.safetensors", path.read_bytes())
        sizes = {"width": 2, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}
        entries = [
            (Entry(name=str(path)), Entry(name=uri)),
            (Entry(name=str(path)), Entry(name=store.uri("models/net.safetensors", explicit=True))),
            tuple(Entry(name="nafnet", params=sizes | {"weights": where}) for where in (str(path), uri)),
            tuple(Entry(name="doubles_weights:build", params={"weights": where}) for where in (str(path), uri)),
        ]
        x = torch.rand(1, 3, 16, 16)
        for here, there in (tuple(map(load_restorer, pair)) for pair in entries):
            assert there.descriptor.sha256 == here.descriptor.sha256
            assert there.descriptor.name == here.descriptor.name
            assert torch.equal(there(x), here(x))

    def test_weights_that_cannot_be_read_are_named_by_their_uri(self, store: Store) -> None:
        store.put("net.safetensors", b"nonsense")
        with pytest.raises(WeightsError, match=f"cannot read the weights {store.uri('net.safetensors')}"):
            load_restorer(Entry(name=store.uri("net.safetensors")))
        for entry in (Entry(name=store.uri("no.pt")), Entry(name="default", params={"weights": store.uri("no.pt")})):
            with pytest.raises(WeightsError, match="there is nothing at"):
                load_restorer(entry)

    def test_a_prior_behind_a_uri_is_the_local_one(self, store: Store, tmp_path: Path) -> None:
        folder = tiny_prior(tmp_path / "prior")
        (folder / "training").mkdir()
        (folder / "training" / "checkpoint.pt").write_bytes(b"large")
        uri = store.mirror(folder, "priors/tiny")
        here, there = (
            read_defence(Entry(name="ddim", params={"weights": where})).purifier for where in (str(folder), uri)
        )
        assert here is not None and there is not None
        assert there.weight_hashes() == here.weight_hashes()
        there.prepare("cpu")
        assert not store.asked("GET", "checkpoint.pt")
        store.filesystem.delete_file(f"{store.bucket}/priors/tiny/prior.json")
        with pytest.raises(WeightsError, match=r"prior.json is missing"):
            there.weight_hashes()
        with pytest.raises(WeightsError, match="is a file, where a folder is wanted"):
            local_folder(store.uri("priors/tiny/config.json"), ("config.json",), WeightsError)

    def test_a_psf_behind_a_uri_is_the_local_one(self, store: Store, tmp_path: Path) -> None:
        path = psf(tmp_path / "mine.npy")
        store.put("mine.npy", path.read_bytes())
        here, there = get_display(str(path)), get_display(store.uri("mine.npy", explicit=True))
        assert there.name == here.name == "mine"
        assert torch.equal(pickle.loads(pickle.dumps(there)).kernel(), here.kernel())


def test_the_fingerprint_is_that_of_the_same_files_here(store: Store, tmp_path: Path) -> None:
    make_data(tmp_path / "photos", "clean")
    files = {
        "model": weights(tmp_path / "net.safetensors"),
        "display": psf(tmp_path / "mine.npy"),
        "prior": tiny_prior(tmp_path / "prior"),
        "data": tmp_path / "photos",
    }

    def prepared(where: dict[str, str]) -> Prepared:
        defence = f"ddim:weights={where['prior']}"
        flags = Overrides(
            model=where["model"], data=where["data"], display=where["display"], defenses=("none", defence)
        )
        return prepare(build_spec(flags=flags))

    here = prepared({name: str(path) for name, path in files.items()})
    store.mirror(tmp_path, "all")
    there = prepared({name: store.uri(f"all/{path.relative_to(tmp_path)}") for name, path in files.items()})
    assert there.document == here.document
    assert there.setup.fingerprint == here.setup.fingerprint
    assert [cell.id for cell in there.setup.plan.cells] == [cell.id for cell in here.setup.plan.cells]


def test_importing_opens_no_store() -> None:
    code = (
        "import pyarrow.fs as fs\n"
        "def refuse(*_): raise AssertionError('opened at import')\n"
        "fs.FileSystem = type('Closed', (), {'from_uri': staticmethod(refuse)})\n"
        "import udc_ray, udc_ray.run, udc_ray.location, udc_ray.prepare, udc_ray.rundir\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_remote_files_are_small_on_their_way() -> None:
    files = [
        RemoteFile(
            store="s3://bucket/folder", path=f"bucket/folder/{n}", uri=f"s3://bucket/folder/{n}", size=1, modified=n
        )
        for n in range(1000)
    ]
    assert len(pickle.dumps(files)) / len(files) < 200
