"""Images and scores as bytes: canonical, bounded, and the same to every decoder."""

from __future__ import annotations

import hashlib
import io
import json
import zlib

import numpy as np
import pytest
import torch
from doubles import images
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from udc_ray.data import png16
from udc_ray.errors import SpecError
from udc_ray.metered import formats

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))


@given(hnp.arrays(np.uint8, SHAPES))
def test_an_8_bit_png_is_what_pillow_reads(levels: np.ndarray) -> None:
    content = formats.png_bytes(levels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), levels)


@given(hnp.arrays(np.uint16, SHAPES))
def test_a_16_bit_png_is_what_our_reader_of_files_reads(levels: np.ndarray) -> None:
    content = formats.png_bytes(levels)
    header = png16.read_header(content)
    assert header is not None and header.depth == 16
    assert np.array_equal(png16.read(content, header), levels)


def test_a_png_larger_than_one_stored_block() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    content = formats.png_bytes(levels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), levels)
    start = content.index(b"IDAT") + 4
    assert len(zlib.decompress(content[start : -12 - 4])) == 160 * 601


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32)), st.sampled_from([8, 16, "float"]))
def test_what_is_decoded_is_what_was_encoded(values: np.ndarray, depth: formats.StorageDepth) -> None:
    x_CHW = formats.on_grid(torch.from_numpy(values.transpose(2, 0, 1).copy()), depth)
    query = formats.encode(x_CHW, depth)
    back = formats.decode_image(query.body, query.media_type, query.shape)
    assert torch.allclose(back, x_CHW, rtol=0, atol=0 if depth == "float" else 1e-7)
    assert query.sha256 == hashlib.sha256(query.body).hexdigest()
    half_a_step = {8: 0.5 / 255, 16: 0.5 / 65535, "float": 0.0}[depth]
    assert float((x_CHW - torch.from_numpy(values.transpose(2, 0, 1))).abs().max()) <= half_a_step + 1e-7


GOLDEN = {8: "a44edcbfc7fc90b3", 16: "6aca3ee84677d338", "float": "e0b924bfca4a1cbd"}


def test_the_bytes_of_a_request_are_a_function_of_the_pixels_alone() -> None:
    """Written down once: another library or version must not rename the queries of a resumed run."""
    x_CHW = torch.arange(12).reshape(3, 2, 2) / 255
    found = {depth: formats.encode(x_CHW, depth).sha256[:16] for depth in (8, 16, "float")}
    assert found == GOLDEN


def test_numpy_reads_the_npy_that_is_sent() -> None:
    x_CHW = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0))
    values = np.load(io.BytesIO(formats.encode(x_CHW, "float").body))
    assert values.shape == (3, 5, 4) and values.dtype == np.float32
    assert np.array_equal(values, x_CHW.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("x_CHW", "depth", "words"),
    [
        (torch.full((3, 2, 2), 0.5), 8, "off its 8-bit grid"),
        (torch.full((3, 2, 2), 0.500004), 16, "off its 16-bit grid"),
        (torch.full((3, 2, 2), 1.01), "float", "leaves"),
        (torch.full((3, 2, 2), float("nan")), "float", "leaves"),
        (torch.zeros(4, 2, 2), 8, "4 planes"),
    ],
)
def test_what_cannot_be_sent_exactly_is_refused(x_CHW: torch.Tensor, depth: formats.StorageDepth, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        formats.encode(x_CHW, depth)


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(stream, "PNG")
    return stream.getvalue()


def test_npy_answers_may_be_unclamped_of_any_float_and_in_either_order() -> None:
    values = np.random.default_rng(1).normal(size=(4, 5, 3))
    for answer in (values, np.asfortranarray(values), values.astype(np.float16), values.astype(">f4")):
        found = formats.decode_image(npy(answer), formats.NPY, (3, 4, 5))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), answer.astype(np.float32))
    assert float(found.max()) > 1


def test_png_answers_may_be_grey_opaque_or_with_a_palette() -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    for answer in (png(grey), png(rgb), png(rgb, "RGBA"), png(grey, "P"), png(grey, "LA")):
        found = formats.decode_image(answer, formats.PNG, (3, 4, 5))
        assert torch.equal((found * 255).round(), torch.from_numpy(rgb.transpose(2, 0, 1).astype(np.float32)))


RGB = np.zeros((4, 5, 3), np.uint8)
WRONG = {
    "another size": (png(RGB[:2]), formats.PNG, "its size is 2 x 5 x 3"),
    "cut off": (png(RGB)[:-20], formats.PNG, "cut off"),
    "no PNG": (b"GIF89a", formats.PNG, "no PNG"),
    "nothing": (b"", formats.PNG, "no PNG"),
    "a bit of PNG": (png(RGB)[:20], formats.PNG, "no PNG"),
    "transparent": (png(np.zeros((4, 5, 4), np.uint8)), formats.PNG, "transparent"),
    "no npy": (b"garbage", formats.NPY, "magic"),
    "npy of another size": (npy(np.zeros((5, 4, 3))), formats.NPY, "its size is 5 x 4 x 3"),
    "npy with its axes turned": (npy(np.zeros((3, 4, 5))), formats.NPY, "its size is 3 x 4 x 5"),
    "npy cut off": (npy(np.zeros((4, 5, 3)))[:-1], formats.NPY, "announces"),
    "npy of integers": (npy(np.zeros((4, 5, 3), int)), formats.NPY, "its type"),
    "npy of objects": (npy(np.full((4, 5, 3), None)), formats.NPY, "its type"),
    "npy with NaN": (npy(np.full((4, 5, 3), np.nan)), formats.NPY, "NaN"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answers_are_value_errors(case: str) -> None:
    content, media_type, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        formats.decode_image(content, media_type, (3, 4, 5))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    """A PNG of 30000 x 30000 pixels in a few bytes: its pixels must never be unpacked."""
    bomb = bytearray(formats.png_bytes(RGB))
    bomb[16:24] = (30000).to_bytes(4, "big") * 2
    with pytest.raises(ValueError, match="its size is 30000 x 30000"):
        formats.decode_image(bytes(bomb), formats.PNG, (3, 4, 5))


@given(st.binary(max_size=200), st.sampled_from([formats.PNG, formats.NPY]), st.integers(0, 200))
def test_foreign_bytes_never_raise_anything_else(noise: bytes, media_type: str, keep: int) -> None:
    whole = png(RGB) if media_type == formats.PNG else npy(np.zeros((4, 5, 3)))
    for content in (noise, whole[:keep] + noise, noise + whole):
        try:
            found = formats.decode_image(content, media_type, (3, 4, 5))
        except ValueError:
            continue
        assert found.shape == (3, 4, 5) and bool(torch.isfinite(found).all())


@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=20))
def test_scores_are_read_as_float32(values: list[float]) -> None:
    expected = np.asarray(values).astype(np.float32)
    for document in ({"scores": values, "labels": ["a"]}, values):
        assert np.array_equal(formats.decode_scores(json.dumps(document).encode()).numpy(), expected)


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}", "[1]", "[1, null]", '["a", "b"]', "[true, false]", "[1, NaN]", "[1, 1e39]", "3"]
    + ['{"scores": 3}', "[1, " + "9" * 400 + "]", "[" * 100_000],
)
def test_what_are_no_scores_is_a_value_error(content: str) -> None:
    with pytest.raises(ValueError, match="it is no|its scores|beyond every"):
        formats.decode_scores(content.encode())


def test_a_clean_image_is_moved_to_the_nearest_grid_point() -> None:
    x_CHW = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2]).reshape(1, 1, 5)
    assert torch.equal((formats.on_grid(x_CHW, 8) * 255).round().flatten(), torch.tensor([0.0, 0, 1, 255, 255]))
    on = images(1, 3, 4, 4)[0]
    assert torch.allclose(formats.on_grid(on, 8), on, rtol=0, atol=1e-7)
    assert torch.equal(formats.on_grid(x_CHW, "float"), x_CHW.clamp(0, 1))
