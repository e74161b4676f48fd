"""Damaged and foreign files in every layout: one `DataError` with one message, never a traceback or a crash."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_trees as trees
import numpy as np
import pytest
import scipy.io
from PIL import Image

from udc_ray.data import matlab
from udc_ray.data.check import check_data
from udc_ray.data.open import open_dataset
from udc_ray.data.simulate import get_display
from udc_ray.errors import DataError
from udc_ray.spec import Entry

Damage = Callable[[Path], None]


def keep(start: int, end: int | None = None) -> Damage:
    """Leave a piece of a file."""
    return lambda path: _write(path, path.read_bytes()[start:end])


def content(data: bytes) -> Damage:
    return lambda path: _write(path, data)


def array(values: np.ndarray) -> Damage:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return content(buffer.getvalue())


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda path: np.save(path, change(np.load(path)))


def flipped(where: int) -> Damage:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[where] ^= 0xFF
        _write(path, bytes(data))

    return damage


def picture(values: np.ndarray, form: str = "PNG") -> Damage:
    return lambda path: Image.fromarray(values).save(path, format=form)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def set_to(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[3, 4, 1] = value
        return values

    return change


def stack(**variables: Any) -> Damage:
    return lambda path: scipy.io.savemat(path, variables)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _npy_header(shape: tuple[int, ...], kind: str = "<f4", version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue().replace(b"\x93NUMPY\x01\x00", b"\x93NUMPY" + bytes(version)) + b"\0" * 64


def _huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _mat(*, count: int = 3, packed: bool = False, kind: int = 9, data: bytes | None = None, claim: int = 0) -> bytes:
    """A MATLAB 5 file by hand, so that it can lie: `claim` is what the tag of the numbers says."""

    def element(tag: int, inside: bytes, length: int | None = None) -> bytes:
        return struct.pack("<II", tag, length or len(inside)) + inside + b"\0" * (-len(inside) % 8)

    parts = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<4i", count, 18, 20, 3))
    parts += element(1, b"val_display") + element(2, data if data is not None else b"\7" * (3 * 18 * 20 * 3), claim)
    matrix = element(14, parts)
    if packed:
        squeezed = zlib.compress(matrix)
        matrix = struct.pack("<II", 15, len(squeezed)) + squeezed
    return b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + matrix


def _images(edge: int = 18, planes: int = 3, kind: Any = np.uint8) -> np.ndarray:
    return np.ones((3, edge, 20, planes), kind)


PICTURES: dict[str, tuple[Damage, str]] = {
    "zero bytes": (content(b""), r"1\.png is empty"),
    "text": (content(b"this is no image"), "cannot identify"),
    "truncated": (keep(0, -60), "truncated|broken"),
    "header only": (keep(0, 33), "cannot use"),
    "first bytes only": (keep(0, 7), "cannot identify"),
    "without its beginning": (keep(8), "cannot identify"),
    "flipped byte": (flipped(60), "cannot use"),
    "huge header": (content(_huge_png()), "announces 1073741824 x 1073741824|cannot use"),
    "GIF": (picture(trees.pixels(0), "GIF"), "cannot identify"),
    "half transparent": (picture(np.full((18, 20, 4), 9, np.uint8)), "transparent"),
    "other size": (picture(trees.pixels(0, 20, 18)), "'Poled_val/1' differ: 20 x 18 and 18 x 20"),
    "an array": (array(trees.light(0)), "cannot identify|NUMPY|cannot use"),
    "symlink loop": (loop, "cannot read .*1.png"),
    "dangling link": (dangling, "cannot read .*1.png"),
    "pipe": (pipe, "not an ordinary file"),
}
ARRAYS: dict[str, tuple[Damage, str]] = {
    "zero bytes": (content(b""), r"001\.npy is empty"),
    "truncated": (keep(0, -100), "header announces"),
    "header cut off": (keep(0, 30), "cannot use"),
    "text": (content(b"no numbers at all"), "magic"),
    "terabytes": (content(_npy_header((2**20, 2**20, 3))), "announces 13194139533312 bytes"),
    "huge element": (content(_npy_header((1, 1, 3), "|V2000000000")), "announces 6000000000 bytes"),
    "negative shape": (content(_npy_header((-4, 5, 3))), "cannot use"),
    "unknown version": (content(_npy_header((2, 2, 3), version=(9, 9))), "version"),
    "pickled objects": (array(np.full((18, 20, 3), None)), "pickle"),
    "bare pickle": (content(pickle.dumps(np.ones((18, 20, 3)))), "magic"),
    "NaN": (changed(set_to(np.nan)), "1 values that are NaN"),
    "infinite": (changed(set_to(np.inf)), "1 values that are NaN or infinite"),
    "negative": (changed(set_to(-1)), "1 negative values"),
    "int32": (changed(lambda v: v.astype(np.int32)), "type is int32"),
    "complex": (changed(lambda v: v.astype(np.complex64)), "type is complex64"),
    "bool": (changed(lambda v: v > 1), "type is bool"),
    "text as type": (changed(lambda v: v.astype("U4")), "type is <U4"),
    "records": (array(np.zeros((18, 20, 3), [("a", "f4")])), "type is"),
    "two axes": (changed(lambda v: v[0]), r"shape is \(20, 3\)"),
    "colours first": (changed(lambda v: v.transpose(2, 0, 1).copy()), r"shape is \(3, 18, 20\)"),
    "no pixels": (changed(lambda v: v[:0]), "shape is"),
    "other size": (changed(lambda v: v[:-1]), "17 x 20 and 18 x 20"),
    "8 bit": (changed(lambda v: v.clip(0, 1).astype(np.uint8)), "srgb values|linear values"),
    "symlink loop": (loop, "cannot read .*001.npy"),
}
RAW: dict[str, tuple[Damage, str]] = {
    "zero bytes": (content(b""), r"1\.npy is empty"),
    "beyond white": (changed(set_to(1024)), "1024, beyond white"),
    "three planes": (changed(lambda v: v[..., :3]), "3 planes where 4|holds images of 3"),
    "five planes": (changed(lambda v: np.repeat(v, 2, axis=2)[..., :5]), r"shape is \(18, 20, 5\)"),
    "negative": (changed(lambda v: set_to(-3)(v.astype(np.float32))), "1 negative"),
    "NaN": (changed(lambda v: set_to(np.nan)(v.astype(np.float64))), "NaN"),
    "bool": (changed(lambda v: v > 1), "type is bool"),
    "pickled objects": (array(np.full((18, 20, 4), None)), "pickle"),
    "truncated": (keep(0, -2), "announces"),
    "terabytes": (content(_npy_header((2**20, 2**20, 4), "<u2")), "announces 8796093022208 bytes"),
}
STACKS: dict[str, tuple[Damage, str]] = {
    "zero bytes": (content(b""), r"display\.mat is empty"),
    "text": (content(b"words " * 50), "no header of a MATLAB 5 file"),
    "header only": (keep(0, 128), "no stack of images, but nothing"),
    "short header": (keep(0, 100), "no header"),
    "truncated": (keep(0, -50), "announces"),
    "version 4": (lambda path: scipy.io.savemat(path, {"a": np.ones((2, 3))}, format="4"), "no header of a MATLAB 5"),
    "a matrix": (stack(val_display=np.ones((2, 3))), r"no stack of images, but val_display \(double 2 x 3\)"),
    "version 7.3": (content(b"MATLAB 7.3".ljust(124) + b"\x00\x02IM" + b"\0" * 400), "7.3 file .HDF5."),
    "HDF5": (content(b"\x89HDF\r\n\x1a\n" + b"\0" * 400), "7.3 file .HDF5."),
    "other type": (stack(val_display=_images(kind=np.uint16)), r"val_display \(uint16 3 x 18 x 20 x 3\)"),
    "four planes": (stack(val_display=_images(planes=4)), r"val_display \(uint8 3 x 18 x 20 x 4\)"),
    "one image": (stack(val_display=_images()[0]), r"val_display \(uint8 18 x 20 x 3\)"),
    "complex": (stack(val_display=_images().astype(np.complex128)), "complex double"),
    "cells and text": (stack(a=np.array(["x", 1], object), b="text"), r"a \(cell 1 x 2\), b \(char 1 x 4\)"),
    "other size": (stack(val_display=_images(edge=16)), "differ: 3 x 16 x 20 x 3 and 3 x 18 x 20 x 3"),
    "terabytes": (content(_mat(count=2**30)), "more than the file can hold"),
    "terabytes, packed": (content(_mat(count=2**30, packed=True)), "more than the file can hold"),
    "more packed than there is": (content(_mat(count=200, packed=True)), "cannot use"),
    "a tag that lies": (content(_mat(claim=2**31)), "announces 2147483648 bytes"),
    "fewer numbers": (content(_mat(data=b"\7" * 3000)), "cannot use|more than the file"),
    "packed and cut off": (content(_mat(packed=True)[:-20]), "announces"),
    "packed and damaged": (content(_mat(packed=True)[:-4] + b"abcd"), "cannot use"),
    "symlink loop": (loop, "cannot read .*display.mat"),
}
PSFS: dict[str, tuple[Damage, str]] = {
    "zero bytes": (content(b""), "PSF .*5.npy: it is empty"),
    "truncated": (keep(0, -8), "PSF .*announces"),
    "terabytes": (content(_npy_header((2**20, 2**20, 3))), "PSF .*announces"),
    "pickled objects": (array(np.full((5, 5, 3), None)), "PSF .*pickle"),
    "an archive": (content(b"PK and more"), "PSF .*archive"),
    "negative": (changed(lambda v: -v), "PSF .*negative"),
    "NaN": (changed(set_to(np.nan)), "PSF .*non-finite"),
    "empty": (changed(np.zeros_like), "PSF .*empty"),
    "wrong shape": (changed(lambda v: v[0, 0]), r"PSF .*shape \(3,\)"),
    "two planes": (changed(lambda v: v[..., :2]), "PSF .*shape"),
    "complex": (changed(lambda v: v * 1j), "PSF .*no single array of numbers"),
    "not normalised": (changed(lambda v: v * 255), "PSF .* sum to 255 to 255"),
    "symlink loop": (loop, "PSF .*cannot read it"),
}


def _pictures(root: Path) -> tuple[Path, Path]:
    return trees.udc_2020(root), root / "Poled_val" / "LQ" / "1.png"


def _arrays(root: Path) -> tuple[Path, Path]:
    return trees.mipi(root), root / "training" / "input" / "001.npy"


def _raw(root: Path) -> tuple[Path, Path]:
    return trees.udc_sit(root), root / "validation" / "input" / "1.npy"


def _stacks(root: Path) -> tuple[Path, Path]:
    trees.udc_2020_mat(root)
    for path in root.glob("poled*"):
        path.unlink()
    return root, root / "toled_val_display.mat"


def _psfs(root: Path) -> tuple[Path, Path]:
    return trees.synth(root), root / "PSF" / "ZTE_new" / "ZTE_new_psf_5.npy"


FORMATS = {"png": (_pictures, PICTURES), "npy": (_arrays, ARRAYS), "raw": (_raw, RAW), "mat": (_stacks, STACKS)}
FORMATS |= {"psf": (_psfs, PSFS)}
CASES = [(form, case) for form, (_, cases) in FORMATS.items() for case in cases]


def assert_one_message(error: DataError, message: str) -> None:
    with pytest.raises(DataError, match=message):
        raise error
    assert "\n" not in error.what
    assert len(str(error).splitlines()) <= 3
    assert error.change and "Traceback" not in str(error)


@pytest.mark.parametrize(("form", "case"), CASES)
def test_a_damaged_file_is_one_message(tmp_path: Path, form: str, case: str) -> None:
    make, cases = FORMATS[form]
    damage, message = cases[case]
    root, path = make(tmp_path / "set")
    assert open_dataset(Entry(name=str(root)))  # sound before
    damage(path)
    with pytest.raises(DataError) as caught:
        open_dataset(Entry(name=str(root)))
    assert_one_message(caught.value, message)
    try:
        assert check_data(str(root)).problems
    except DataError as error:
        assert_one_message(error, message)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


def test_a_damaged_first_file_is_one_message(tmp_path: Path) -> None:
    """The first file decides what a layout is, so that damage to it must not hide behind another layout."""
    root = trees.udc_sit(tmp_path)
    (root / "training" / "input" / "1.npy").write_bytes(b"no numbers")
    with pytest.raises(DataError, match=r"training/input/1\.npy"):
        open_dataset(Entry(name=str(root)), channels=4)


@pytest.mark.parametrize("name", ["x" * 5000, "~no-such-user/data", "nul\0byte", "."])
def test_paths_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset(Entry(name=name))
    assert caught.value.change


def test_a_display_whose_psf_leads_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a.npy").symlink_to(tmp_path / "a.npy")
    with pytest.raises(DataError, match="cannot read the PSF"):
        get_display(str(tmp_path / "a.npy"))


def test_no_bytes_of_a_matlab_file_make_a_traceback_or_a_crash(tmp_path: Path) -> None:
    """Three hundred damaged files; scipy.io.loadmat crashes the interpreter on some of these."""
    generator = np.random.default_rng(0)
    outcomes = set()
    for packed in (False, True):
        whole = _mat(packed=packed)
        for n in range(150):
            data = bytearray(whole)
            for _ in range(generator.integers(1, 6)):
                data[generator.integers(120, min(len(data), 260))] = generator.integers(0, 256)
            path = tmp_path / f"{n}{packed}.mat"
            path.write_bytes(bytes(data))
            try:
                for variable in matlab.list_stacks(path):
                    matlab.read_stack(path, 0, variable.name).sum()
                outcomes.add("read")
            except DataError as error:
                assert "\n" not in error.what
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}
