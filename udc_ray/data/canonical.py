"""What every data set does to an image that it has read: the canonical domain, the centre crop."""

from __future__ import annotations

from torch import Tensor

from udc_ray.data import domains
from udc_ray.data.images import ARRAYS, Kind, Picture, read_image
from udc_ray.errors import DataError
from udc_ray.location import Place

DOMAINS: dict[Kind, domains.Domain] = {"srgb": "srgb", "linear": "tonemapped", "raw": "linear"}
"""Canonical domain by the kind of file."""


def to_canonical(picture: Picture) -> Tensor:
    """Tone-map linear light; pictures and raw planes stay as stored."""
    return domains.tonemap(picture.image) if picture.kind == "linear" else picture.image


def read_canonical(path: Place, channels: int, domain: domains.Domain) -> Tensor:
    """Read an image into the canonical domain of its data set; another domain is refused."""
    picture = read_image(path, channels)
    if DOMAINS[picture.kind] != domain:
        raise mixed(path, picture.kind)
    return to_canonical(picture)


def mixed(path: Place, kind: Kind) -> DataError:
    """The error for a file that is not of the kind of the others."""
    return DataError(
        f"{path} holds {kind} values, others of this data set do not",
        "8-bit pictures and linear float arrays in one folder: a budget such as 8/255 means different things in them",
        "put them in separate folders and evaluate each",
    )


def kind_of(path: Place, channels: int) -> Kind:
    """Kind of a file; an array has to be read for it."""
    if channels == 4:
        return "raw"
    return read_image(path).kind if path.suffix.lower() in ARRAYS else "srgb"


def centre_crop(image: Tensor, size: int | None, what: str) -> Tensor:
    """Cut the centre size x size out of C x H x W; the whole image where size is None.

    A degraded image is cropped after it was degraded, so that no padding gets into the crop.
    """
    if size is None:
        return image
    height, width = image.shape[-2:]
    if min(height, width) < size:
        raise DataError(
            f"{what} is {height} x {width}, smaller than the crop of {size} x {size}",
            change=f"ask for a size of at most {min(height, width)}, or leave the size out",
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[..., top : top + size, left : left + size].contiguous()
