"""The images in the package: 12 photographs (GB82, CC0) and 5 HDR photographs (OpenEXR, BSD-3).

Each is the centre 256 x 256 (HDR: a window around its brightest light). The photographs behind
them are never trained or tuned on (``split.json``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from udc_ray.data import simulate
from udc_ray.data.folder import SimulatedFolder
from udc_ray.data.images import index_images
from udc_ray.errors import SpecError

SAMPLES = Path(__file__).parent / "samples"
EDGE = 256
"""Edge of the shipped crops."""


def open_shipped(
    display: simulate.Display, *, which: Literal["ldr", "hdr", "all"] = "ldr", size: int | None = None, seed: int = 0
) -> SimulatedFolder:
    """Send the shipped images through a display.

    Args:
        display: the display.
        which: the 8-bit photographs, the HDR photographs, or both (one domain only).
        size: edge of the centre crop, at most 256.
        seed: seed of the sensor noise.
    """
    if size is not None and size > EDGE:
        raise SpecError(f"size {size} is larger than the shipped images", change=f"a size of at most {EDGE}")
    if which == "all" and display.domain != "tonemapped":
        raise SpecError(
            f"which: all mixes 8-bit and HDR images, whose domains differ under the display {display.name!r}",
            "budgets live in one canonical domain a run",
            "run which: ldr and which: hdr apart, or use the display zte, which is tone-mapped for both",
        )
    parts = ("ldr", "hdr") if which == "all" else (which,)
    files = {image_id: path for part in parts for image_id, path in index_images(SAMPLES / part).items()}
    return SimulatedFolder(
        name="shipped" if which == "ldr" else f"shipped-{which}",
        image_ids=tuple(sorted(files)),
        domain=simulate.canonical_domain(display, hdr=which == "hdr"),
        files=files,
        display=display,
        seed=seed,
        size=size,
    )
