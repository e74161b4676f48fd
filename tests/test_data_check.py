"""What `check_data` finds out: layouts, counts, ranges, and every file that does not fit, without an error."""

from __future__ import annotations

import io
import json
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
import torch
from PIL import Image

from udc_ray.data import sheet
from udc_ray.data.check import check_data
from udc_ray.data.images import Picture, read_image
from udc_ray.data.open import open_dataset
from udc_ray.errors import DataError, SpecError
from udc_ray.spec import Entry


def opened_sheet(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


class TestReport:
    def test_a_sound_tree_of_pictures(self, tmp_path: Path) -> None:
        report = check_data(str(trees.udc_2020(tmp_path)))
        assert (report.layout, report.images, report.truths, report.checked) == ("udc-2020", 4, 4, 4)
        assert report.why == "LQ and HQ in Poled_val, Toled_val"
        assert report.parts == {"Poled_val": 2, "Toled_val": 2}
        assert (report.channels, report.domain, report.terms) == (3, "srgb", "research use only")
        assert report.problems == report.unpaired == report.mismatched == report.notes == ()
        stored = np.stack([trees.pixels(n) for n in (0, 1, 10, 11)])
        assert report.degraded is not None and report.truth is not None
        assert (report.degraded.low, report.degraded.high) == (stored.min(), stored.max())
        assert report.degraded.mean == pytest.approx(stored.mean(), rel=1e-5)
        assert report.degraded.sizes == {"18 x 20": 4} and report.degraded.types == {"uint8": 4}

    def test_raw_planes_in_their_own_units(self, tmp_path: Path) -> None:
        report = check_data(str(trees.udc_sit(tmp_path)))
        assert (report.layout, report.channels, report.domain) == ("udc-sit", 4, "linear")
        stored = np.stack([trees.raw(n) for n in (1, 2, 11, 12)])
        assert report.degraded is not None
        assert (report.degraded.low, report.degraded.high) == pytest.approx((stored.min(), stored.max()))
        assert report.degraded.types == {"uint16": 4}
        assert report.notes == ("test/input: no truths, left out",)

    def test_linear_light(self, tmp_path: Path) -> None:
        report = check_data(str(trees.mipi(tmp_path)))
        assert (report.layout, report.domain) == ("mipi-2022", "tonemapped")
        stored = np.stack([trees.light(n) for n in (101, 102)])
        assert report.truth is not None
        assert (report.truth.low, report.truth.high) == pytest.approx((stored.min(), stored.max()))
        assert report.truth.types == {"float32": 2}

    def test_synth_on_the_fly_tells_its_psfs_and_codes(self, tmp_path: Path) -> None:
        report = check_data(str(trees.synth(tmp_path)), params={"part": "test", "psf": 1})
        assert (report.layout, report.images, report.checked) == ("synth", 1, 1)
        assert report.notes == (
            "degraded images are computed by PSF ZTE_new_psf_1",
            "2 PSFs and 2 PSF codes belong to it",
        )
        assert report.problems == ()
        assert report.degraded is not None and report.degraded.types == {"computed": 1}
        expected = trees.synth_reference(trees.light(ord("c")), trees.kernel(1))
        assert report.degraded.high == pytest.approx(expected.max(), rel=1e-5)

    def test_synth_from_disk(self, tmp_path: Path) -> None:
        report = check_data(str(trees.synth_stored(trees.synth(tmp_path))))
        assert (report.layout, report.images) == ("synth", 6)
        assert report.why == "input and GT; degraded by ZTE_new_1, ZTE_new_5"
        assert report.parts == {f"ZTE_new_{k}/{split}": n for k in (1, 5) for split, n in (("test", 1), ("train", 2))}

    def test_stacks(self, tmp_path: Path) -> None:
        report = check_data(str(trees.udc_2020_mat(tmp_path)))
        assert (report.layout, report.images, report.truths) == ("udc-2020-mat", 6, 6)
        assert report.problems == () and report.degraded is not None
        (tmp_path / "poled_val_gt.mat").unlink()
        report = check_data(str(tmp_path))
        assert report.truths == 0
        assert "1 stacks of degraded images have no truth: poled_val_display.mat" in report.unpaired[0]

    def test_one_folder_that_is_no_pair(self, tmp_path: Path) -> None:
        trees.put(tmp_path / "a" / "1.png", trees.pixels(0))
        trees.put(tmp_path / "2.png", trees.pixels(1))
        report = check_data(str(tmp_path))
        assert (report.layout, report.images, report.truths, report.truth) == ("folder", 2, 0, None)
        assert report.parts == {".": 1, "a": 1}

    def test_a_limit_reads_the_images_that_a_run_reads(self, tmp_path: Path) -> None:
        root = trees.udc_2020(tmp_path, names=tuple("123456"))
        used = open_dataset(Entry(name=str(root)), limit=2).image_ids
        for image_id in set(open_dataset(Entry(name=str(root))).image_ids) - set(used):
            part, name = image_id.split("/")
            (root / part / "LQ" / f"{name}.png").write_bytes(b"damaged")
        report = check_data(str(root), limit=2)
        assert (report.images, report.checked, report.problems) == (12, 2, ())
        assert len(check_data(str(root)).problems) == 10

    def test_the_document_is_json_without_the_sheet(self, tmp_path: Path) -> None:
        document = check_data(str(trees.udc_2020(tmp_path))).document()
        again = json.loads(json.dumps(document))
        assert again["degraded"]["sizes"] == {"18 x 20": 4} and "sheet" not in again

    def test_nothing_to_look_at(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no data"):
            check_data(str(tmp_path / "nowhere"))
        with pytest.raises(DataError, match="no images in"):
            check_data(str(tmp_path))
        with pytest.raises(SpecError, match="no parameter 'prat'"):
            check_data(str(tmp_path), params={"prat": "test"})


class TestProblems:
    def kinds(self, root: Path) -> set[tuple[str, str]]:
        return {(p.kind, p.where) for p in check_data(str(root)).problems}

    def test_everything_at_once(self, tmp_path: Path) -> None:
        root = trees.udc_2020(tmp_path, names=("1", "2", "3", "4", "5"))
        part = root / "Poled_val"
        (part / "HQ" / "1.png").rename(part / "HQ" / "one.png")
        trees.put(part / "HQ" / "2.png", trees.pixels(0, 20, 18))
        (part / "LQ" / "3.png").write_bytes(b"damaged")
        trees.put(part / "HQ" / "4.png", np.ones((18, 20, 3), np.uint8))
        (part / "HQ" / "5.png").unlink()
        trees.put(part / "HQ" / "5.npy", trees.light(0) / 500)
        assert self.kinds(root) == {
            ("unpaired", "Poled_val/LQ/1.png"),
            ("unpaired", "Poled_val/HQ/one.png"),
            ("size", "Poled_val/2"),
            ("unreadable", "Poled_val/3"),
            ("range", "Poled_val/4"),
            ("kind", "Poled_val/5"),
            ("type", "Poled_val/5"),
        }
        report = check_data(str(root))
        assert (report.images, report.truths, report.checked) == (10, 9, 10)
        assert len(report.unpaired) == 2 and len(report.mismatched) == 5
        assert any("kinds of numbers" in note for note in report.notes)

    def test_messages_say_what_differs(self, tmp_path: Path) -> None:
        root = trees.mipi(tmp_path)
        trees.put(root / "training" / "GT" / "001.npy", trees.light(0) * 200)
        trees.put(root / "training" / "GT" / "002.npy", trees.light(102).astype(np.float16))
        messages = [(p.where, p.kind, p.message) for p in check_data(str(root)).problems]
        peak = float((trees.light(0) * 200).max())
        assert messages[0] == ("training/001", "range", f"linear values reach {peak:.4g}; beyond 500 they are clipped")
        assert messages[1][:2] == ("training/001", "range") and "mean values are far apart" in messages[1][2]
        assert messages[2:] == [("training/002", "type", "float32 degraded, float16 truth")]

    def test_light_without_a_lamp_is_noted(self, tmp_path: Path) -> None:
        for n, side in enumerate(("input", "GT")):
            trees.put(tmp_path / side / "1.npy", trees.light(n) / 500)
        assert any("without light beyond white no halo" in note for note in check_data(str(tmp_path)).notes)

    def test_corrected_inputs_that_are_not_used_are_noted(self, tmp_path: Path) -> None:
        root = trees.udc_2020(tmp_path)
        trees.put(root / "Poled_val" / "LQ_pre" / "1.png", trees.pixels(0))
        (note,) = check_data(str(root)).notes
        assert note.startswith("LQ_pre in Poled_val is not used") and "data.degraded=LQ_pre" in note


class TestSheet:
    def test_degraded_images_stand_beside_their_truths(self, tmp_path: Path) -> None:
        red, blue = (np.zeros((64, 96, 3), np.uint8) for _ in range(2))
        red[..., 0], blue[..., 2] = 255, 255
        trees.put(tmp_path / "LQ" / "1.png", red)
        trees.put(tmp_path / "HQ" / "1.png", blue)
        pixels = opened_sheet(check_data(str(tmp_path)).sheet)
        reds, blues = ((pixels == colour).all(2) for colour in ([255, 0, 0], [0, 0, 255]))
        assert reds.sum() == blues.sum() == 64 * 96  # smaller than a thumbnail: as it is
        assert np.argwhere(reds)[:, 1].max() < np.argwhere(blues)[:, 1].min()

    def test_a_large_image_becomes_small_and_keeps_its_shape(self) -> None:
        image = np.zeros((600, 1200, 3), np.float32)
        image[:, 600:] = 1
        small = sheet.thumbnail(Picture(planar(image), "srgb"))
        assert small.shape == (sheet.EDGE // 2, sheet.EDGE, 3)
        assert small[:, : sheet.EDGE // 2].max() == 0 and small[:, sheet.EDGE // 2 :].min() == 255

    def test_linear_light_is_tone_mapped_and_raw_planes_become_colours(self, tmp_path: Path) -> None:
        linear = np.broadcast_to(np.array([0.25, 0.75, 0.0], np.float32), (4, 5, 3))
        assert sheet.thumbnail(Picture(planar(linear), "linear"))[0, 0].tolist() == [128, 191, 0]
        planes = np.broadcast_to(np.array([0, 1023, 0, 0], np.uint16), (4, 5, 4))  # GR, R, B, GB
        shown = sheet.thumbnail(read_image(trees.put(tmp_path / "a.npy", planes), channels=4))
        assert shown[0, 0].tolist() == [255, 0, 0]

    def test_at_most_six_rows_and_none_where_nothing_can_be_read(self, tmp_path: Path) -> None:
        root = trees.udc_2020(tmp_path, names=tuple("123456789"))
        seven, six = check_data(str(root)).sheet, check_data(str(root), limit=6).sheet
        assert opened_sheet(seven).shape == opened_sheet(six).shape
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "1.png").write_bytes(b"damaged")
        report = check_data(str(tmp_path / "bad"))
        assert (report.sheet, report.degraded, report.channels) == (b"", None, 0)


def planar(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
