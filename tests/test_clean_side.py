"""The clean side: what ships, what a user gives, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import restorer

from udc_ray.clean_side import (
    SHIPPED,
    CleanSide,
    clean_hashes,
    find_clean,
    load_clean_side,
    read_clean,
    save_clean_side,
)
from udc_ray.data import simulate
from udc_ray.errors import DataError, SpecError, WeightsError
from udc_ray.features import Layer, find_layer
from udc_ray.hashing import file_sha256
from udc_ray.metrics.frechet import kid
from udc_ray.models.base import Restorer
from udc_ray.models.loading import load
from udc_ray.training import clean_features, crops


@pytest.fixture(scope="module")
def default() -> Restorer:
    return load("default")


def side(count: int = 6, width: int = 6) -> CleanSide:
    features = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    return CleanSide(features=features, layer="first", model="abc", displays=["toled", "zte"] * (count // 2))


def test_what_ships_belongs_to_the_default_restorer_and_is_enough_for_fid(default: Restorer) -> None:
    layer = find_layer(default)
    shipped = read_clean(find_clean(None), default, layer)
    assert shipped.layer == layer.name == "middle_blks" and shipped.features.shape[1] == layer.width == 256
    for display in simulate.load_displays():
        own = shipped.behind(display, 2 * layer.width)
        assert set(own.displays) == {display} and len(own.features) >= 2 * layer.width
    card = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert card["sha256"] == file_sha256(SHIPPED) and card["shape"] == list(shipped.features.shape)
    assert card["model_sha256"] == default.descriptor.sha256
    assert SHIPPED.stat().st_size < 2**20


def test_what_ships_are_features_of_unattacked_crops_behind_each_display(default: Restorer) -> None:
    """Fresh crops of photographs that were never trained on are nearer to their own display's rows than to others'."""
    photographs = [
        crops.Photograph(name=path.stem, image=crops.read_photograph(path).image[:, :128, :128], hdr=False)
        for path in sorted((Path(simulate.HERE) / "samples" / "ldr").glob("*.png"))[:4]
    ]
    layer, shipped = find_layer(default), load_clean_side(SHIPPED)
    displays = simulate.load_displays()
    for name in ("toled", "zte"):
        made = list(clean_features.training_crops(photographs, [displays[name]], each=1))
        found = clean_features.clean_features(default, made)
        assert found.features.shape == (4, layer.width) and set(found.displays) == {name}
        distances = {other: kid(shipped.behind(other, 2).features, found.features) for other in ("toled", "zte")}
        assert min(distances, key=lambda other: distances[other]) == name


def test_crops_are_keyed(default: Restorer) -> None:
    photograph = crops.Photograph(name="p", image=torch.rand(3, 160, 160), hdr=False)
    display = simulate.get_display("toled")
    one, same, other = (
        [crop.image for crop in clean_features.training_crops([photograph], [display], each=3, seed=seed)]
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert {crop.shape[1] for crop in one} <= set(clean_features.EDGES)


def test_features_survive_the_file_to_half_precision(tmp_path: Path) -> None:
    made = side()
    path = save_clean_side(tmp_path / "a.npz", made)
    again = load_clean_side(path)
    assert np.allclose(again.features, made.features, rtol=1e-3)
    assert (again.layer, again.model, list(again.displays)) == ("first", "abc", list(made.displays))
    assert file_sha256(save_clean_side(tmp_path / "b.npz", made)) == file_sha256(path)


def test_rows_of_a_display_are_taken_where_there_are_enough() -> None:
    made = side(6)
    own = made.behind("zte", 3)
    assert np.array_equal(own.features, made.features[1::2])
    assert made.behind("zte", 4) is made and made.behind("poled", 1) is made and made.behind(None, 1) is made


def test_a_users_file_needs_the_features_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", features=np.ones((4, 6)))
    found = read_clean(tmp_path / "mine.npz", restorer(), Layer(name="first", width=6))
    assert found.features.shape == (4, 6) and found.displays == ()


@pytest.mark.parametrize("wrong", ["model", "layer", "width"])
def test_features_of_something_else_are_refused(tmp_path: Path, wrong: str) -> None:
    model = load("identity") if wrong == "model" else restorer()
    made = CleanSide(
        features=np.zeros((4, 5 if wrong == "width" else 6), np.float32),
        layer="last" if wrong == "layer" else "first",
        model="abc",
    )
    if wrong == "model":
        model.descriptor = restorer().descriptor.__class__(name="other", parameters=1, sha256="def")
    path = save_clean_side(tmp_path / "a.npz", made)
    said = {"model": "another network than other", "layer": "the layer last, not first", "width": "5 values"}[wrong]
    with pytest.raises(WeightsError, match=said):
        read_clean(path, model, Layer(name="first", width=6))


def test_the_shipped_features_are_refused_for_another_model() -> None:
    with pytest.raises(SpecError, match="clean features of the model conv are not known") as told:
        read_clean(find_clean(None), restorer(), Layer(name="first", width=6))
    assert "clean: a folder" in str(told.value)


@pytest.mark.parametrize("content", ["text", "other", "flat", "nan", "integers"])
def test_foreign_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.npz"
    if content == "text":
        path.write_text("no archive")
    else:
        values = {"other": np.ones((2, 2)), "flat": np.ones(3), "nan": np.full((2, 2), np.nan)}.get(
            content, np.ones((2, 2), int)
        )
        np.savez(path, **{"x" if content == "other" else "features": values})
    with pytest.raises(WeightsError, match=r"a\.npz"):
        load_clean_side(path)


def test_what_clean_may_name(tmp_path: Path) -> None:
    assert find_clean(None) == SHIPPED and clean_hashes(None) == {"clean": file_sha256(SHIPPED)}
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"two")
    hashes = clean_hashes(str(tmp_path))
    assert list(hashes) == ["clean/a", "clean/b"] and hashes["clean/a"] == file_sha256(tmp_path / "a.png")
    with pytest.raises(DataError, match="neither a folder nor"):
        find_clean(str(tmp_path / "a.png"))
    with pytest.raises(DataError, match="there is no data"):
        find_clean(str(tmp_path / "missing"))
