"""NumPy files of images: linear light as floats, 8-bit pictures, or four raw planes."""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

RAW_WHITE = 1023.0
"""White level of the raw planes of UDC-SIT (10 bit)."""

MAX_BYTES = 2**32
"""Size to which a .npz may unpack."""


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that a .npy file announces; the stream stands at its numbers afterwards.

    Raises:
        ValueError and others: it is no .npy file.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"unknown .npy version {version}")
    shape, _, dtype = readers[version](stream)
    return shape, dtype


def _read_npy(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    shape, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects (pickle), which are never loaded")
    wanted, there = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if wanted > there:  # before anything of the announced size is allocated
        raise ValueError(f"its header announces {wanted} bytes of numbers, {there} are there")
    stream.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _read_npz(content: bytes) -> NDArray[Any]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist()]
        key = "rgb" if "rgb" in names else names[0] if len(names) == 1 else None
        if key is None:
            raise ValueError(f"it holds {', '.join(names[:5]) or 'nothing'}: one array, or one named rgb, is wanted")
        return _read_member(archive, archive.infolist()[names.index(key)])


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.file_size > MAX_BYTES:
        raise ValueError(f"it unpacks to {member.file_size} bytes")
    return _read_npy(archive.read(member))


def read_member(content: bytes, name: str) -> NDArray[Any]:
    """Read one array of a .npz file by its name; no pickle is ever loaded.

    Raises:
        ValueError, OSError, zipfile.BadZipFile and others: the file cannot be read, or has no such array.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise ValueError(f"it holds no array {name}")
        return _read_member(archive, archive.getinfo(f"{name}.npy"))


def read_array(content: bytes, suffix: str) -> NDArray[Any]:
    """Read the image in a .npy or .npz file; no pickle is ever loaded.

    Raises:
        ValueError, OSError, zipfile.BadZipFile and others: the file cannot be read.
    """
    return _read_npz(content) if suffix == ".npz" else _read_npy(content)


def scale(values: NDArray[Any], channels: int) -> NDArray[np.float32]:
    """Check type and shape of an H x W x C array and scale it: uint8 to [0, 1], raw planes by 1023.

    Raises:
        ValueError: with the reason, where it is no image of `channels` channels.
    """
    if values.ndim != 3 or values.shape[2] not in (3, 4) or 0 in values.shape:
        raise ValueError(f"its shape is {values.shape}; an image is H x W x 3, or H x W x 4 for raw planes")
    if values.shape[2] != channels:
        raise ValueError(f"it has {values.shape[2]} planes where {channels} are wanted")
    if channels == 4 and values.dtype.kind in "uif":
        raw: NDArray[np.float32] = values.astype(np.float32) / np.float32(RAW_WHITE)
        if raw.size and float(np.nanmax(raw)) > 1:
            raise ValueError(f"raw planes reach {float(values.max()):g}, beyond white at {RAW_WHITE:g}")
        return raw
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    if values.dtype.kind != "f":
        raise ValueError(f"its type is {values.dtype}; floats (linear light) or uint8 are wanted")
    return values.astype(np.float32)
