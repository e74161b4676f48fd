"""Reading a file with a point-spread function, as it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udc_ray.data import arrays
from udc_ray.data.images import read_bytes
from udc_ray.errors import DataError
from udc_ray.location import Place

MAX_EDGE = 4096
"""Pixels; beyond that a file is a mistake."""


def read_values(path: Place) -> NDArray[Any]:
    """Read the numbers of a PSF file, as they are stored.

    Raises:
        DataError: there is no such file, or it holds no single array of numbers.
    """
    change = "save it with numpy.save: K x L, or K x L x 3"
    try:
        content = read_bytes(path)
        if content.startswith(b"PK"):
            raise DataError("it holds no single array of numbers, but is an archive")
        values = arrays.read_array(content, ".npy")
    except DataError as error:
        raise DataError(f"cannot read the PSF {path}: {error.what.replace(str(path), 'it')}", change=change) from error
    except Exception as error:  # decoders raise all sorts of things on foreign bytes; each is the file's fault
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot read the PSF {path}: {reason}", "not a .npy file of numbers", change) from error
    if values.dtype.kind not in "uif":
        raise DataError(f"cannot read the PSF {path}: it holds no single array of numbers", change=change)
    return values


def read_psf(path: Place) -> Tensor:
    """Read a PSF: .npy, K x L or K x L x 3, numbers that are not negative.

    Returns:
        3 x K x L float64, as stored; one plane serves all three colours.

    Raises:
        DataError: whatever is wrong with the file.
    """
    values = read_values(path)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or not 0 < min(values.shape) <= max(values.shape) <= MAX_EDGE:
        raise DataError(f"PSF {path} has shape {values.shape}", "a PSF is K x L or K x L x 3", "save it in that order")
    planes = np.repeat(values.astype(np.float64), 3 if values.shape[2] == 1 else 1, axis=2)
    if not np.isfinite(planes).all() or (planes < 0).any() or (planes.sum((0, 1)) <= 0).any():
        raise DataError(f"PSF {path} has negative, empty or non-finite colours", change="give light intensities")
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))
