"""What the header of an image file announces: size, planes and type, without reading its numbers."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from udc_ray.data import arrays, png16
from udc_ray.data.images import ARRAYS, regular_file
from udc_ray.location import Place


class Stored(NamedTuple):
    """Announced by a header.

    Attributes:
        height: pixels.
        width: pixels.
        planes: 3 for RGB, 4 for raw planes or RGBA, 1 for grey.
        type: ``uint8``, ``uint16``, ``float32``, ...
    """

    height: int
    width: int
    planes: int
    type: str

    @property
    def channels(self) -> int:
        """Channels of the data set that the file belongs to; None of the pictures has raw planes."""
        return 4 if self.planes == 4 else 3


def read_stored(path: Place) -> Stored | None:
    """Read the header of an image; None where it cannot be read, which reading the image explains.

    A picture always counts 3 planes, as grey is replicated and opaque alpha dropped.
    """
    try:
        here = regular_file(path)
        return _of_array(here) if here.suffix.lower() in ARRAYS else _of_picture(here)
    except Exception:  # decoders raise all sorts of things on foreign bytes; who reads the image gets the reason
        return None


def _of_array(path: Path) -> Stored | None:
    if path.suffix.lower() == ".npy":
        with path.open("rb") as stream:
            return _stored(*arrays.read_header(stream))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        member = "rgb.npy" if "rgb.npy" in names else names[0]
        with archive.open(member) as stream:
            return _stored(*arrays.read_header(stream))


def _stored(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Stored | None:
    if len(shape) != 3:
        return None
    return Stored(height=shape[0], width=shape[1], planes=shape[2], type=dtype.newbyteorder("=").name)


def _of_picture(path: Path) -> Stored:
    with path.open("rb") as stream:
        start = stream.read(64)
    header = png16.read_header(start)
    if header is not None:
        return Stored(height=header.height, width=header.width, planes=3, type=f"uint{max(8, header.depth)}")
    with warnings.catch_warnings(), path.open("rb") as stream:
        warnings.simplefilter("ignore")  # a large picture warns; whether it is too large is for the reader to say
        with Image.open(io.BufferedReader(stream), formats=("JPEG", "WEBP", "TIFF")) as opened:
            return Stored(height=opened.height, width=opened.width, planes=3, type="uint8")
