"""Images and scores as the bytes of a request and of an answer.

A PNG is written with stored (uncompressed) blocks, so that its bytes are a function of its pixels
alone, whatever library or version is at hand, and their hash names the query.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from udc_ray.data import png16
from udc_ray.errors import SpecError
from udc_ray.metered.endpoint import StorageDepth

PNG, NPY, JSON = "image/png", "application/x-npy", "application/json"
OFF_GRID = 1e-3
"""Distance from the grid, in its steps, beyond which a value is no float32 of a grid point."""
SLACK = 2**16
"""Bytes that an answer may have beyond its pixels: headers, colour profiles, text."""
MAX_SCORES = 2**20
"""Bytes of an answer with scores."""

_BLOCK = 65535  # of a stored block, RFC 1951, 3.2.4


@dataclass(frozen=True, kw_only=True)
class Query:
    """A request's body.

    Attributes:
        body: the exact bytes.
        sha256: of the body, hexadecimal.
        media_type: of the body.
        shape: C, H, W of the image.
    """

    body: bytes
    sha256: str
    media_type: str
    shape: tuple[int, int, int]


def on_grid(x: Tensor, depth: StorageDepth) -> Tensor:
    """The nearest values that a target of this depth can be sent; for clean images.

    Candidates are rounded by their threat instead, towards the clean image, so that no norm grows.
    """
    if depth == "float":
        return x.clamp(0, 1)
    levels = 2**depth - 1
    rounded: Tensor = (x.double().clamp(0, 1) * levels).round() / levels
    return rounded.to(x.dtype)


def encode(x_CHW: Tensor, depth: StorageDepth) -> Query:
    """The request for an image.

    Args:
        x_CHW: C x H x W in [0, 1], on the grid of `depth`.
        depth: 8 or 16 for PNG, ``float`` for .npy.

    Raises:
        SpecError: the image is off the grid, outside [0, 1], or not RGB where PNG is wanted.
    """
    values = x_CHW.detach().cpu().numpy().transpose(1, 2, 0)
    if not bool(np.isfinite(values).all()) or float(values.min()) < 0 or float(values.max()) > 1:
        raise SpecError("an image for the target leaves [0, 1]", "a candidate that was not projected")
    body = npy_bytes(values) if depth == "float" else png_bytes(_to_levels(values, depth))
    channels, height, width = x_CHW.shape
    return Query(
        body=body,
        sha256=hashlib.sha256(body).hexdigest(),
        media_type=NPY if depth == "float" else PNG,
        shape=(channels, height, width),
    )


def _to_levels(values: NDArray[np.float32], depth: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values.shape[2] != 3:
        raise SpecError(
            f"a PNG holds RGB, and the image has {values.shape[2]} planes",
            "raw planes",
            "give format: npy with the target",
        )
    scaled = values.astype(np.float64) * (2**depth - 1)
    levels = np.rint(scaled)
    if float(np.abs(scaled - levels).max()) > OFF_GRID * max(1, 2 ** (depth - 8) / 8):
        raise SpecError(
            f"an image for the target is off its {depth}-bit grid",
            "the image was not rounded before it was counted, so what is saved is not what would be sent",
            f"give the attacks depth: {depth}",
        )
    samples: NDArray[np.uint8] | NDArray[np.uint16] = levels.astype(np.uint8 if depth == 8 else np.uint16)
    return samples


def npy_bytes(values: NDArray[np.float32]) -> bytes:
    """An array as .npy file, version 1.0, float32 little-endian, C order."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(values, dtype="<f4"), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def png_bytes(levels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """H x W x 3 samples as PNG without filters and without compression (ISO/IEC 15948)."""
    height, width, _ = levels.shape
    depth = levels.dtype.itemsize * 8
    rows = levels.astype(levels.dtype.newbyteorder(">"), order="C").reshape(height, -1).view(np.uint8)
    scanlines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return png16.SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", _stored(scanlines)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored(content: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950, RFC 1951)."""
    blocks = []
    for start in range(0, len(content), _BLOCK):
        part = content[start : start + _BLOCK]
        last = start + _BLOCK >= len(content)
        blocks.append(struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF) + part)
    return b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(content))


def largest_answer(shape: tuple[int, int, int], media_type: str) -> int:
    """Bytes beyond which an answer is not read: as float64, or as 16-bit PNG that does not compress."""
    if media_type == JSON:
        return MAX_SCORES
    return math.prod(shape) * (8 if media_type == NPY else 3) + SLACK


def announced_shape(content: bytes, media_type: str) -> tuple[int, int, int]:
    """C, H, W that the header of a PNG or .npy image announces; nothing is unpacked.

    Raises:
        ValueError: it is no such image.
    """
    if media_type == PNG:
        header = png16.read_header(content)
        if header is None:
            raise ValueError("it is no PNG")
        return 3, header.height, header.width
    found, _, _ = _npy_header(io.BytesIO(content))
    if len(found) != 3:
        raise ValueError(f"its shape is {found}; an image is H x W x C")
    height, width, channels = found
    return channels, height, width


def decode_image(content: bytes, media_type: str, shape: tuple[int, int, int]) -> Tensor:
    """An answer's image.

    Args:
        content: PNG of 8 or 16 bits, or .npy with H x W x C floats.
        media_type: which of them.
        shape: C, H, W that it must have.

    Returns:
        C x H x W float32, unclamped where it came as .npy.

    Raises:
        ValueError: with the reason, where it is not such an image.
    """
    try:
        values = _decode_npy(content, shape) if media_type == NPY else _decode_png(content, shape)
    except ValueError:
        raise
    except Exception as error:  # decoders raise all sorts of things on foreign bytes
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not bool(np.isfinite(values).all()):
        raise ValueError("it holds values that are NaN or infinite")
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))


def _decode_npy(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    stream = io.BytesIO(content)
    found, fortran, dtype = _npy_header(stream)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"its type is {dtype}; float16, float32 or float64 is wanted")
    _check_size(found, shape)
    there, wanted = len(content) - stream.tell(), math.prod(found) * dtype.itemsize
    if there != wanted:
        raise ValueError(f"its header announces {wanted} bytes of numbers, {there} are there")
    values = np.frombuffer(content, dtype, offset=stream.tell())
    return values.reshape(found, order="F" if fortran else "C").astype(np.float32)


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis runs fastest, and type; the stream stands at the numbers afterwards."""
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("its .npy version is not 1.0")
        return np.lib.format.read_array_header_1_0(stream)
    except ValueError:
        raise
    except Exception as error:  # the header is a Python literal, and foreign ones fail in many ways
        raise ValueError(f"its .npy header cannot be read: {type(error).__name__}") from error


def _check_size(found: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    if tuple(found) != (height, width, channels):
        raise ValueError(f"its size is {' x '.join(map(str, found))}, sent were {height} x {width} x {channels}")


def _decode_png(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    header = png16.read_header(content)
    if header is None:
        raise ValueError("it is no PNG")
    # by the header, before anything of the announced size is unpacked
    _check_size((header.height, header.width, 3), shape)
    if not content.endswith(_chunk(b"IEND", b"")):
        raise ValueError("it is cut off")
    if header.depth == 16:
        planes = png16.read(content, header).astype(np.float32) / np.float32(65535)
        return _as_rgb(planes)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
        if opened.mode not in {"L", "LA", "P", "RGB", "RGBA"}:
            raise ValueError(f"its pixels are of mode {opened.mode}, not 8-bit grey or RGB")
        opened.load()
        palette = opened.convert("RGBA") if opened.mode == "P" else opened
        levels = np.asarray(palette).reshape(header.height, header.width, -1)
    return _as_rgb(levels.astype(np.float32) / np.float32(255))


def _as_rgb(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Drop an opaque alpha plane and replicate grey."""
    if planes.shape[2] in (2, 4):
        if float(planes[..., -1].min()) < 1:
            raise ValueError("it is partly transparent")
        planes = planes[..., :-1]
    return np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes


def decode_scores(content: bytes) -> Tensor:
    """An answer's scores, one a class: JSON ``{"scores": [...]}`` or the bare list.

    Returns:
        float32 vector.

    Raises:
        ValueError: with the reason, where there are none.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {type(error).__name__}") from error
    values = document.get("scores") if isinstance(document, dict) else document
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError('it is not {"scores": [a number for each of two or more classes]}')
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError("its scores are not all numbers")
    try:
        with np.errstate(over="ignore"):
            scores = np.asarray(values, dtype=np.float64).astype(np.float32)
    except OverflowError as error:
        raise ValueError("a score is beyond every float") from error
    if not bool(np.isfinite(scores).all()):
        raise ValueError("its scores are not all finite")
    return torch.from_numpy(scores)
