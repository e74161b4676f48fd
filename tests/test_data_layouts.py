"""The layouts of published data sets: recognised by what lies on disk, opened, and equal to what was written."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_trees as trees
import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch
from torch import Tensor

from udc_ray.data import layouts, matlab, synth
from udc_ray.data.base import Dataset, Sample
from udc_ray.data.entries import PathParams
from udc_ray.data.layouts import recognise
from udc_ray.data.open import open_dataset
from udc_ray.data.source import Source, find_source
from udc_ray.errors import DataError
from udc_ray.fingerprint import fingerprint_document
from udc_ray.spec import Entry, parse_spec


def opened(path: Path | str, **params: Any) -> Dataset:
    return open_dataset(Entry(name=str(path), params=params))


def layout_of(path: Path | str, **params: Any) -> str:
    return recognise(Source(where=find_source(str(path)), params=PathParams(**params))).layout.name


def truth_of(sample: Sample) -> Tensor:
    assert sample.truth is not None
    return sample.truth


def planar(values: np.ndarray, white: float = 1.0) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)).astype(np.float32)) / white


def tonemapped(linear: np.ndarray) -> np.ndarray:
    return linear / (linear + 0.25)


@pytest.mark.parametrize(
    ("make", "name", "ids"),
    [
        (trees.udc_2020, "udc-2020", ("Poled_val/1", "Poled_val/2", "Toled_val/1", "Toled_val/2")),
        (trees.mipi, "mipi-2022", ("training/001", "training/002")),
        (trees.srudc, "srudc", ("test/1", "train/1")),
        (lambda root: trees.srudc(root, "_new"), "srudc", ("test/1", "train/1")),
        (trees.mpgnet, "mpgnet", ("Test/Poled/1", "Train/Poled/1", "Train/Toled/1")),
    ],
)
def test_a_tree_is_recognised_and_its_ids_begin_with_the_part(
    tmp_path: Path, make: Callable[[Path], Path], name: str, ids: tuple[str, ...]
) -> None:
    root = make(tmp_path / "data")
    assert layout_of(root) == name
    dataset = opened(root)
    assert dataset.image_ids == ids
    assert (dataset.channels, dataset.has_truth, dataset.name) == (3, True, "data")
    for image_id in ids:
        sample = dataset.load(image_id)
        assert sample.degraded.shape == truth_of(sample).shape == (3, 18, 20)


class TestPictures:
    def test_udc_2020_pixels_are_those_that_were_written(self, tmp_path: Path) -> None:
        dataset = opened(trees.udc_2020(tmp_path))
        sample = dataset.load("Toled_val/2")
        assert torch.equal(sample.degraded, planar(trees.pixels(11), 255))
        assert torch.equal(truth_of(sample), planar(trees.pixels(111), 255))

    def test_full_size_pictures_are_recognised_without_a_name(self, tmp_path: Path) -> None:
        for side in ("LQ", "HQ"):
            trees.put(tmp_path / side / "1.png", np.zeros((1024, 2048, 3), np.uint8))
        assert layout_of(tmp_path) == "udc-2020"
        trees.put(tmp_path / "LQ" / "0.png", np.zeros((1024, 2047, 3), np.uint8))
        assert layout_of(tmp_path) == "pairs"

    @pytest.mark.parametrize("part", ["Poled_val", "poled_val", "/Poled_val/"])
    def test_part_keeps_the_ids(self, tmp_path: Path, part: str) -> None:
        root = trees.udc_2020(tmp_path)
        assert opened(root, part=part).image_ids == ("Poled_val/1", "Poled_val/2")
        assert opened(root / "Poled_val").image_ids == ("1", "2")

    def test_a_part_of_several_names_and_one_that_is_not_there(self, tmp_path: Path) -> None:
        root = trees.mpgnet(tmp_path)
        assert opened(root, part="Train/Toled").image_ids == ("Train/Toled/1",)
        assert opened(root, part="Poled").image_ids == ("Test/Poled/1", "Train/Poled/1")
        with pytest.raises(DataError, match="no image of .* lies in 'oled'") as caught:
            opened(root, part="oled")
        assert "Poled" in caught.value.cause

    def test_files_that_are_alone_are_told_of_both_sides_at_once(self, tmp_path: Path) -> None:
        root = trees.udc_2020(tmp_path)
        (root / "Poled_val" / "HQ" / "1.png").rename(root / "Poled_val" / "HQ" / "one.png")
        (root / "Toled_val" / "HQ" / "2.png").unlink()
        with pytest.raises(DataError) as caught:
            opened(root)
        assert "2 of 4 degraded images have no truth" in caught.value.what
        for name in ("Poled_val/LQ/1.png", "Toled_val/LQ/2.png", "Poled_val/HQ/one.png"):
            assert name in caught.value.what

    def test_unsound_files_are_told_in_one_message(self, tmp_path: Path) -> None:
        root = trees.udc_2020(tmp_path)
        trees.put(root / "Poled_val" / "HQ" / "1.png", trees.pixels(0, 18, 21))
        trees.put(root / "Poled_val" / "HQ" / "2.png", trees.pixels(0, 17, 20))
        (root / "Toled_val" / "LQ" / "1.png").write_bytes(b"")
        with pytest.raises(DataError) as caught:
            opened(root)
        what = caught.value.what
        assert what.startswith("3 of 4 images cannot be used: ") and "\n" not in what
        for text in ("18 x 20 and 18 x 21", "18 x 20 and 17 x 20", "Toled_val/LQ/1.png is empty"):
            assert text in what

    def test_any_two_folders_by_their_names(self, tmp_path: Path) -> None:
        trees.put(tmp_path / "set" / "LQ" / "1.png", trees.pixels(0))
        trees.put(tmp_path / "set" / "HQ" / "1.png", trees.pixels(1))
        trees.put(tmp_path / "set" / "LQ_pre" / "1.png", trees.pixels(2))
        trees.put(tmp_path / "else" / "1.png", trees.pixels(3))
        before = opened(tmp_path / "set", degraded="LQ_pre", truth="HQ").load("1")
        assert torch.equal(before.degraded, planar(trees.pixels(2), 255))
        assert torch.equal(truth_of(before), planar(trees.pixels(1), 255))
        far = opened(tmp_path / "else", truth=str(tmp_path / "set" / "HQ")).load("1")
        assert torch.equal(far.degraded, planar(trees.pixels(3), 255))
        assert torch.equal(truth_of(far), planar(trees.pixels(1), 255))
        alone = opened(tmp_path / "set", degraded="LQ_pre", reference=False)
        assert not alone.has_truth and torch.equal(alone.load("1").degraded, before.degraded)
        with pytest.raises(DataError, match="no folder LQ_post"):
            opened(tmp_path / "set", degraded="LQ_post", truth="HQ")
        with pytest.raises(DataError, match="LQ_pre has no truths"):
            opened(tmp_path / "set", degraded="LQ_pre")

    def test_patches_by_the_names_of_the_files(self, tmp_path: Path) -> None:
        for n, name in enumerate(("LQ_patch", "HQ_patch")):
            trees.put(tmp_path / "Test" / f"a_{name}_1.png", trees.pixels(n))
        assert layout_of(tmp_path) == "mpgnet-names"
        sample = opened(tmp_path).load("Test/a_LQ_patch_1")
        assert torch.equal(sample.degraded, planar(trees.pixels(0), 255))
        assert torch.equal(truth_of(sample), planar(trees.pixels(1), 255))

    def test_a_tree_of_pairs_without_reference_gives_its_degraded_sides(self, tmp_path: Path) -> None:
        dataset = opened(trees.mipi(tmp_path), reference=False)
        assert dataset.image_ids == ("training/001", "training/002", "validation/001", "validation/002")
        assert not dataset.has_truth

    def test_a_tree_of_pairs_behind_a_display_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="folder of pairs"):
            opened(trees.udc_2020(tmp_path), display="toled")

    def test_links_that_lead_round_change_nothing(self, tmp_path: Path) -> None:
        root = trees.udc_2020(tmp_path / "set")
        (root / "again").symlink_to(root, target_is_directory=True)
        (root / "Poled_val" / "up").symlink_to(root, target_is_directory=True)
        assert len(opened(root).image_ids) == 4


class TestSit:
    def test_four_planes_declare_four_channels(self, tmp_path: Path) -> None:
        root = trees.udc_sit(tmp_path)
        assert layout_of(root) == layout_of(root / "validation") == "udc-sit"
        dataset = opened(root)
        assert (dataset.channels, dataset.domain) == (4, "linear")
        assert dataset.image_ids == ("training/1", "training/2", "validation/1", "validation/2")
        sample = dataset.load("validation/2")
        assert torch.equal(sample.degraded, planar(trees.raw(12), 1023))
        assert torch.equal(truth_of(sample), planar(trees.raw(112), 1023))
        assert any("test/input has no truths" in note for note in getattr(dataset, "notes", ()))

    def test_a_model_of_other_channels_is_refused(self, tmp_path: Path) -> None:
        entry = Entry(name=str(trees.udc_sit(tmp_path / "raw")))
        assert open_dataset(entry, channels=4).channels == 4
        with pytest.raises(DataError, match="4 channels, the model takes 3"):
            open_dataset(entry, channels=3)
        with pytest.raises(DataError, match="3 channels, the model takes 4"):
            open_dataset(Entry(name=str(trees.udc_2020(tmp_path / "rgb"))), channels=4)

    def test_one_part_and_withheld_truths(self, tmp_path: Path) -> None:
        root = trees.udc_sit(tmp_path)
        assert opened(root / "validation").image_ids == ("1", "2")
        held = opened(root / "test", reference=False)
        assert (held.image_ids, held.channels) == (("input/1", "input/2"), 4)

    @pytest.mark.parametrize("stored", ["<u2", ">u2", "<f4", ">f8", "fortran"])
    def test_every_order_of_bytes_and_axes_gives_the_same(self, tmp_path: Path, stored: str) -> None:
        values = trees.raw(0)
        as_stored = np.asfortranarray(values) if stored == "fortran" else values.astype(stored)
        for side in ("input", "GT"):
            trees.put(tmp_path / side / "1.npy", as_stored)
        assert torch.equal(opened(tmp_path).load("1").degraded, planar(values, 1023))


class TestStacks:
    @pytest.mark.parametrize("order", ["little", "big"])
    @pytest.mark.parametrize("packed", [True, False])
    def test_a_stack_is_what_scipy_wrote(self, tmp_path: Path, order: str, packed: bool) -> None:
        values = np.stack([trees.pixels(n) for n in range(5)])
        others: dict[str, Any] = {"text": "words", "table": {"a": 1.0}, "numbers": np.arange(6.0)}
        path = tmp_path / "a.mat"
        scipy.io.savemat(path, others | {"val_display": values}, do_compression=packed)
        if order == "big":
            path.write_bytes(_big_endian(values))
        assert [str(v) for v in matlab.list_stacks(path)] == ["val_display (uint8 5 x 18 x 20 x 3)"]
        assert np.array_equal(matlab.read_stack(path, 0, "val_display"), values)
        assert np.array_equal(scipy.io.loadmat(path)["val_display"], values)

    def test_pairs_of_stacks(self, tmp_path: Path) -> None:
        root = trees.udc_2020_mat(tmp_path / "mats")
        assert layout_of(root) == "udc-2020-mat"
        dataset = opened(root)
        assert dataset.image_ids[0] == "poled_val_display/0001" and len(dataset.image_ids) == 6
        for n, display in enumerate(("poled", "toled")):
            sample = dataset.load(f"{display}_val_display/0003")
            assert torch.equal(sample.degraded, planar(trees.pixels(50 * n + 2), 255))
            assert torch.equal(truth_of(sample), planar(trees.pixels(50 * n + 12), 255))
        assert opened(root, part="toled_val_display", size=16).load("toled_val_display/0001").degraded.shape[1] == 16

    def test_hashes_name_the_files(self, tmp_path: Path) -> None:
        root = trees.udc_2020_mat(tmp_path)
        hashes = opened(root).file_hashes()
        assert set(hashes) == {f"{d}_val_display{t}" for d in ("poled", "toled") for t in ("", ":truth")}
        content = (root / "poled_val_gt.mat").read_bytes()
        assert hashes["poled_val_display:truth"] == hashlib.sha256(content).hexdigest()

    def test_both_stacks_in_one_file_and_one_file_alone(self, tmp_path: Path) -> None:
        stacks = {"val_display": np.stack([trees.pixels(0)]), "val_gt": np.stack([trees.pixels(1)])}
        scipy.io.savemat(tmp_path / "both.mat", stacks)
        both = opened(tmp_path / "both.mat")
        assert both.image_ids == ("both/val_display/0001",)
        assert torch.equal(truth_of(both.load(both.image_ids[0])), planar(trees.pixels(1), 255))
        scipy.io.savemat(tmp_path / "alone.mat", {"anything": stacks["val_display"]})
        with pytest.raises(DataError, match=r"no truth: alone\.mat \(anything\)"):
            opened(tmp_path / "alone.mat")
        alone = opened(tmp_path / "alone.mat", reference=False)
        assert (alone.image_ids, alone.has_truth) == (("alone/0001",), False)
        assert alone.load("alone/0001").truth is None


def _big_endian(values: np.ndarray) -> bytes:
    """A MATLAB 5 file of the other byte order, which scipy reads and does not write."""

    def element(kind: int, content: bytes) -> bytes:
        return np.array([kind, len(content)], ">u4").tobytes() + content + b"\0" * (-len(content) % 8)

    parts = element(6, np.array([9, 0], ">u4").tobytes()) + element(5, np.array(values.shape, ">i4").tobytes())
    parts += element(1, b"val_display") + element(2, values.tobytes(order="F"))
    return b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + element(14, parts)


class TestSynth:
    def test_the_formula_equals_a_direct_reference(self) -> None:
        """Odd and even sizes, a PSF smaller and one larger than the padded image, in float64."""
        for n, (height, width, edge) in enumerate([(18, 20, 9), (17, 23, 8), (5, 6, 407)]):
            linear, psf = trees.light(n, height, width), trees.kernel(n, edge)
            found = synth.published_degradation(planar(linear), torch.from_numpy(psf.transpose(2, 0, 1).copy()))
            assert found.dtype == torch.float64
            expected = trees.synth_reference(linear, psf)
            error = np.abs(tonemapped(found.permute(1, 2, 0).numpy()) - tonemapped(expected)).max()
            assert error < 1e-5
            assert error < 1e-9  # both are float64

    def test_it_is_convolution_with_darkness_around(self) -> None:
        linear, psf = trees.light(0), trees.kernel(0)
        found = synth.published_degradation(planar(linear), torch.from_numpy(psf.transpose(2, 0, 1).copy()))
        for c in range(3):
            plane = linear[..., c].astype(np.float64)
            expected = scipy.ndimage.convolve(plane, psf[..., c], mode="constant").clip(0, 500)
            np.testing.assert_allclose(found[c], expected, rtol=0, atol=1e-9)

    def test_a_single_point_shows_the_psf_where_it_stands_and_saturates(self) -> None:
        linear = torch.zeros(3, 12, 13)
        linear[:, 6, 6] = 400.0
        psf = torch.zeros(3, 4, 4, dtype=torch.float64)
        psf[:, 2, 2], psf[:, 3, 0] = 1.5, 0.5  # the centre of an even PSF is [K // 2, L // 2]
        found = synth.published_degradation(linear, psf)
        expected = torch.zeros(3, 12, 13, dtype=torch.float64)
        expected[:, 6, 6], expected[:, 7, 4] = 500.0, 200.0
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

    def test_on_the_fly_is_what_lies_on_disk(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        fly = opened(root, psf="all")
        assert layout_of(root) == "synth" and fly.domain == "tonemapped"
        trees.synth_stored(root)
        stored = opened(root)
        assert layout_of(root) == "synth" and type(stored) is not type(fly)
        assert fly.image_ids == stored.image_ids == opened(root / "synthetic_data").image_ids
        assert stored.image_ids[-1] == "ZTE_new_5/train/b" and len(stored.image_ids) == 6
        for image_id in stored.image_ids:
            one, other = fly.load(image_id), stored.load(image_id)
            assert torch.equal(truth_of(one), truth_of(other))
            torch.testing.assert_close(one.degraded, other.degraded, rtol=0, atol=1e-6)
            assert not torch.equal(one.degraded, truth_of(one))

    def test_the_centre_psf_unless_another_is_named(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        centre = opened(root / "synthetic_data", part="test")
        assert centre.image_ids == ("ZTE_new_5/test/c",)
        assert opened(root, psf=1, part="test").image_ids == ("ZTE_new_1/test/c",)
        assert opened(root, psf="1").image_ids[0] == "ZTE_new_1/test/c"
        trees.synth_stored(root)
        assert opened(root, psf=1, part="test").image_ids == ("ZTE_new_1/test/c",)
        with pytest.raises(DataError, match="no PSF 7") as caught:
            opened(root, psf=7)
        assert "1, 5" in caught.value.cause

    def test_a_psf_file_degrades_any_folder_of_linear_images(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        own = trees.put(tmp_path / "mine.npy", trees.kernel(77))
        dataset = opened(root / "synthetic_data" / "GT" / "test", psf=str(own))
        assert dataset.image_ids == ("c",)
        expected = trees.synth_reference(trees.light(ord("c")), trees.kernel(77))
        np.testing.assert_allclose(dataset.load("c").degraded.permute(1, 2, 0), tonemapped(expected), atol=1e-6)

    def test_crops_are_cut_after_degrading(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        whole, part = (opened(root, size=size).load("ZTE_new_5/test/c") for size in (None, 10))
        assert torch.equal(part.degraded, whole.degraded[:, 4:14, 5:15])
        assert torch.equal(truth_of(part), truth_of(whole)[:, 4:14, 5:15])

    def test_hashes_and_pickling(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        dataset = opened(root, part="test")
        digests = {
            key: hashlib.sha256((root / path).read_bytes()).hexdigest()
            for key, path in {
                "ZTE_new_5/test/c": "synthetic_data/GT/test/c.npy",
                "psf:ZTE_new_psf_5": "PSF/ZTE_new/ZTE_new_psf_5.npy",
            }.items()
        }
        assert dataset.file_hashes() == digests
        again = pickle.loads(pickle.dumps(dataset))
        assert again == dataset
        assert torch.equal(again.load("ZTE_new_5/test/c").degraded, dataset.load("ZTE_new_5/test/c").degraded)

    def test_a_psf_that_changes_is_read_anew(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        before = opened(root).load("ZTE_new_5/test/c").degraded
        trees.put(root / "PSF" / "ZTE_new" / "ZTE_new_psf_5.npy", trees.kernel(99))
        assert not torch.equal(opened(root).load("ZTE_new_5/test/c").degraded, before)

    def test_what_does_not_fit_together_is_refused(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        with pytest.raises(DataError, match="psf 5 degrades clean linear images"):
            opened(root, psf=5, display="toled")
        with pytest.raises(DataError, match="psf 5 degrades clean linear images"):
            opened(root, psf=5, reference=False)
        (root / "PSF").rename(root / "psf away")
        with pytest.raises(DataError, match="no PSFs belong to") as caught:
            opened(root, psf=5)
        assert "data.psf=PATH.npy" in caught.value.change

    def test_8_bit_truths_are_refused(self, tmp_path: Path) -> None:
        root = trees.synth(tmp_path)
        trees.put(root / "synthetic_data" / "GT" / "test" / "c.npy", trees.pixels(0))
        with pytest.raises(DataError, match="8-bit values") as caught:
            opened(root, part="test")
        assert "halo" in caught.value.cause


class TestFingerprint:
    def document(self, **params: Any) -> Any:
        return fingerprint_document(
            parse_spec({"attacks": ["fgsm"], "defenses": ["none"], "data": {"name": "some/where", **params}}), {}, "cpu"
        )["data"]

    def test_data_that_were_known_before_keep_theirs(self) -> None:
        before = {"name": "PATH", "display": None, "size": None, "reference": True, "seed": 0}
        assert self.document() == before
        assert self.document(display="toled", size=64) == before | {"display": "toled", "size": 64}

    def test_what_came_later_is_in_it_where_it_is_given(self) -> None:
        assert self.document(part="test")["part"] == "test"
        assert self.document(psf=5)["psf"] == 5
        assert "part" not in self.document(psf=5)


def test_the_table_names_every_layout_once() -> None:
    rows = layouts.rows()
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == len(layouts.LAYOUTS)
    assert {"layout synth", "layout udc-2020", "layout udc-sit", "layout mipi-2022", "layout folder"} <= set(names)
    assert all(row["summary"] and row["parameters"] for row in rows)
