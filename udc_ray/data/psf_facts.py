"""What a point-spread function does to an image, in a few numbers and a picture on a log scale."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from udc_ray.data.psf_files import read_psf
from udc_ray.data.psf_view import draw_psf
from udc_ray.location import Place

CORE = 5
"""Radius in pixels of what is not halo."""
SHALLOW = 3.0
"""Decades between the brightest and the faintest light below which the halo is lost."""


@dataclass(frozen=True, kw_only=True)
class PsfFacts:
    """A PSF in a few numbers.

    Attributes:
        name: stem of the file.
        height: pixels.
        width: pixels.
        sums: of red, green and blue, as stored.
        decades: orders of magnitude between the peak and the faintest value above 0, per colour.
        offset: how far the peak of each colour lies from the centre ``[K // 2, L // 2]``, in pixels: down, right.
        halo: share of each colour's light further than 5 pixels from its peak.
        warnings: what to know before it is used.
        figure: picture on a log scale, PNG.
    """

    name: str
    height: int
    width: int
    sums: tuple[float, ...]
    decades: tuple[float, ...]
    offset: tuple[tuple[int, int], ...]
    halo: tuple[float, ...]
    warnings: tuple[str, ...]
    figure: bytes

    def document(self) -> dict[str, Any]:
        """All but the picture, for JSON."""
        values = asdict(self)
        del values["figure"]
        return values


def describe_psf(path: Place) -> PsfFacts:
    """Look at a PSF file (.npy, K x L or K x L x 3).

    Raises:
        DataError: whatever is wrong with the file.
    """
    psf_3KL = read_psf(path)
    height, width = psf_3KL.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    offsets, halos, decades = [], [], []
    for plane in psf_3KL:
        top, left = divmod(int(plane.argmax()), width)
        offsets.append((top - height // 2, left - width // 2))
        far = (rows - top) ** 2 + (columns - left) ** 2 > CORE**2
        halos.append(float(plane[far].sum() / plane.sum()))
        decades.append(float((plane.max() / plane[plane > 0].min()).log10()))
    sums = tuple(psf_3KL.sum((1, 2)).tolist())
    return PsfFacts(
        name=path.stem,
        height=height,
        width=width,
        sums=sums,
        decades=tuple(decades),
        offset=tuple(offsets),
        halo=tuple(halos),
        warnings=_warnings(sums, decades, offsets),
        figure=draw_psf(psf_3KL.numpy(), path.stem),
    )


def _warnings(sums: tuple[float, ...], decades: list[float], offsets: list[tuple[int, int]]) -> tuple[str, ...]:
    found = []
    if any(abs(total - 1) > 0.01 for total in sums):
        found.append("its colours do not sum to 1: a simulated display normalises them, the SYNTH formula does not")
    if min(decades) < SHALLOW:
        found.append(
            f"its values span {min(decades):.1f} decades only: the halo of a display lies far below the peak "
            "and was cut off, as in a picture of 8 bit"
        )
    if any(max(abs(down), abs(right)) > 1 for down, right in offsets):
        found.append(f"its peak lies off the centre by {offsets} pixels (down, right): images will be shifted")
    return tuple(found)
