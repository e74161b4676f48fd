"""A picture of a point-spread function on a log scale; on a linear one every display looks harmless."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udc_ray.data.simulate import Display
from udc_ray.data.simulate_files import write_atomically

DECADES = 6
"""Orders of magnitude below the peak that are shown."""


def psf_figure(display: Display, path: Path) -> None:
    """Draw the PSF of a display, per colour and combined, log10 scale relative to the peak.

    Args:
        display: the display.
        path: PNG file to write.
    """
    write_atomically(path, draw_psf(display.kernel().numpy(), display.title or display.name))


def draw_psf(kernel: NDArray[Any], title: str) -> bytes:
    """Draw a PSF, per colour and combined, log10 scale relative to the peak of each colour.

    Args:
        kernel: 3 x K x L, not negative.
        title: what it is the PSF of.

    Returns:
        PNG.
    """
    relative = np.clip(kernel / kernel.max(axis=(1, 2), keepdims=True), 10.0**-DECADES, 1)
    top, left = kernel.shape[1] // 2 + 0.5, kernel.shape[2] // 2 + 0.5  # the centre is 0
    extent = (-left, kernel.shape[2] - left, kernel.shape[1] - top, -top)
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, plane, name in zip(axes, relative, ("red", "green", "blue"), strict=False):
        shown = axis.imshow(plane, norm=LogNorm(10.0**-DECADES, 1), cmap="inferno", extent=extent)
        axis.set_title(name)
        axis.set_xlabel("pixels")
    colours = 1 + np.log10(relative.transpose(1, 2, 0).astype(np.float64)) / DECADES
    axes[3].imshow(colours.clip(0, 1), extent=extent)
    axes[3].set_title("combined")
    axes[3].set_xlabel("pixels")
    figure.colorbar(shown, ax=axes[:3], label="intensity over peak")
    figure.suptitle(f"{title}: point-spread function, log scale")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
