"""How the shipped crops were made: ``python -m udc_ray.data.make_samples SOURCE``.

SOURCE holds ``photos/gb82`` (github.com/gianni-rosato/gb82-image-set, ``png/``) and
``hdr/openexr_images`` (github.com/AcademySoftwareFoundation/openexr-images, reduced 2x by area
mean, linear light, as .npz with key ``rgb``).
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udc_ray.data.shipped import EDGE, SAMPLES
from udc_ray.data.simulate import HERE
from udc_ray.data.simulate_files import write_atomically
from udc_ray.errors import UserError

STRIDE = 16
"""Step in which the window of an HDR crop is searched, in pixels."""


def brightest_window(rgb: NDArray[Any], edge: int = EDGE) -> tuple[int, int]:
    """Top left corner of the window whose middle is nearest to the brightest light (3 x 3 mean of luminance)."""
    light = rgb.astype(np.float64) @ np.array([0.2126, 0.7152, 0.0722])
    height, width = light.shape
    mean = sum(np.roll(light, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    y, x = np.unravel_index(int(np.argmax(mean)), light.shape)
    corners = [(t, s) for t in range(0, height - edge + 1, STRIDE) for s in range(0, width - edge + 1, STRIDE)]
    return min(corners, key=lambda c: (c[0] + edge / 2 - y) ** 2 + (c[1] + edge / 2 - x) ** 2)


def _photograph(path: Path) -> bytes:
    with Image.open(path) as image:
        left, top = (image.width - EDGE) // 2, (image.height - EDGE) // 2
        crop = image.convert("RGB").crop((left, top, left + EDGE, top + EDGE))
    buffer = io.BytesIO()
    crop.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _hdr(path: Path) -> bytes:
    with np.load(path, allow_pickle=False) as archive:
        rgb = archive["rgb"]
    top, left = brightest_window(rgb)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, rgb=rgb[top : top + EDGE, left : left + EDGE].astype(np.float16))
    return buffer.getvalue()


def main(source: Path) -> None:
    """Make the crops of every shipped photograph and copy the licences."""
    names = json.loads((HERE / "split.json").read_text())["shipped"]
    photos, hdr = source / "photos" / "gb82", source / "hdr" / "openexr_images"
    for name in names["gb82"]:
        write_atomically(SAMPLES / "ldr" / f"{name}.png", _photograph(photos / f"{name}.png"))
    for name in names["openexr"]:
        write_atomically(SAMPLES / "hdr" / f"{name}.npz", _hdr(hdr / f"{name}.npz"))
    for folder, target in ((photos, "ldr"), (hdr, "hdr")):
        write_atomically(SAMPLES / target / "LICENSE", (folder / "LICENSE").read_bytes())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (UserError, OSError, IndexError) as error:
        sys.exit(f"python -m udc_ray.data.make_samples SOURCE: {error}")
