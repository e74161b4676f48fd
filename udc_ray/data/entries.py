"""The data entry of a spec: its parameters."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from udc_ray.params import Params

CAME_LATER = frozenset({"part", "psf", "degraded", "truth"})
"""Parameters that are left out of fingerprints where they are not given, as if they did not exist."""


class ShippedParams(Params):
    """``{name: shipped, display: toled, size: 128}``."""

    name: ClassVar[str] = "shipped"
    display: str = "toled"
    size: int | None = Field(default=None, ge=1)
    which: Literal["ldr", "hdr", "all"] = "ldr"
    seed: int = 0


class PathParams(Params):
    """``{name: PATH, display: toled}`` for clean images, ``reference: false`` for degraded ones, neither for pairs."""

    name: ClassVar[str] = "PATH"
    display: str | None = None
    """Display that the clean images are sent through."""
    size: int | None = Field(default=None, ge=1)
    """Edge of the centre crop."""
    reference: bool = True
    """False: the images are degraded and have no truth."""
    seed: int = 0
    """Seed of the simulated sensor noise, independent of the run's."""
    part: str | None = None
    """Only the images below a folder of this name: ``test``, ``Poled_val``, ``Test/Poled``."""
    psf: int | str | None = None
    """SYNTH: number of the PSF (5, the centre, is the measured one), ``all``, or a .npy file."""
    degraded: str | None = None
    """Folder of the degraded images where its name is not a known one; relative to PATH, absolute, or a URI."""
    truth: str | None = None
    """Folder of the truths, likewise."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {key: value for key, value in values.items() if key not in CAME_LATER or value is not None}
