"""Sixteen-bit PNG. Pillow keeps only the upper byte of 16-bit colour, so such files are read here.

Decoding follows the PNG specification (ISO/IEC 15948, sections 9 and 10). The five row filters
predict a pixel from its left, upper and upper-left neighbours, so all pixels on one anti-diagonal
can be undone at once.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PLANES = {0: 1, 2: 3, 4: 2, 6: 4}
"""Samples per pixel by PNG colour type: grey, RGB, grey + alpha, RGBA."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The IHDR chunk."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool


def read_header(content: bytes) -> Header | None:
    """Read the header of a PNG, or None where `content` is no PNG."""
    if not content.startswith(SIGNATURE) or content[12:16] != b"IHDR" or len(content) < 29:
        return None
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", content[16:29])
    return Header(width=width, height=height, depth=depth, colour=colour, interlaced=bool(interlace))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        kind = content[position + 4 : position + 8]
        body = content[position + 8 : position + 8 + length]
        checksum = content[position + 8 + length : position + 12 + length]
        if len(checksum) < 4 or zlib.crc32(kind + body) != struct.unpack(">I", checksum)[0]:
            raise ValueError(f"chunk {kind.decode('latin-1')} is damaged or cut off")
        yield kind, body
        position += 12 + length
        if kind == b"IEND":
            return
    raise ValueError("the file ends before its last chunk")


def _paeth(left: NDArray[np.int16], up: NDArray[np.int16], corner: NDArray[np.int16]) -> NDArray[np.int16]:
    """The Paeth predictor (section 9.4): whichever neighbour is nearest to left + up - corner."""
    a, b, c = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))


def unfilter(rows: NDArray[np.uint8], filters: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Undo the row filters.

    Args:
        rows: H x (W * step) filtered bytes.
        filters: H filter types, 0 to 4.
        step: bytes per pixel.
    """
    height, width = rows.shape[0], rows.shape[1] // step
    out = np.zeros((height + 1, width + 1, step), np.int16)  # one row and column of zeros before the image
    raw = rows.reshape(height, width, step)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, up, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        guesses = (np.zeros_like(left), left, up, (left + up) // 2, _paeth(left, up, corner))
        guess = np.choose(filters[y][:, None], guesses)
        out[y + 1, x + 1] = (raw[y, x] + guess) & 255
    return out[1:, 1:].astype(np.uint8).reshape(height, width * step)


def decode(content: bytes, header: Header) -> NDArray[np.uint8]:
    """Decode a non-interlaced PNG of depth 8 or 16.

    Returns:
        H x (W * bytes per pixel), as stored: 16-bit samples have their upper byte first.

    Raises:
        ValueError: the file is damaged, or uses what is not supported.
    """
    if header.interlaced or header.depth not in (8, 16) or header.colour not in PLANES:
        raise ValueError("interlaced 16-bit PNG files are not supported; save it without interlacing")
    parts = list(_chunks(content))
    if any(kind == b"tRNS" for kind, _ in parts):
        raise ValueError("it has a transparent colour; save it without transparency")
    step = PLANES[header.colour] * header.depth // 8
    expected = header.height * (header.width * step + 1)
    unpacker = zlib.decompressobj()
    packed = b"".join(body for kind, body in parts if kind == b"IDAT")
    stream = np.frombuffer(unpacker.decompress(packed, expected), np.uint8)
    if stream.size != expected:
        raise ValueError(f"{stream.size} of {expected} bytes of pixels are there")
    lines = stream.reshape(header.height, -1)
    if int(lines[:, 0].max()) > 4:
        raise ValueError("unknown row filter")
    return unfilter(lines[:, 1:], lines[:, 0], step)


def read(content: bytes, header: Header) -> NDArray[np.uint16]:
    """Decode a 16-bit PNG to H x W x planes, values 0 to 65535."""
    samples = decode(content, header).reshape(header.height, header.width, -1, 2).astype(np.uint16)
    return samples[..., 0] * np.uint16(256) + samples[..., 1]
