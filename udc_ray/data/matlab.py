"""MATLAB 5 files with stacks of images: the validation and test sets of UDC-2020.

A stack is a uint8 variable, N x H x W x 3. Such files are read here, as scipy.io crashes the interpreter on
damaged ones. The format ("MAT-File Format", MathWorks, chapter 1): a header of 128 bytes, then elements,
each a tag (type and number of bytes) and its content. A variable is an element of type 14, or one of type
15 that is such an element packed by zlib; in it lie flags, dimensions, name and numbers, elements again.
Whatever a tag announces is held against what is there before anything is allocated.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from udc_ray.data.images import read_bytes
from udc_ray.errors import DataError
from udc_ray.location import Place

SUFFIX = ".mat"
MAX_BYTES = 2**32
"""Size of the largest stack."""
_HEADER = 128
_ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
_VERSION_7_3 = (b"\x00\x02IM", b"\x02\x00MI")
_UINT8, _MATRIX, _PACKED = 2, 14, 15
_CLASSES = {
    1: "cell",
    2: "struct",
    3: "object",
    4: "char",
    5: "sparse",
    6: "double",
    7: "single",
    8: "int8",
    9: "uint8",
}
_CLASSES |= {10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}
_COMPLEX = 0x800
_START = 2048
"""Bytes in which the flags, dimensions and name of a variable lie."""
_LONGEST_NAME = 63
_DEFLATE = 1032
"""Deflate shrinks by this factor at most, so n packed bytes hold no more than this times n."""
_PNG = "or save the images as PNG pairs in the folders HQ and LQ"


class Variable(NamedTuple):
    """A variable of a file: what it announces."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def is_stack(self) -> bool:
        """Whether it is a stack of images, N x H x W x 3."""
        return self.kind == "uint8" and len(self.shape) == 4 and self.shape[3] == 3 and min(self.shape) > 0

    def __str__(self) -> str:
        return f"{self.name} ({self.kind} {' x '.join(map(str, self.shape))})"


class _Element(NamedTuple):
    type: int
    content: memoryview


def list_stacks(path: Place) -> tuple[Variable, ...]:
    """The stacks of images in a .mat file.

    Raises:
        DataError: the file cannot be read, is of another version, or holds no stack.
    """
    content = read_bytes(path)
    order = _byte_order(content, path)
    try:
        variables = [v for element in _elements(content, order) if (v := _announced(element, order)) is not None]
    except (ValueError, struct.error, zlib.error) as error:
        raise _damaged(path, error) from error
    stacks = tuple(v for v in variables if v.is_stack)
    if not stacks:
        raise DataError(
            f"{path} holds no stack of images, but {', '.join(map(str, variables[:4])) or 'nothing'}",
            "images are one uint8 variable, N x H x W x 3, as val_display is",
            f"save them so, {_PNG}",
        )
    return stacks


@lru_cache(maxsize=2)
def read_stack(path: Place, changed: int, name: str) -> NDArray[np.uint8]:
    """Read a stack that `list_stacks` has found; N x H x W x 3, not to be written to.

    A stack is one column-major array, so no image can be read alone. The last two stacks are kept.

    Args:
        path: the file.
        changed: when it was written; it only keys the cache.
        name: of the variable.
    """
    content = read_bytes(path)
    order = _byte_order(content, path)
    try:
        for element in _elements(content, order):
            variable = _announced(element, order)
            if variable is not None and variable.name == name and variable.is_stack:
                return _numbers(element, variable, order)
        raise ValueError(f"it holds no {name}")
    except (ValueError, struct.error, zlib.error, MemoryError) as error:
        raise _damaged(path, error) from error


def _byte_order(content: bytes, path: Place) -> str:
    mark = content[124:_HEADER]
    if content.startswith(b"\x89HDF") or mark in _VERSION_7_3:
        raise DataError(
            f"{path} is a MATLAB 7.3 file (HDF5), which is not read",
            "it was saved with the option -v7.3",
            f"save it with -v7 in MATLAB, or by scipy.io.savemat; {_PNG}",
        )
    if mark not in _ORDERS:
        raise _damaged(path, ValueError("it has no header of a MATLAB 5 file"))
    return _ORDERS[mark]


def _damaged(path: Place, error: Exception) -> DataError:
    return DataError(
        f"cannot use {path}: {str(error) or type(error).__name__}",
        "the file is damaged, cut off, or not what its name says",
        f"replace it, {_PNG}",
    )


def _elements(content: bytes, order: str) -> Iterator[_Element]:
    """The elements of a file, whole."""
    view, position = memoryview(content), _HEADER
    while position < len(view):
        element, position = _element(view, position, order)
        yield element


def _element(view: memoryview, position: int, order: str, *, whole: bool = True) -> tuple[_Element, int]:
    """The element at a position, and where the next one begins; short ones have their content in the tag."""
    (kind,) = struct.unpack_from(f"{order}I", view, position)
    if kind >> 16:
        length, start, following = kind >> 16, position + 4, position + 8
    else:
        (length,) = struct.unpack_from(f"{order}I", view, position + 4)
        start = position + 8
        following = start + length + (0 if kind == _PACKED else -length % 8)
    if whole and start + length > len(view):
        raise ValueError(f"a tag announces {length} bytes, {len(view) - start} are there")
    return _Element(kind & 0xFFFF, view[start : start + length]), following


def _announced(element: _Element, order: str) -> Variable | None:
    """What a variable announces; None for elements that are none, or hidden ones without a name."""
    if element.type not in (_MATRIX, _PACKED):
        return None
    start = element.content[:_START]
    if element.type == _PACKED:
        unpacked = zlib.decompressobj().decompress(element.content, _START)
        inside, _ = _element(memoryview(unpacked), 0, order, whole=False)
        if inside.type != _MATRIX:
            return None
        start = inside.content
    flags, position = _element(start, 0, order)
    dimensions, position = _element(start, position, order)
    name, _ = _element(start, position, order)
    (mark,) = struct.unpack_from(f"{order}I", flags.content)
    kind = _CLASSES.get(mark & 0xFF, "unknown")
    shape = struct.unpack(f"{order}{len(dimensions.content) // 4}i", dimensions.content)
    text = bytes(name.content[:_LONGEST_NAME]).decode("latin-1")
    if not text.isidentifier():
        return None
    variable = Variable(text, f"complex {kind}" if mark & _COMPLEX else kind, shape)
    if variable.is_stack:
        _check_size(variable, element)
    return variable


def _check_size(variable: Variable, element: _Element) -> None:
    most = len(element.content) * (_DEFLATE if element.type == _PACKED else 1)
    if math.prod(variable.shape) > min(MAX_BYTES, most):
        raise ValueError(f"its header announces {variable}, which is more than the file can hold")


def _numbers(element: _Element, variable: Variable, order: str) -> NDArray[np.uint8]:
    """The numbers of a stack; they are the fourth element in it."""
    content = element.content
    if element.type == _PACKED:
        content = _unpack(content, math.prod(variable.shape) + _START, order)
    position = 0
    for _ in range(4):
        numbers, position = _element(content, position, order)
    if numbers.type != _UINT8 or len(numbers.content) != math.prod(variable.shape):
        raise ValueError(f"{variable} has {len(numbers.content)} bytes of numbers")
    return np.frombuffer(numbers.content, np.uint8).reshape(variable.shape, order="F")


def _unpack(packed: memoryview, most: int, order: str) -> memoryview:
    """Unpack a variable of at most so many bytes; its checksum has to fit."""
    unpacker = zlib.decompressobj()
    unpacked = memoryview(unpacker.decompress(packed, most))
    if not unpacker.eof:
        raise ValueError("its packed numbers are cut off, or more than it announces")
    return _element(unpacked, 0, order)[0].content
