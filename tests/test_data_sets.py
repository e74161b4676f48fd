"""Data sets: pairs, one folder, the shipped images; opening them from a spec; writing simulated files."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from udc_ray.data import domains, folder, psf_view, shipped, simulate
from udc_ray.data.images import read_image
from udc_ray.data.make_samples import brightest_window
from udc_ray.data.open import open_dataset, pick
from udc_ray.data.pairs import open_pairs
from udc_ray.data.simulate_files import simulate_folder, write_atomically
from udc_ray.errors import DataError, SpecError
from udc_ray.spec import Entry

TOLED = simulate.get_display("toled")
ZTE = simulate.get_display("zte")


def pixels(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, rgb=values)
    else:
        Image.fromarray(values).save(path)
    return path


def make_pair(root: Path, layout: tuple[str, str] = ("LQ", "HQ"), names: tuple[str, ...] = ("0001", "b/0002")) -> Path:
    for n, name in enumerate(names):
        put(root / layout[0] / f"{name}.png", pixels(n))
        put(root / layout[1] / f"{name}.tif", pixels(100 + n))
    return root


class TestPairs:
    @pytest.mark.parametrize("layout", [("LQ", "HQ"), ("input", "GT"), ("lq", "hq"), ("Input", "gt")])
    def test_pairs_are_matched_by_path_without_suffix(self, tmp_path: Path, layout: tuple[str, str]) -> None:
        pairs = open_pairs(make_pair(tmp_path, layout))
        assert pairs.image_ids == ("0001", "b/0002")
        assert (pairs.domain, pairs.has_truth, pairs.notes) == ("srgb", True, ())
        sample = pairs.load("b/0002")
        assert sample.truth is not None
        assert torch.equal(sample.degraded * 255, torch.from_numpy(pixels(1)).permute(2, 0, 1).float())
        assert torch.equal(sample.truth * 255, torch.from_numpy(pixels(101)).permute(2, 0, 1).float())

    def test_synth_layout_shares_its_truths(self, tmp_path: Path) -> None:
        light = np.random.default_rng(0).random((4, 4, 3)).astype(np.float32) * 300
        for k in (1, 5):
            put(tmp_path / "input" / f"ZTE_new_{k}" / "test" / "a.npy", light * k / 10)
        put(tmp_path / "GT" / "test" / "a.npy", light)
        pairs = open_pairs(tmp_path)
        assert pairs.image_ids == ("ZTE_new_1/test/a", "ZTE_new_5/test/a")
        assert pairs.domain == "tonemapped"
        sample = pairs.load("ZTE_new_5/test/a")
        assert sample.truth is not None
        np.testing.assert_allclose(sample.truth.permute(1, 2, 0), light / (light + 0.25), rtol=1e-6)
        np.testing.assert_allclose(sample.degraded.permute(1, 2, 0), light / 2 / (light / 2 + 0.25), rtol=1e-6)

    def test_raw_planes(self, tmp_path: Path) -> None:
        raw = np.random.default_rng(0).integers(0, 1024, (4, 4, 4)).astype(np.uint16)
        put(tmp_path / "input" / "1.npy", raw)
        put(tmp_path / "GT" / "1.npy", raw)
        pairs = open_pairs(tmp_path, channels=4)
        assert pairs.domain == "linear"
        assert torch.equal(pairs.load("1").degraded * 1023, torch.from_numpy(raw.astype(np.float32)).permute(2, 0, 1))

    def test_degraded_without_truth_is_refused_and_extra_truths_are_counted(self, tmp_path: Path) -> None:
        make_pair(tmp_path)
        put(tmp_path / "HQ" / "more.png", pixels(7))
        assert open_pairs(tmp_path).notes == ("1 truths without degraded image left out",)
        put(tmp_path / "LQ" / "lonely.png", pixels(8))
        with pytest.raises(DataError, match="1 of 3 degraded images have no truth.*lonely.png"):
            open_pairs(tmp_path)

    def test_sizes_that_differ_are_refused_when_opened(self, tmp_path: Path) -> None:
        make_pair(tmp_path)
        put(tmp_path / "HQ" / "b" / "0002.tif", pixels(9, 12, 15))
        with pytest.raises(DataError, match="'b/0002' differ: 12 x 16 and 12 x 15"):
            open_dataset(Entry(name=str(tmp_path)))

    def test_kinds_that_differ_are_refused(self, tmp_path: Path) -> None:
        make_pair(tmp_path)
        (tmp_path / "HQ" / "0001.tif").unlink()
        put(tmp_path / "HQ" / "0001.npy", np.ones((12, 16, 3), np.float32))
        with pytest.raises(DataError, match="linear values"):
            open_dataset(Entry(name=str(tmp_path)))

    def test_two_layouts_at_once_are_refused(self, tmp_path: Path) -> None:
        make_pair(make_pair(tmp_path), ("input", "GT"))
        with pytest.raises(DataError, match="both LQ/HQ and input/GT"):
            open_pairs(tmp_path)

    def test_empty_halves_are_refused(self, tmp_path: Path) -> None:
        make_pair(tmp_path)
        for path in (tmp_path / "HQ").rglob("*.tif"):
            path.unlink()
        with pytest.raises(DataError, match="no images in .*HQ"):
            open_pairs(tmp_path)


class TestSimulated:
    def test_size_crops_after_degrading(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", pixels(0, 40, 44))
        whole = folder.open_simulated(tmp_path, TOLED).load("a")
        part = folder.open_simulated(tmp_path, TOLED, size=20).load("a")
        assert whole.truth is not None and part.truth is not None
        assert torch.equal(part.degraded, whole.degraded[:, 10:30, 12:32])
        assert torch.equal(part.truth, whole.truth[:, 10:30, 12:32])

    def test_noise_is_keyed_by_seed_and_id_only(self, tmp_path: Path) -> None:
        flat = np.full((16, 16, 3), 128, np.uint8)
        here, there = put(tmp_path / "x" / "a.png", flat), put(tmp_path / "y" / "a.png", flat)
        put(there.parent / "b.png", flat)
        one = folder.open_simulated(here, TOLED).load("a").degraded
        dataset = folder.open_simulated(there.parent, TOLED)
        assert torch.equal(one, dataset.load("a").degraded)
        assert not torch.equal(one, dataset.load("b").degraded)
        assert not torch.equal(one, folder.open_simulated(here, TOLED, seed=1).load("a").degraded)

    def test_equals_the_simulator(self, tmp_path: Path) -> None:
        from udc_ray import rng

        light = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32) * 3
        path = put(tmp_path / "a.npz", light)
        sample = folder.open_simulated(path, TOLED).load("a")
        linear = torch.from_numpy(light).permute(2, 0, 1)
        expected = simulate.degrade(linear, TOLED, rng.generator(0, "a", "simulate/toled"), hdr=True)
        assert torch.equal(sample.degraded, expected)
        assert sample.truth is not None
        torch.testing.assert_close(sample.truth, linear / (linear + 0.25))

    def test_a_loaded_sample_may_be_changed(self, tmp_path: Path) -> None:
        dataset = folder.open_simulated(put(tmp_path / "a.png", pixels(0)), TOLED)
        first = dataset.load("a").degraded
        kept = first.clone()
        first.zero_()
        assert torch.equal(dataset.load("a").degraded, kept)

    def test_mixed_domains_are_refused_where_they_differ(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", pixels(0))
        put(tmp_path / "b.npy", np.ones((12, 16, 3), np.float32))
        entry = Entry(name=str(tmp_path), params={"display": "toled"})
        with pytest.raises(DataError, match=r"b\.npy holds linear values"):
            open_dataset(entry)
        assert open_dataset(Entry(name=str(tmp_path), params={"display": "zte"})).domain == "tonemapped"

    def test_a_users_psf_is_hashed_and_its_place_does_not_matter(self, tmp_path: Path) -> None:
        path = put(tmp_path / "a.png", pixels(0))
        psf = np.random.default_rng(0).random((5, 5)).astype(np.float32)
        loads = []
        for place in ("one", "two"):
            (tmp_path / place).mkdir()
            np.save(tmp_path / place / "mine.npy", psf)
            dataset = open_dataset(Entry(name=str(path), params={"display": str(tmp_path / place / "mine.npy")}))
            loads.append(dataset.load("a").degraded)
            digest = hashlib.sha256((tmp_path / place / "mine.npy").read_bytes()).hexdigest()
            assert dataset.file_hashes()["display:psf"] == digest
        assert torch.equal(*loads)


class TestOpen:
    def test_a_folder_of_unknown_meaning_is_refused(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", pixels(0))
        with pytest.raises(DataError, match="is no pair") as caught:
            open_dataset(Entry(name=str(tmp_path)))
        assert "--display" in caught.value.change and "--no-reference" in caught.value.change

    def test_no_reference(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", pixels(0))
        dataset = open_dataset(Entry(name=str(tmp_path), params={"reference": False, "size": 8}))
        assert not dataset.has_truth
        sample = dataset.load("a")
        assert sample.truth is None
        assert sample.degraded.shape == (3, 8, 8)

    def test_no_reference_on_a_pair_uses_its_degraded_side(self, tmp_path: Path) -> None:
        dataset = open_dataset(Entry(name=str(make_pair(tmp_path)), params={"reference": False}))
        assert dataset.image_ids == ("0001", "b/0002")
        assert not dataset.has_truth

    @pytest.mark.parametrize(
        ("params", "message"),
        [({"display": "toled"}, "folder of pairs"), ({"display": "toled", "reference": False}, "folder of pairs")],
    )
    def test_a_display_for_degraded_images_is_refused(
        self, tmp_path: Path, params: dict[str, object], message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            open_dataset(Entry(name=str(make_pair(tmp_path)), params=params))

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"displya": "toled"}, "no parameter 'displya'"),
            ({"size": 0}, "size"),
            ({"size": 300}, "larger than the shipped"),
            ({"which": "none"}, "which"),
            ({"which": "all"}, "mixes 8-bit and HDR"),
        ],
    )
    def test_wrong_parameters_of_the_shipped_images(self, params: dict[str, object], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            open_dataset(Entry(name="shipped", params=params))

    def test_other_mistakes(self, tmp_path: Path) -> None:
        path = put(tmp_path / "a.png", pixels(0))
        with pytest.raises(DataError, match="there is no data"):
            open_dataset(Entry(name=str(tmp_path / "nowhere")))
        with pytest.raises(DataError, match="unknown display"):
            open_dataset(Entry(name=str(path), params={"display": "tolde"}))
        with pytest.raises(DataError, match="smaller than the crop"):
            open_dataset(Entry(name=str(path), params={"display": "toled", "size": 64}))
        with pytest.raises(DataError, match="4 channels"):
            open_dataset(Entry(name="shipped"), channels=4)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match=r"a\.png"):
            open_dataset(Entry(name=str(path), params={"display": "toled"}))

    def test_hashes_and_pickling(self, tmp_path: Path) -> None:
        make_pair(tmp_path)
        dataset = open_dataset(Entry(name=str(tmp_path)), limit=1)
        (only,) = dataset.image_ids
        expected = {
            key: hashlib.sha256(path.read_bytes()).hexdigest()
            for key, path in {only: tmp_path / f"LQ/{only}.png", f"{only}:truth": tmp_path / f"HQ/{only}.tif"}.items()
        }
        assert dataset.file_hashes() == expected
        again = pickle.loads(pickle.dumps(dataset))
        assert again == dataset
        assert torch.equal(again.load(only).degraded, dataset.load(only).degraded)

    def test_relative_paths_survive_another_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_pair(tmp_path / "set")
        monkeypatch.chdir(tmp_path)
        dataset = open_dataset(Entry(name="set"))
        monkeypatch.chdir("/")
        assert dataset.load("0001").degraded.shape == (3, 12, 16)

    @given(ids=st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=20), limit=st.integers(1, 20))
    def test_a_smaller_limit_is_a_subset(self, ids: set[str], limit: int) -> None:
        fewer, more = pick(ids, limit), pick(sorted(ids, reverse=True), limit + 1)
        assert set(fewer) <= set(more) <= ids
        assert len(fewer) == min(limit, len(ids))
        assert list(fewer) == sorted(fewer)
        assert pick(ids, None) == tuple(sorted(ids))


class TestShipped:
    @pytest.mark.parametrize(
        ("which", "display", "count"), [("ldr", "toled", 12), ("hdr", "zte", 5), ("all", "zte", 17)]
    )
    def test_every_image_loads(self, which: str, display: str, count: int) -> None:
        dataset = open_dataset(Entry(name="shipped", params={"which": which, "display": display}))
        assert len(dataset.image_ids) == count
        for image_id in dataset.image_ids:
            sample = dataset.load(image_id)
            assert sample.truth is not None
            assert sample.degraded.shape == sample.truth.shape == (3, 256, 256)
            assert sample.degraded.min() >= 0 and sample.degraded.max() <= 1
            assert not torch.equal(sample.degraded, sample.truth)

    def test_hdr_crops_hold_saturated_light(self) -> None:
        peaks = [read_image(path).image.max() for path in (shipped.SAMPLES / "hdr").glob("*.npz")]
        assert min(peaks) > 4 and max(peaks) > 400

    def test_licences_stand_beside_the_images(self) -> None:
        assert "CC0 1.0" in (shipped.SAMPLES / "ldr" / "LICENSE").read_text()
        assert "Industrial Light" in (shipped.SAMPLES / "hdr" / "LICENSE").read_text()

    def test_brightest_window(self) -> None:
        scene = np.zeros((400, 500, 3), np.float16)
        scene[200:203, 300:303] = 400
        assert brightest_window(scene) == (80, 176)  # multiples of 16 nearest to 201 - 128 and 301 - 128
        scene = np.zeros((300, 300, 3), np.float16)
        scene[5, 290] = 9
        assert brightest_window(scene) == (0, 32)  # the window stays inside


class TestSimulateFiles:
    def test_pictures_equal_the_evaluation(self, tmp_path: Path) -> None:
        source = tmp_path / "in"
        for name in ("a.png", "sub/b.webp"):
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(len(name))).save(path, lossless=True)
        written = simulate_folder(TOLED, source, tmp_path / "out", saturated=False, seed=3)
        assert written == [tmp_path / "out" / "a.png", tmp_path / "out" / "sub" / "b.png"]
        expected = folder.open_simulated(source, TOLED, seed=3)
        for path, image_id in zip(written, ("a", "sub/b"), strict=True):
            assert torch.equal(read_image(path).image, expected.load(image_id).degraded)
        assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == ["a.png", "b.png", "sub"]

    def test_hdr_is_written_as_linear_light_and_read_back(self, tmp_path: Path) -> None:
        light = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
        light[8, 8] = 300
        source = put(tmp_path / "lamp.npy", light)
        written = simulate_folder(ZTE, source, tmp_path / "out", saturated=True, size=10)
        assert [p.name for p in written] == ["lamp.npy", "lamp.png"]
        expected = folder.open_simulated(source, ZTE, size=10).load("lamp").degraded
        back = folder.open_degraded(written[0]).load("lamp").degraded
        torch.testing.assert_close(back, expected, rtol=0, atol=1e-6)
        assert (read_image(written[1]).image - expected).abs().max() <= 0.5 / 255 + 1e-6

    def test_saturated_light_is_refused_from_8_bit_and_nothing_is_written(self, tmp_path: Path) -> None:
        light = np.full((12, 12, 3), 50, np.float32)
        put(tmp_path / "in" / "a.npy", light)
        put(tmp_path / "in" / "b.png", pixels(0))
        with pytest.raises(DataError, match=r"b\.png.*no saturated light source") as caught:
            simulate_folder(TOLED, tmp_path / "in", tmp_path / "out", saturated=True)
        assert "8-bit" in caught.value.cause
        assert not (tmp_path / "out").exists()

    def test_dark_hdr_is_refused_too(self, tmp_path: Path) -> None:
        path = put(tmp_path / "a.npy", np.full((12, 12, 3), 0.9, np.float32))
        with pytest.raises(DataError, match="peaks at 0.90"):
            simulate_folder(TOLED, path, tmp_path / "out", saturated=True)

    def test_existing_files_are_not_overwritten(self, tmp_path: Path) -> None:
        path = put(tmp_path / "a.png", pixels(0))
        before = path.read_bytes()
        with pytest.raises(DataError, match="exist already"):
            simulate_folder(TOLED, tmp_path, tmp_path)
        assert path.read_bytes() == before

    def test_a_damaged_image_leaves_nothing(self, tmp_path: Path) -> None:
        put(tmp_path / "in" / "a.png", pixels(0))
        (tmp_path / "in" / "b.png").write_bytes(b"nothing good")
        with pytest.raises(DataError, match=r"b\.png"):
            simulate_folder(TOLED, tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_write_that_fails_leaves_no_half_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(source: object, target: object) -> None:
            raise OSError(28, "No space left on device")

        (tmp_path / "a.bin").write_bytes(b"old")
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(DataError, match="No space left"):
            write_atomically(tmp_path / "a.bin", b"new")
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.bin", b"old")]

    def test_a_file_where_a_folder_is_wanted(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("in the way")
        with pytest.raises(DataError, match="cannot write"):
            write_atomically(tmp_path / "out" / "a.png", b"x")


def test_psf_figure_is_on_a_log_scale(tmp_path: Path) -> None:
    """A point 1e-4 of the peak is invisible on a linear scale and clearly seen here."""
    kernel = np.zeros((21, 21), np.float32)
    kernel[10, 10], kernel[2, 2] = 1, 1e-4
    np.save(tmp_path / "mine.npy", kernel)
    psf_view.psf_figure(simulate.get_display(str(tmp_path / "mine.npy")), tmp_path / "with.png")
    kernel[2, 2] = 0
    np.save(tmp_path / "none.npy", kernel)
    psf_view.psf_figure(simulate.get_display(str(tmp_path / "none.npy")), tmp_path / "without.png")
    shown, plain = (
        read_image(tmp_path / name).image[:, 60:] for name in ("with.png", "without.png")
    )  # below the title
    assert ((shown - plain).abs().amax(0) > 0.2).sum() > 50


@given(st.floats(0, 499))
def test_tone_map_is_inverted(light: float) -> None:
    x = torch.tensor([light], dtype=torch.float64)
    torch.testing.assert_close(domains.inverse_tonemap(domains.tonemap(x)), x, rtol=1e-9, atol=1e-12)
