"""What travels with a job: own code, the user's package, files that only the client has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from udc_ray.config import Overrides, build_spec
from udc_ray.errors import UserError
from udc_ray.places import places_of, with_places
from udc_ray_cluster import shipping
from udc_ray_cluster.request import Request, read_request, write_request
from udc_ray_cluster.shipping import Freight, content_digest, deposit, own_code, settle


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "client" / "photos"
    for name in ("HQ/a.png", "LQ/a.png", "LQ/.hidden", "__pycache__/x.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def freight(tmp_path: Path, **more: object) -> Freight:
    stage = tmp_path / "stage"
    stage.mkdir()
    return Freight(stage, **{"root": None, **more})  # type: ignore[arg-type]  # as the fields are


def test_own_code_is_the_three_packages_whole() -> None:
    folders = [Path(folder) for folder in own_code()]
    assert [f.name for f in folders] == ["udc_ray", "udc_ray_cluster", "udc_ray_cli"]
    assert (folders[0] / "weights").is_dir() and (folders[1] / "job.py").is_file()


def test_a_folder_travels_and_lands_once_under_the_root(photos: Path, tmp_path: Path) -> None:
    load = freight(tmp_path)
    sent, root = load.place(str(photos)), tmp_path / "root"
    landed = Path(settle(sent, load.folder, str(root)))
    assert landed.is_relative_to(root) and landed.name == "photos"
    assert sorted(p.relative_to(landed).as_posix() for p in landed.rglob("*.*")) == ["HQ/a.png", "LQ/a.png"]
    (landed / "LQ" / "a.png").write_bytes(b"touched")
    assert settle(sent, load.folder, str(root)) == str(landed)
    assert (landed / "LQ" / "a.png").read_bytes() == b"touched"  # not copied again


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        freight(tmp_path).place(str(tmp_path / "photos"))


def test_a_file_that_was_cut_on_the_way_is_refused(photos: Path, tmp_path: Path) -> None:
    load = freight(tmp_path)
    sent = load.place(str(photos / "HQ" / "a.png"))
    next(load.folder.rglob("a.png")).write_bytes(b"HQ")
    with pytest.raises(UserError, match="upload of a.png is not complete"):
        settle(sent, load.folder, str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_what_the_cluster_sees_stays_where_it_is(photos: Path, tmp_path: Path) -> None:
    load = freight(tmp_path, root=str(photos.parent))
    assert load.place(str(photos)) == str(photos)
    assert load.place("s3://bucket/photos") == "s3://bucket/photos"
    assert load.place("/only/on/the/cluster") == "/only/on/the/cluster"
    shared = Freight(load.folder, None, (str(photos),))
    assert shared.place(str(photos / "HQ")) == str(photos / "HQ")
    assert not list(load.folder.iterdir())


def test_with_a_uri_as_root_nothing_goes_through_the_head(photos: Path, tmp_path: Path) -> None:
    root = (tmp_path / "store").as_uri()
    load = freight(tmp_path, root=root)
    placed = load.place(str(photos))
    assert placed == f"{root}/inputs/{content_digest(photos)}/photos"
    assert not list(load.folder.iterdir())
    assert (tmp_path / "store" / "inputs" / content_digest(photos) / "photos" / "HQ" / "a.png").is_file()


def test_the_digest_is_of_names_and_contents(photos: Path) -> None:
    before = content_digest(photos)
    (photos / "LQ" / ".hidden").write_bytes(b"other")
    assert content_digest(photos) == before
    (photos / "HQ" / "a.png").rename(photos / "HQ" / "b.png")
    assert content_digest(photos) != before


def test_too_much_is_refused_with_what_to_do(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = freight(tmp_path)
    load.place(str(photos))
    load.check_size()
    monkeypatch.setattr(shipping, "UPLOAD_BYTES", 4)
    with pytest.raises(UserError, match=r"--shared FOLDER"):
        load.check_size()


def test_a_root_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="what to change"):
        deposit(photos, content_digest(photos), str(tmp_path / "file"))


def test_the_package_of_the_model_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "home" / "mynets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("make = None")
    (tmp_path / "home" / "single_file_net.py").write_text("make = None")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(sys, "path", [*sys.path])
    load = freight(tmp_path)
    load.take_code("mynets.nets:make")
    load.take_code("single_file_net:make")
    load.take_code("torch.nn:Identity")  # installed: the cluster has to have it
    load.take_code("udc_ray.models.zoo:MODELS")
    load.take_code("default")
    load.take_code("no.such.thing:at_all")
    found = sorted(p.relative_to(load.folder).as_posix() for p in load.folder.rglob("*.py"))
    assert found == ["mynets/__init__.py", "mynets/nets.py", "single_file_net.py"]


def test_places_of_a_spec_are_all_changed(tmp_path: Path) -> None:
    net = tmp_path / "net.safetensors"
    flags = Overrides(
        model=str(net), data="/data/photos", display="/data/psf.npy", defenses=("ddim:steps=2,weights=/w/prior",)
    )
    spec = build_spec(flags=flags)
    assert sorted(places_of(spec)) == sorted(["/data/photos", "/data/psf.npy", str(net), "/w/prior"])
    moved = with_places(spec, lambda path: f"s3:/{path}")
    assert set(places_of(moved)) == {f"s3:/{path}" for path in places_of(spec)}
    assert places_of(build_spec(flags=Overrides(model="nafnet", weights="w.safetensors"))) == ["w.safetensors"]
    assert places_of(build_spec()) == []


def test_a_request_travels(tmp_path: Path) -> None:
    request = Request(command="evaluate", spec={"seed": 1}, out="/runs/a", fallback="/runs", shared=("/data",))
    write_request(tmp_path, request)
    assert read_request(tmp_path) == request
    (tmp_path / "request.json").write_text('{"command": "evaluate", "later": 1}')
    with pytest.raises(UserError, match="another version"):
        read_request(tmp_path)


def test_the_name_of_a_run_is_that_of_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(command="evaluate", spec={"seed": 1}, fallback="/runs")
    assert request.name() == request.model_copy(update={"arguments": ("x",), "max_hours": 1.0}).name()
    for change in ({"spec": {"seed": 2}}, {"out": "/a"}, {"storage": "s3://b"}, {"command": "campaign"}):
        assert request.model_copy(update=change).name() != request.name()
    assert request.root() == "/runs"
    monkeypatch.setenv("UDC_RAY_STORAGE", "s3://cluster/runs")
    assert request.root() == "s3://cluster/runs"
    assert request.model_copy(update={"storage": "/given"}).root() == "/given"
