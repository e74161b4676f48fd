"""A contact sheet: degraded images beside their truths, to see at a glance what a data set holds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from udc_ray.data import domains
from udc_ray.data.canonical import to_canonical
from udc_ray.data.images import Picture

EDGE = 192
"""Longer edge of a thumbnail, in pixels."""
_LINE, _GAP = 14, 6
_GREY = (40, 40, 40)


class Row(NamedTuple):
    """One image of the sheet: uint8 thumbnails, H x W x 3."""

    caption: str
    degraded: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None


def thumbnail(picture: Picture) -> NDArray[np.uint8]:
    """A small view: tone-mapped where light is linear, demosaiced by halves and encoded where planes are raw."""
    image = to_canonical(picture)
    if picture.kind == "raw":
        image = domains.linear_to_srgb(raw_to_rgb(image))
    scale = EDGE / max(image.shape[1:])
    size = [max(1, round(edge * scale)) for edge in image.shape[1:]]
    small = torch.nn.functional.interpolate(image[None], size=size, mode="area")[0] if scale < 1 else image
    pixels: NDArray[np.uint8] = (small.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels


def raw_to_rgb(planes: Tensor) -> Tensor:
    """Planes GR, R, B, GB (4 x H x W) as RGB at half the resolution of the sensor; no white balance."""
    green_red, red, blue, green_blue = planes
    return torch.stack([red, (green_red + green_blue) / 2, blue])


def contact_sheet(rows: Sequence[Row]) -> bytes:
    """Draw the rows, degraded left and truth right, as PNG."""
    heights = [max(EDGE, 1) + _LINE + _GAP for _ in rows]
    columns = 2 if any(row.truth is not None for row in rows) else 1
    canvas = Image.new("RGB", (columns * (EDGE + _GAP) + _GAP, sum(heights) + _GAP), _GREY)
    draw = ImageDraw.Draw(canvas)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        draw.text((_GAP, top), row.caption.encode("ascii", "replace").decode()[: columns * 30], fill=(230, 230, 230))
        for column, pixels in enumerate(p for p in (row.degraded, row.truth) if p is not None):
            canvas.paste(Image.fromarray(pixels), (_GAP + column * (EDGE + _GAP), top + _LINE))
        top += height
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()
