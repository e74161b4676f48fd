"""From the data entry of a spec to a data set that has been read once and found sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from udc_ray.data import folder, pairs, shipped, simulate
from udc_ray.data.base import Dataset
from udc_ray.errors import DataError
from udc_ray.location import Folder, Place, fetch, is_uri, look
from udc_ray.params import Params
from udc_ray.spec import Entry

AnyData = folder.SimulatedFolder | folder.DegradedFolder | pairs.FolderPairs


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


def open_dataset(entry: Entry, limit: int | None = None, seed: int = 0, channels: int = 3) -> Dataset:
    """Open the data of a run; every image that will be used is read once, so that damage shows now.

    Args:
        entry: ``shipped``, or the path or URI of a folder or file, with its parameters.
        limit: at most so many images, by `pick`.
        seed: the run's seed. It decides no data: simulated noise has the entry's own seed.
        channels: channels of the model, 3 or 4.

    Raises:
        SpecError: a parameter that does not exist or cannot be.
        DataError: data that cannot be used.
    """
    del seed  # taken so that callers need not know that data do not depend on it
    dataset: AnyData = _open_shipped(entry, channels) if entry.name == "shipped" else _open_path(entry, channels)
    chosen: AnyData = dataset.take(pick(dataset.image_ids, limit))
    fetch(chosen.places())
    for image_id in chosen.image_ids:
        chosen.check(image_id)
    return chosen


def pick(image_ids: Iterable[str], limit: int | None) -> tuple[str, ...]:
    """Choose at most `limit` ids by the order of their hashes, sorted; a smaller limit is a subset of a larger."""
    ranked = sorted(image_ids, key=lambda i: hashlib.sha256(f"limit/{i}".encode()).digest())
    return tuple(sorted(ranked[:limit]))


def _open_shipped(entry: Entry, channels: int) -> folder.SimulatedFolder:
    params: ShippedParams = ShippedParams.build("data", entry.params)
    _require_rgb(channels, "the shipped images are RGB")
    display = simulate.get_display(params.display)
    return shipped.open_shipped(display, which=params.which, size=params.size, seed=params.seed)


def _open_path(entry: Entry, channels: int) -> AnyData:
    params: PathParams = PathParams.build("data", entry.params)
    source = _source(entry.name)
    found = pairs.find_pair(source)
    if params.display is not None and (found is not None or not params.reference):
        raise DataError(
            f"{entry.name} is {'a folder of pairs' if found else 'taken without reference'}: its images are degraded",
            "a display degrades clean images",
            "leave the display out",
        )
    if not params.reference:
        return folder.open_degraded(found[0] if found else source, channels, params.size)
    if found is not None:
        return pairs.open_pairs(source, channels, params.size)
    if params.display is None:
        raise DataError(
            f"{entry.name} is no pair (LQ and HQ, or input and GT), so what its images are is not known",
            "clean images need a display that degrades them; degraded images have no truth to compare with",
            "add --display toled|poled|zte|PSF.npy for clean images, or --no-reference for degraded ones",
        )
    _require_rgb(channels, "the simulator makes RGB images")
    return folder.open_simulated(source, simulate.get_display(params.display), seed=params.seed, size=params.size)


def _source(name: str) -> Folder | Place:
    found = look(name) if is_uri(name) else Path(name).expanduser().absolute()  # workers have another working directory
    if isinstance(found, Path) and not found.exists():
        raise DataError(f"there is no data {name!r}", "a wrong path", "give 'shipped', or a folder, an image or a URI")
    return found


def _require_rgb(channels: int, why: str) -> None:
    if channels != 3:
        raise DataError(f"the model takes {channels} channels, {why}", change="give raw data (.npy, H x W x 4)")
