"""From the data entry of a spec to a data set that has been read once and found sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from udc_ray.data import shipped, simulate
from udc_ray.data.base import Dataset
from udc_ray.data.entries import PathParams, ShippedParams
from udc_ray.data.layouts import Recognised, recognise
from udc_ray.data.openers import AnyData, require_rgb
from udc_ray.data.source import Source, find_source
from udc_ray.errors import DataError
from udc_ray.location import fetch
from udc_ray.spec import Entry

__all__ = ["PathParams", "ShippedParams", "open_dataset", "open_source", "pick"]


def open_dataset(entry: Entry, limit: int | None = None, seed: int = 0, channels: int | None = None) -> Dataset:
    """Open the data of a run; every image that will be used is read once, so that damage shows now.

    Args:
        entry: ``shipped``, or the path or URI of a folder or file, with its parameters.
        limit: at most so many images, by `pick`.
        seed: the run's seed. It decides no data: simulated noise has the entry's own seed.
        channels: channels of the model, 3 or 4; what the data declare unless given.

    Raises:
        SpecError: a parameter that does not exist or cannot be.
        DataError: data that cannot be used.
    """
    del seed  # taken so that callers need not know that data do not depend on it
    dataset: AnyData = _open_shipped(entry, channels or 3) if entry.name == "shipped" else _open_path(entry, channels)
    chosen: AnyData = dataset.take(pick(dataset.image_ids, limit))
    fetch(chosen.places())
    _check(chosen)
    return chosen


def pick(image_ids: Iterable[str], limit: int | None) -> tuple[str, ...]:
    """Choose at most `limit` ids by the order of their hashes, sorted; a smaller limit is a subset of a larger."""
    ranked = sorted(image_ids, key=lambda i: hashlib.sha256(f"limit/{i}".encode()).digest())
    return tuple(sorted(ranked[:limit]))


def _check(dataset: AnyData) -> None:
    """Read every image; all that are unsound are named in one message."""
    problems = []
    for image_id in dataset.image_ids:
        try:
            dataset.check(image_id)
        except DataError as error:
            problems.append(error)
    if problems:
        raise _together(problems, len(dataset.image_ids))


def _together(problems: Sequence[DataError], total: int) -> DataError:
    if len(problems) == 1:
        return problems[0]
    whats = list(dict.fromkeys(p.what for p in problems))
    more = "; ..." if len(whats) > 3 else ""
    return DataError(
        f"{len(problems)} of {total} images cannot be used: {'; '.join(whats[:3])}{more}",
        problems[0].cause,
        "mend or remove these files; udc-ray check-data lists them all",
    )


def _open_shipped(entry: Entry, channels: int) -> AnyData:
    params: ShippedParams = ShippedParams.build("data", entry.params)
    require_rgb(channels, "the shipped images are RGB")
    display = simulate.get_display(params.display)
    return shipped.open_shipped(display, which=params.which, size=params.size, seed=params.seed)


def _open_path(entry: Entry, channels: int | None) -> AnyData:
    params: PathParams = PathParams.build("data", entry.params)
    source = Source(where=find_source(entry.name), params=params)
    return open_source(source, recognise(source), channels)


def open_source(source: Source, found: Recognised, channels: int | None = None) -> AnyData:
    """Open what was recognised; a display for degraded images, and a model of other channels, are refused."""
    params, where = source.params, source.where
    paired = found.layout.degraded
    if params.psf is not None and (params.display is not None or not params.reference):
        raise DataError(f"psf {params.psf} degrades clean linear images", "a display, or --no-reference, was given too")
    if params.display is not None and (paired or not params.reference):
        raise DataError(
            f"{where} is {'a folder of pairs' if paired else 'taken without reference'}: its images are degraded",
            "a display degrades clean images",
            "leave the display out",
        )
    declared = 3 if source.first is None else source.first.channels
    if channels is not None and source.first is not None and channels != declared:
        raise DataError(
            f"{where} holds images of {declared} channels, the model takes {channels} channels",
            "raw planes (UDC-SIT, H x W x 4) and RGB are mixed up",
            "declare the same channels in model and data",
        )
    return found.layout.open(source, channels or declared)
