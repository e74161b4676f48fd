"""``udc-ray simulate``: clean images in, degraded image files out."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from udc_ray.data import domains, simulate
from udc_ray.data.canonical import centre_crop
from udc_ray.data.folder import SimulatedFolder, index_source
from udc_ray.data.images import read_image
from udc_ray.errors import DataError
from udc_ray.location import Place


def simulate_folder(
    display: simulate.Display,
    source: Path,
    out: Path,
    *,
    saturated: bool = False,
    seed: int = 0,
    size: int | None = None,
) -> list[Path]:
    """Photograph the clean images of a folder (or one file) through a display.

    8-bit input gives ``ID.png``. HDR input gives ``ID.npy``, float32 H x W x 3 in linear light as
    the SYNTH data set stores it (tone-mapped when it is read), and ``ID.png`` to look at. The
    pixels equal those of an evaluation of the same source, display and seed.

    Args:
        display: the display.
        source: folder or image file.
        out: folder that the files go to; it may exist, the files may not.
        saturated: refuse images that cannot hold a light source brighter than white.
        seed: seed of the sensor noise.
        size: edge of the centre crop, or None.

    Returns:
        The files written, previews included.

    Raises:
        DataError: input that cannot be used, or output that exists. Nothing is written then.
    """
    files = index_source(source)
    hdr = {image_id: _check(path, saturated=saturated, size=size) for image_id, path in files.items()}
    targets = {i: [out / f"{i}.npy", out / f"{i}.png"] if hdr[i] else [out / f"{i}.png"] for i in files}
    _refuse_existing(path for paths in targets.values() for path in paths)
    for image_id, path in files.items():
        domain = simulate.canonical_domain(display, hdr[image_id])
        dataset = SimulatedFolder(
            name="", image_ids=(image_id,), domain=domain, files={image_id: path}, display=display, seed=seed, size=size
        )
        degraded = dataset.load(image_id).degraded
        if hdr[image_id]:
            write_atomically(targets[image_id][0], _npy(domains.inverse_tonemap(degraded)))
        write_atomically(targets[image_id][-1], _png(degraded))
    return [path for paths in targets.values() for path in paths]


def _check(path: Place, *, saturated: bool, size: int | None) -> bool:
    """Read a clean image once before anything is written; whether it is HDR."""
    image, kind = read_image(path)
    if saturated:
        try:
            simulate.require_light_source(image, hdr=kind == "linear")
        except DataError as error:
            raise DataError(f"{path}: {error.what}", error.cause, error.change) from error
    centre_crop(image, size, str(path))
    return kind == "linear"


def _refuse_existing(paths: Iterable[Path]) -> None:
    there = [path for path in paths if os.path.lexists(path)]
    if there:
        raise DataError(
            f"{len(there)} of the files to write exist already, such as {there[0]}",
            "an earlier simulation, or IN and OUT are the same folder",
            "give an empty folder, or remove them",
        )


def _interleave(image: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy(), dtype=np.float32)


def _npy(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, _interleave(image))
    return buffer.getvalue()


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    pixels = np.rint(_interleave(simulate.quantise(image)) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or none, making its folder; the errors of a disk become one `DataError`."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise DataError(
            f"cannot write {path}: {error.strerror or error}",
            "a full or read-only disk, or a file where a folder is wanted",
            "free some space, or write elsewhere",
        ) from error
