"""``udc-ray simulate``: photograph clean images through a display."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Clean image, or folder of images (8-bit, or linear .npy/.npz).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the degraded images.")],
    display: Annotated[str, typer.Option(help="toled, poled, zte, or a PSF as .npy.")] = "toled",
    light_source: Annotated[bool, typer.Option("--light-source", help="Insist on a saturated light source.")] = False,
    psf: Annotated[Path | None, typer.Option(help="Also draw the PSF on a log scale, as PNG.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sensor noise.")] = 0,
) -> None:
    """Photograph clean images through an under-display camera."""
    from udc_ray.data.psf_view import psf_figure
    from udc_ray.data.simulate import get_display
    from udc_ray.data.simulate_files import simulate_folder

    chosen = get_display(display)
    written = simulate_folder(chosen, source, out, saturated=light_source, seed=seed)
    typer.echo(f"{len(written)} images behind {chosen.title or chosen.name} in {out}")
    if psf is not None:
        psf_figure(chosen, psf)
        typer.echo(f"PSF (log scale) in {psf}")
