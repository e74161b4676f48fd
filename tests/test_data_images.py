"""Reading image files: what is accepted, and one clear error for everything else."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from udc_ray.data import png16
from udc_ray.data.images import index_images, list_images, read_image
from udc_ray.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY16 = np.random.default_rng(1).integers(0, 65536, (9, 13), dtype=np.uint16)


def save_pillow(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]  # Pillow's options are untyped keywords
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(
    rows: bytes, width: int, height: int, depth: int, colour: int, *, extra: bytes = b"", lace: int = 0
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace))
    return png16.SIGNATURE + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_rgb16(values: np.ndarray, **options: object) -> bytes:
    """A 16-bit PNG with unfiltered rows, written straight from the specification."""
    height, width, planes = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[planes]
    return make_png(rows, width, height, 16, colour, **options)  # type: ignore[arg-type]  # passed through


def truth(values: np.ndarray, white: float = 255) -> torch.Tensor:
    return torch.from_numpy(values.transpose(2, 0, 1).astype(np.float32) / np.float32(white))


class TestAccepted:
    @pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.tiff", "A.PNG"])
    def test_lossless_pictures_are_read_bit_for_bit(self, tmp_path: Path, name: str) -> None:
        options = {"lossless": True} if name.endswith("webp") else {}
        picture = read_image(save_pillow(Image.fromarray(RGB), tmp_path / name, **options))
        assert picture.kind == "srgb"
        assert picture.image.dtype == torch.float32
        assert torch.equal(picture.image, truth(RGB))

    def test_jpeg_is_near_the_original(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 255, 32).astype(np.uint8)
        flat = np.repeat(np.add.outer(ramp // 2, ramp // 2)[..., None], 3, axis=2).astype(np.uint8)
        image = read_image(save_pillow(Image.fromarray(flat), tmp_path / "a.jpg", quality=95)).image
        assert (image - truth(flat)).abs().max() < 5 / 255

    def test_grey_is_replicated(self, tmp_path: Path) -> None:
        image = read_image(save_pillow(Image.fromarray(RGB[..., 0]), tmp_path / "a.png")).image
        assert torch.equal(image, truth(np.repeat(RGB[..., :1], 3, axis=2)))

    def test_opaque_alpha_is_dropped(self, tmp_path: Path) -> None:
        rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
        assert torch.equal(read_image(save_pillow(Image.fromarray(rgba), tmp_path / "a.png")).image, truth(RGB))

    def test_palette_is_converted(self, tmp_path: Path) -> None:
        indexed = Image.fromarray(RGB).quantize(16)
        expected = np.asarray(indexed.convert("RGB"))
        assert torch.equal(read_image(save_pillow(indexed, tmp_path / "a.png")).image, truth(expected))

    def test_exif_orientation_is_applied(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
        path = save_pillow(Image.fromarray(RGB), tmp_path / "a.png", exif=exif)
        assert torch.equal(read_image(path).image, truth(np.rot90(RGB, -1)))

    def test_grey_16_bit_equals_pillow(self, tmp_path: Path) -> None:
        path = save_pillow(Image.fromarray(GREY16), tmp_path / "a.png")
        with Image.open(path) as opened:
            expected = np.asarray(opened).astype(np.float32) / 65535
        image = read_image(path).image
        np.testing.assert_allclose(image[1].numpy(), expected, rtol=0, atol=1e-7)
        assert len(np.unique(image.numpy())) > 100  # 16 bits are there, not their upper 8

    @pytest.mark.parametrize("planes", [3, 4])
    def test_colour_16_bit_keeps_the_lower_byte(self, tmp_path: Path, planes: int) -> None:
        values = np.random.default_rng(2).integers(0, 65536, (5, 7, planes), dtype=np.uint16)
        values[..., 3:] = 65535
        path = tmp_path / "a.png"
        path.write_bytes(png_rgb16(values))
        assert torch.equal(read_image(path).image, truth(values[..., :3], 65535))
        with Image.open(path) as opened:  # Pillow's own reading has the upper byte only
            np.testing.assert_array_equal(np.asarray(opened)[..., :3], values[..., :3] >> 8)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("form", ["npy", "npz rgb", "npz other"])
    def test_float_arrays_are_linear_light(self, tmp_path: Path, dtype: type, form: str) -> None:
        values = np.linspace(0, 400, 4 * 5 * 3).reshape(4, 5, 3).astype(dtype)
        path = tmp_path / ("a.npy" if form == "npy" else "a.npz")
        if form == "npy":
            np.save(path, values)
        elif form == "npz rgb":
            np.savez(path, rgb=values, depth=np.zeros(3))
        else:
            np.savez_compressed(path, scene=values)
        picture = read_image(path)
        assert picture.kind == "linear"
        assert torch.equal(picture.image, truth(values, 1))

    def test_uint8_arrays_are_pictures(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", RGB)
        picture = read_image(tmp_path / "a.npy")
        assert picture.kind == "srgb"
        assert torch.equal(picture.image, truth(RGB))

    def test_raw_planes_only_where_they_are_declared(self, tmp_path: Path) -> None:
        raw = np.random.default_rng(3).integers(0, 1024, (4, 6, 4), dtype=np.uint16)
        np.save(tmp_path / "a.npy", raw)
        picture = read_image(tmp_path / "a.npy", channels=4)
        assert picture.kind == "raw"
        assert torch.equal(picture.image, truth(raw, 1023))
        with pytest.raises(DataError, match="4 planes where 3"):
            read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 20), width=st.integers(1, 20))
def test_png_filters_equal_pillow(mode: str, seed: int, height: int, width: int) -> None:
    """Pillow's encoder chooses among all five row filters; smooth content makes it use them."""
    generator = np.random.default_rng(seed)
    planes = {"L": 1, "RGB": 3, "RGBA": 4, "I;16": 1}[mode]
    steps = generator.integers(-3, 4, (height, width, planes)).cumsum(0).cumsum(1) + 128
    values = (steps * (257 if mode == "I;16" else 1)).astype(np.uint16 if mode == "I;16" else np.uint8)
    values = values[..., 0] if planes == 1 else values
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    header = png16.read_header(buffer.getvalue())
    assert header is not None
    decoded = png16.decode(buffer.getvalue(), header)
    expected = values.astype(">u2") if mode == "I;16" else values
    assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4])
def test_each_png_filter_equals_pillow(kind: int) -> None:
    rows = np.random.default_rng(kind).integers(0, 256, (6, 8 * 3), dtype=np.uint8)
    content = make_png(b"".join(bytes([kind]) + r.tobytes() for r in rows), 8, 6, 8, 2)
    header = png16.read_header(content)
    assert header is not None
    expected = np.asarray(Image.open(io.BytesIO(content)))
    assert png16.decode(content, header).tobytes() == expected.tobytes()


def _png(path: Path) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, format="PNG")
    return buffer.getvalue()


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _pillow(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)  # type: ignore[arg-type]  # Pillow's options are untyped keywords
    return buffer.getvalue()


def _zip(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _huge_npy() -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20, 3)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + b"\0" * 64


LIGHT = np.ones((4, 5, 3), np.float32)
HALF = Image.fromarray(np.dstack([RGB, np.full(RGB.shape[:2], 128, np.uint8)]))
TWO = Image.fromarray(RGB[:, ::-1])
DEEP = np.zeros((4, 5, 3), np.uint16)
CLEAR16 = np.dstack([DEEP, np.full((4, 5), 9, np.uint16)])

MALFORMED: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "zero bytes": ("a.png", lambda p: b"", "empty"),
    "text": ("a.png", lambda p: b"this is no image", "cannot identify"),
    "truncated PNG": ("a.png", lambda p: _png(p)[:-60], "truncated|broken"),
    "PNG header only": ("a.png", lambda p: _png(p)[:33], "."),
    "flipped bytes": ("a.png", lambda p: _png(p)[:50] + b"\xff" * 20 + _png(p)[70:], "."),
    "huge PNG": ("a.png", lambda p: make_png(b"", 2**20, 2**20, 8, 2), "1048576 x 1048576"),
    "huge 16-bit PNG": ("a.png", lambda p: make_png(b"", 2**30, 2**30, 16, 2), "pixels"),
    "huge TIFF": ("a.tif", lambda p: _pillow(Image.new("1", (2**14, 2**14)), "TIFF", compression="group4"), "pixels"),
    "truncated JPEG": ("a.jpg", lambda p: _pillow(Image.fromarray(RGB), "JPEG")[:-40], "truncated|broken"),
    "truncated WebP": ("a.webp", lambda p: _pillow(Image.fromarray(RGB), "WEBP", lossless=True)[:60], "."),
    "half transparent": ("a.png", lambda p: _pillow(HALF, "PNG"), "transparent"),
    "transparent colour": (
        "a.png",
        lambda p: _pillow(Image.fromarray(RGB), "PNG", transparency=tuple(RGB[0, 0].tolist())),
        "tran",
    ),
    "CMYK": ("a.jpg", lambda p: _pillow(Image.new("CMYK", (8, 8)), "JPEG"), "mode CMYK"),
    "float TIFF": ("a.tif", lambda p: _pillow(Image.fromarray(LIGHT[..., 0]), "TIFF"), "mode F"),
    "two pages": (
        "a.tif",
        lambda p: _pillow(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[TWO]),
        "several",
    ),
    "GIF in a PNG's name": ("a.png", lambda p: _pillow(Image.fromarray(RGB), "GIF"), "cannot identify"),
    "truncated 16-bit": ("a.png", lambda p: png_rgb16(DEEP)[:-20], "damaged|ends before"),
    "short 16-bit": ("a.png", lambda p: make_png(b"\0" * 20, 5, 4, 16, 2), "20 of"),
    "bad filter 16-bit": ("a.png", lambda p: make_png(b"\7" + b"\0" * 30, 5, 1, 16, 2), "unknown row filter"),
    "interlaced 16-bit": ("a.png", lambda p: png_rgb16(DEEP, lace=1), "interlac"),
    "clear 16-bit": ("a.png", lambda p: png_rgb16(CLEAR16), "transparent"),
    "tRNS 16-bit": ("a.png", lambda p: png_rgb16(DEEP, extra=chunk(b"tRNS", b"\0" * 6)), "transparent colour"),
    "NaN": (
        "a.npy",
        lambda p: _npy(np.where(np.arange(60).reshape(4, 5, 3) < 7, np.nan, LIGHT)),
        "7 values that are NaN",
    ),
    "infinite": ("a.npy", lambda p: _npy(np.full((4, 5, 3), np.inf, np.float16)), "60 values"),
    "beyond float32": ("a.npy", lambda p: _npy(np.full((4, 5, 3), 1e300)), "60 values"),
    "negative": ("a.npy", lambda p: _npy(-LIGHT), "60 negative"),
    "no image shape": ("a.npy", lambda p: _npy(LIGHT[0]), "shape is"),
    "channels first": ("a.npy", lambda p: _npy(LIGHT.transpose(2, 0, 1).copy()), "shape is"),
    "no pixels": ("a.npy", lambda p: _npy(LIGHT[:0]), "shape is"),
    "complex": ("a.npy", lambda p: _npy(LIGHT.astype(np.complex64)), "type is complex64"),
    "int32": ("a.npy", lambda p: _npy(LIGHT.astype(np.int32)), "type is int32"),
    "strings": ("a.npy", lambda p: _npy(np.full((4, 5, 3), "x")), "type is"),
    "pickled objects": ("a.npy", lambda p: _npy(np.full((4, 5, 3), None)), "pickle"),
    "bare pickle": ("a.npy", lambda p: pickle.dumps(LIGHT), "magic"),
    "huge npy": ("a.npy", lambda p: _huge_npy(), "announces"),
    "truncated npy": ("a.npy", lambda p: _npy(LIGHT)[:-8], "announces"),
    "npy header cut off": ("a.npy", lambda p: _npy(LIGHT)[:20], "."),
    "no zip": ("a.npz", lambda p: b"PK is all there is", "zip"),
    "truncated npz": ("a.npz", lambda p: _npz(rgb=LIGHT)[:-30], "zip"),
    "two arrays": ("a.npz", lambda p: _npz(a=LIGHT, b=LIGHT), "one named rgb"),
    "empty npz": ("a.npz", lambda p: _npz(), "nothing"),
    "text in npz": ("a.npz", lambda p: _zip("rgb.npy", b"words and more words"), "magic"),
    "npz pickle": ("a.npz", lambda p: _npz(rgb=np.full((4, 5, 3), None)), "pickle"),
    "unknown suffix": ("a.exr", _png, "suffix"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_give_one_data_error(tmp_path: Path, case: str) -> None:
    name, make, message = MALFORMED[case]
    path = tmp_path / name
    path.write_bytes(make(path))
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in caught.value.what
    assert "\n" not in caught.value.what.rstrip()
    assert caught.value.change


@pytest.mark.parametrize("case", ["folder", "missing", "loop", "dangling", "pipe"])
def test_what_is_no_file_gives_one_data_error(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.png"
    if case == "folder":
        path.mkdir()
    elif case == "loop":
        path.symlink_to(path)
    elif case == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif case == "pipe":
        os.mkfifo(path)
    with pytest.raises(DataError, match="a.png"):
        read_image(path)


def test_raw_planes_beyond_white_and_pictures_as_raw_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((4, 4, 4), 2000, np.uint16))
    save_pillow(Image.fromarray(RGB), tmp_path / "a.png")
    with pytest.raises(DataError, match="2000, beyond white"):
        read_image(tmp_path / "a.npy", channels=4)
    with pytest.raises(DataError, match="raw planes are wanted"):
        read_image(tmp_path / "a.png", channels=4)


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(1, 400),
    suffix=st.sampled_from([".png", ".npy", ".npz", ".jpg", ".tif"]),
    noise=st.binary(max_size=64),
)
def test_no_bytes_make_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, cut: int, suffix: str, noise: bytes
) -> None:
    whole = {
        ".png": png_rgb16(DEEP),
        ".npy": _npy(LIGHT),
        ".npz": _npz(rgb=LIGHT),
        ".jpg": _pillow(Image.fromarray(RGB), "JPEG"),
        ".tif": _pillow(Image.fromarray(RGB), "TIFF"),
    }[suffix]
    path = tmp_path_factory.mktemp("noise") / f"a{suffix}"
    path.write_bytes(whole[:cut] + noise + whole[cut + len(noise) :])
    try:
        image = read_image(path).image
    except DataError:
        return
    assert torch.isfinite(image).all()
    assert image.min() >= 0


class TestIndex:
    def test_ids_are_posix_paths_without_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "x" / "y").mkdir(parents=True)
        for name in ("x/y/b.v2.png", "a.JPG", ".hidden.png", "notes.txt"):
            (tmp_path / name).touch()
        assert list(index_images(tmp_path)) == ["a", "x/y/b.v2"]

    def test_equal_ids_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "a.jpg").touch()
        with pytest.raises(DataError, match="two files have the id 'a'"):
            index_images(tmp_path)

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "readme.txt").touch()
        with pytest.raises(DataError, match="no images in"):
            index_images(tmp_path)

    def test_a_folder_that_links_to_itself_is_read_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
        assert list_images(tmp_path) == [tmp_path / "a.png"]
