"""Reading one image file: every kind of damage becomes one `DataError`."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from udc_ray.data import arrays, png16
from udc_ray.errors import DataError
from udc_ray.location import Folder, Place, local

Kind = Literal["srgb", "linear", "raw"]
"""How the numbers are meant: encoded [0, 1], linear light up to 500, or raw planes in [0, 1]."""

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
ARRAYS = frozenset({".npy", ".npz"})
SUFFIXES = PICTURES | ARRAYS

MAX_PIXELS = 2**27
"""134 megapixels; beyond that a file is a mistake or an attack."""


class Picture(NamedTuple):
    """An image, C x H x W float32, and how its numbers are meant."""

    image: Tensor
    kind: Kind


def read_image(path: Place, channels: int = 3) -> Picture:
    """Read an image.

    Args:
        path: PNG (8 or 16 bit), JPEG, WebP or TIFF; grey becomes RGB, alpha is accepted where it
            is opaque. Or .npy / .npz, H x W x 3: floats are linear light, uint8 is sRGB.
        channels: 3, or 4 for raw planes (GR, R, B, GB) of 0 to 1023 in .npy / .npz.

    Raises:
        DataError: whatever is wrong with the file.
    """
    content = read_bytes(path)
    suffix = path.suffix.lower()
    if channels == 4 and suffix not in ARRAYS:
        raise DataError(f"{path} is a picture, but raw planes are wanted", "the model takes 4 channels", "give .npy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the verdict on a file is the DataError below, not a warning
            values, kind = _decode(content, suffix, channels)
    except Exception as error:  # decoders raise all sorts of things on foreign bytes; each is the file's fault
        reason = str(error) or type(error).__name__
        raise DataError(
            f"cannot use {path}: {reason}",
            "the file is damaged, cut off, or not what its name says",
            "replace it, or save it again as 8-bit RGB PNG or as float .npy (H x W x 3, linear light)",
        ) from error
    _check_values(values, path)
    return Picture(torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))), kind)


def regular_file(path: Place) -> Path:
    """The local path of an ordinary file with something in it; anything else is refused."""
    try:
        here = local(path)
        status = here.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not an ordinary file"
            raise DataError(f"{path} is {kind}, where an image is wanted", change="give an image file")
        if status.st_size == 0:
            raise DataError(f"{path} is empty (zero bytes)", "a copy or download that failed", "replace the file")
        return here
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Place, error: OSError) -> DataError:
    """The error for a file that the system does not give."""
    return DataError(
        f"cannot read {path}: {error.strerror or error}",
        "a wrong path, a link that leads nowhere, or missing permission",
        "check the path",
    )


def read_bytes(path: Place) -> bytes:
    """The content of an ordinary file."""
    here = regular_file(path)
    try:
        return here.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def _decode(content: bytes, suffix: str, channels: int) -> tuple[NDArray[np.float32], Kind]:
    if suffix in ARRAYS:
        values = arrays.read_array(content, suffix)
        kind: Kind = "raw" if channels == 4 else "srgb" if values.dtype == np.uint8 else "linear"
        return arrays.scale(values, channels), kind
    if suffix not in PICTURES:
        raise ValueError(f"the suffix {suffix or '(none)'} is not one of {', '.join(sorted(SUFFIXES))}")
    header = png16.read_header(content)
    if header is not None and header.width * header.height > MAX_PIXELS:
        raise ValueError(f"its header announces {header.width} x {header.height} pixels")
    if header is not None and header.depth == 16:
        return _opaque_rgb(png16.read(content, header), 65535), "srgb"
    return _opaque_rgb(_read_pillow(content), 255), "srgb"


def _read_pillow(content: bytes) -> NDArray[np.uint8]:
    """Read an 8-bit picture to H x W x 1, 2, 3 or 4."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "TIFF")) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"its header announces {opened.width} x {opened.height} pixels")
        if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":  # a phone's MPO is one picture and a preview
            raise ValueError("it holds several pictures; one is wanted")
        if opened.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}:
            raise ValueError(f"its pixels are of mode {opened.mode}, not 8-bit grey, RGB or palette")
        opened.load()
        upright = ImageOps.exif_transpose(opened)
        return np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))


def _opaque_rgb(values: NDArray[np.uint8] | NDArray[np.uint16], white: int) -> NDArray[np.float32]:
    """Drop an opaque alpha plane, replicate grey, and scale to [0, 1]."""
    planes = values.shape[2]
    if planes in (2, 4):
        if int(values[..., -1].min()) < white:
            raise ValueError("it is partly transparent, so its colours depend on what lies behind; flatten it")
        values = values[..., :-1]
    rgb: NDArray[np.float32] = values.astype(np.float32) / np.float32(white)
    return np.repeat(rgb, 3, axis=2) if planes < 3 else rgb


def _check_values(values: NDArray[np.float32], path: Place) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DataError(
            f"{path} holds {bad} values that are NaN or infinite",
            "a division by zero where the file was made, or values beyond float16",
            "mend the file",
        )
    negative = int((values < 0).sum())
    if negative:
        raise DataError(
            f"{path} holds {negative} negative values; light is not negative",
            "a black level that was subtracted, a colour matrix, or a range of [-1, 1]",
            "clip at 0, or rescale",
        )


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden files and folders are left out, links followed once."""
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link that leads back up
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths = (Path(root, n) for n in names if not n.startswith("."))
        found += [p for p in paths if p.suffix.lower() in SUFFIXES]
    return sorted(found)


def _by_relative_path(folder: Folder) -> list[tuple[str, Place]]:
    if isinstance(folder, Path):
        return [(path.relative_to(folder).as_posix(), path) for path in list_images(folder)]
    images = [(path, file) for path, file in folder.files.items() if file.suffix.lower() in SUFFIXES]
    return [(path, file) for path, file in images if not any(part.startswith(".") for part in path.split("/"))]


def index_images(folder: Folder) -> dict[str, Place]:
    """Images below a folder by id, the path without suffix; an empty folder and equal ids are refused."""
    table: dict[str, Place] = {}
    for relative, path in _by_relative_path(folder):
        key = PurePosixPath(relative).with_suffix("").as_posix()
        if key in table:
            raise DataError(
                f"two files have the id {key!r}: {table[key].name} and {path.name}",
                "an image is known by its path without the suffix",
                "remove or rename one of them",
            )
        table[key] = path
    if not table:
        raise DataError(
            f"no images in {folder}",
            f"an image ends in {', '.join(sorted(SUFFIXES))}",
            "give the folder that holds them",
        )
    return dict(sorted(table.items()))
