"""PSF codes against an eigendecomposition, and what is said about a PSF."""

from __future__ import annotations

import io
import json
from pathlib import Path

import data_trees as trees
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from udc_ray.data import psf_codes, psf_facts
from udc_ray.data.psf_codes import LENGTH, Basis, compute_basis, encode_psfs, psf_set
from udc_ray.errors import DataError


def psf(seed: int, edge: int = 9) -> Tensor:
    return torch.from_numpy(trees.kernel(seed, edge).transpose(2, 0, 1).copy())


def nine(root: Path) -> Path:
    for k in range(1, 10):
        trees.put(root / f"ZTE_new_psf_{k}.npy", trees.kernel(k))
    return root


class TestBasis:
    def test_it_is_the_eigendecomposition_of_the_covariance(self) -> None:
        psfs = [psf(n, 5) for n in range(9)]
        basis = compute_basis(psfs)
        vectors = np.stack([trees.kernel(n, 5).ravel() for n in range(9)])
        covariance = np.cov(vectors, rowvar=False, bias=True)
        values, rows = np.linalg.eigh(covariance)
        np.testing.assert_allclose(basis.explained, values[::-1][:LENGTH] / values.sum(), rtol=1e-10)
        found = basis.components.reshape(LENGTH, -1)
        np.testing.assert_allclose(np.abs(found @ rows[:, ::-1][:, :LENGTH]), np.eye(LENGTH), atol=1e-9)
        np.testing.assert_allclose(found @ found.T, np.eye(LENGTH), atol=1e-12)
        np.testing.assert_allclose(basis.mean.ravel(), vectors.mean(0), atol=1e-15)

    def test_a_code_is_the_projection_on_it(self) -> None:
        psfs = [psf(n) for n in range(8)]
        basis = compute_basis(psfs)
        vector = trees.kernel(3) - np.mean([trees.kernel(n) for n in range(8)], axis=0)
        expected = [(row * vector).sum() for row in basis.components]
        np.testing.assert_allclose(basis.encode(psfs[3]), expected, atol=1e-14)

    def test_six_psfs_are_held_exactly_and_nine_are_not(self) -> None:
        for count, exact in ((6, True), (9, False)):
            psfs = [psf(n) for n in range(count)]
            basis = compute_basis(psfs)
            errors = [np.abs(basis.decode(basis.encode(psfs[n])) - trees.kernel(n)).max() for n in range(count)]
            assert bool(max(errors) < 1e-12) is exact

    def test_signs_do_not_depend_on_the_order_of_the_set(self) -> None:
        psfs = [psf(n) for n in range(9)]
        one, other = compute_basis(psfs), compute_basis(psfs[::-1])
        np.testing.assert_allclose(one.components, other.components, atol=1e-9)
        flat = one.components.reshape(LENGTH, -1)
        assert (flat[np.arange(LENGTH), np.abs(flat).argmax(1)] > 0).all()

    def test_brightness_and_black_borders_change_no_code(self) -> None:
        psfs = [psf(n) for n in range(7)]
        basis = compute_basis(psfs)
        np.testing.assert_allclose(basis.encode(psfs[2] * 5), basis.encode(psfs[2]), atol=1e-14)
        wide = torch.nn.functional.pad(psfs[2], (3, 3, 2, 2))
        np.testing.assert_allclose(basis.encode(wide), basis.encode(psfs[2]), atol=1e-14)
        padded = compute_basis([*psfs, wide])
        np.testing.assert_allclose(padded.encode(wide), padded.encode(psfs[2]), atol=1e-14)

    def test_sets_without_components_are_refused(self) -> None:
        with pytest.raises(DataError, match="at least two PSFs"):
            compute_basis([psf(0)])
        with pytest.raises(DataError, match="all the same"):
            compute_basis([psf(0), psf(0) * 3])


class TestTable:
    def test_codes_of_a_folder(self, tmp_path: Path) -> None:
        table = encode_psfs(psf_set(nine(tmp_path)))
        assert table.names == tuple(f"ZTE_new_psf_{k}" for k in range(1, 10))
        assert table.codes.shape == (9, 5)
        np.testing.assert_allclose(table.codes.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(table.codes[4], table.basis.encode(psf(5)), atol=1e-15)
        assert 0 < table.residuals.max() < 1
        assert table.warnings == (psf_codes.NOT_COMPARABLE,)
        assert "sign, order and scale differ" in table.warnings[0]
        document = json.loads(json.dumps(table.document()))
        assert document["psfs"][4]["name"] == "ZTE_new_psf_5" and len(document["psfs"][4]["code"]) == 5

    def test_a_small_set_says_that_numbers_are_missing(self, tmp_path: Path) -> None:
        for k in (1, 2, 3):
            trees.put(tmp_path / f"{k}.npy", trees.kernel(k))
        table = encode_psfs(psf_set(tmp_path))
        assert (table.codes[:, 2:] == 0).all() and (table.codes[:, :2] != 0).any()
        assert table.residuals.max() < 1e-20
        assert "2 components only, so the last 3 numbers" in table.warnings[1]

    def test_files_that_are_written_are_read_again(self, tmp_path: Path) -> None:
        table = encode_psfs(psf_set(nine(tmp_path / "psf")))
        written = psf_codes.save_codes(table, tmp_path / "codes")
        assert written[4] == tmp_path / "codes" / "ZTE_new_code_5.npy"
        stored = np.load(written[4])
        assert stored.dtype == np.float32 and stored.shape == (5,)
        np.testing.assert_allclose(psf_codes.load_code(written[4]).values, table.codes[4], rtol=1e-6)
        psf_codes.save_basis(table.basis, tmp_path / "basis.npz")
        basis = psf_codes.load_basis(tmp_path / "basis.npz")
        trees.put(tmp_path / "new.npy", trees.kernel(70))
        again = encode_psfs(psf_set(tmp_path / "new.npy"), basis)
        np.testing.assert_array_equal(again.codes[0], table.basis.encode(psf(70)))
        assert again.residuals[0] > table.residuals.max()

    @pytest.mark.parametrize("damage", [b"", b"words", b"PK\x03\x04 and no more"])
    def test_a_basis_that_is_none(self, tmp_path: Path, damage: bytes) -> None:
        (tmp_path / "basis.npz").write_bytes(damage)
        with pytest.raises(DataError, match="basis.npz"):
            psf_codes.load_basis(tmp_path / "basis.npz")

    def test_another_archive_is_no_basis(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", mean=np.ones(3))
        with pytest.raises(DataError, match="no array components"):
            psf_codes.load_basis(tmp_path / "a.npz")
        bent = Basis(mean=np.ones((2, 2, 3)), components=np.ones((5, 2, 3, 3)), explained=np.ones(5))
        psf_codes.save_basis(bent, tmp_path / "b.npz")
        with pytest.raises(DataError, match="no basis of PSFs"):
            psf_codes.load_basis(tmp_path / "b.npz")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no PSF in"):
            psf_set(tmp_path)


class TestCode:
    @pytest.mark.parametrize("values", [psf_codes.CENTRE_CODE, (-0.0020, 0.0352, -2.0215e-05, 0.0060, 9.4328e-05)])
    def test_the_public_centre_code_fits_official_weights(self, tmp_path: Path, values: tuple[float, ...]) -> None:
        path = trees.put(tmp_path / "code.npy", np.array(values, np.float32))
        assert psf_codes.load_code(path).warnings == ()

    @pytest.mark.parametrize("factor", [-1, 2])
    def test_another_sign_or_scale_is_warned_of(self, tmp_path: Path, factor: float) -> None:
        path = trees.put(tmp_path / "code.npy", factor * np.array(psf_codes.CENTRE_CODE, np.float32))
        (warning,) = psf_codes.load_code(path).warnings
        assert "sign and scale" in warning

    @pytest.mark.parametrize("values", [np.ones(4), np.full(5, np.nan), np.ones((5, 5))])
    def test_what_is_no_code(self, tmp_path: Path, values: np.ndarray) -> None:
        with pytest.raises(DataError, match="is no PSF code"):
            psf_codes.load_code(trees.put(tmp_path / "code.npy", values))


class TestFacts:
    def test_a_known_psf(self, tmp_path: Path) -> None:
        values = np.full((41, 41, 3), 1e-7)
        values[20, 20] = 0.9
        values[20, 30] = 0.1 - 1e-7 * (41 * 41 - 2)
        facts = psf_facts.describe_psf(trees.put(tmp_path / "mine.npy", values))
        assert (facts.name, facts.height, facts.width) == ("mine", 41, 41)
        assert facts.sums == pytest.approx((1, 1, 1))
        assert facts.decades == pytest.approx([np.log10(0.9e7)] * 3)
        assert facts.offset == ((0, 0),) * 3
        outside = 41 * 41 - sum(y * y + x * x <= 25 for y in range(-5, 6) for x in range(-5, 6))
        assert facts.halo == pytest.approx([values[20, 30, 0] + (outside - 1) * 1e-7] * 3)
        assert facts.warnings == ()
        assert "figure" not in json.loads(json.dumps(facts.document()))
        with Image.open(io.BytesIO(facts.figure)) as image:
            assert image.format == "PNG" and image.width > 1000

    def test_what_spoils_a_psf_is_told(self, tmp_path: Path) -> None:
        values = np.ones((20, 20, 3))
        values[4, 15] = 200
        warnings = psf_facts.describe_psf(trees.put(tmp_path / "mine.npy", values)).warnings
        assert len(warnings) == 3
        for text, warning in zip(("do not sum to 1", "2.3 decades only", "(-6, 5)"), warnings, strict=True):
            assert text in warning

    def test_a_dim_halo_can_be_seen(self, tmp_path: Path) -> None:
        """The reason for the log scale: a halo at a millionth of the peak is as black as nothing on a linear one."""
        without, with_halo = np.zeros((31, 31)), np.zeros((31, 31))
        without[15, 15] = with_halo[15, 15] = 1
        with_halo[15, :] += 1e-4
        pictures = []
        for name, values in (("a", without), ("b", with_halo)):
            facts = psf_facts.describe_psf(trees.put(tmp_path / name / "psf.npy", values))
            pictures.append(np.asarray(Image.open(io.BytesIO(facts.figure)).convert("RGB")).astype(int))
        assert (np.abs(pictures[0] - pictures[1]).max(2) > 60).mean() > 0.001
