"""What a data set is, as it lies on disk: for ``udc-ray check-data PATH``. What can be told is told, not refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch

from udc_ray.data import sheet
from udc_ray.data.canonical import DOMAINS
from udc_ray.data.domains import LINEAR_MAX
from udc_ray.data.entries import PathParams
from udc_ray.data.findings import DataReport, Kind, Problem, Side
from udc_ray.data.inventory import Inventory, Read, View, take_inventory
from udc_ray.data.layouts import recognise
from udc_ray.data.open import pick
from udc_ray.data.source import Source, find_source
from udc_ray.errors import DataError

ROWS = 6
"""Images on the contact sheet."""
FAR_APART = 30.0
"""Ratio of the mean values of a pair beyond which they hardly have the same scale."""


class _Tally:
    """Gathers what a side holds, image by image."""

    def __init__(self) -> None:
        self.sizes: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.low, self.high, self.total = float("inf"), float("-inf"), 0.0

    def add(self, view: View) -> None:
        low, high = (float(v) * view.white for v in torch.aminmax(view.picture.image))
        self.sizes[_size(view)] += 1
        self.types[view.type] += 1
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.total += _mean(view) * view.white

    def side(self) -> Side | None:
        count = sum(self.sizes.values())
        if not count:
            return None
        sizes, types = dict(self.sizes.most_common()), dict(self.types.most_common())
        mean = self.total / count
        return Side(count=count, sizes=sizes, types=types, low=self.low, high=self.high, mean=mean)


def _size(view: View) -> str:
    return f"{view.picture.image.shape[1]} x {view.picture.image.shape[2]}"


def _mean(view: View) -> float:
    return float(view.picture.image.mean(dtype=torch.float64))


def check_data(path: str, *, limit: int | None = None, params: Mapping[str, Any] | None = None) -> DataReport:
    """Look at a data set without evaluating anything.

    Args:
        path: folder, file or URI, as ``--data`` takes it.
        limit: read at most so many images, the same that a run with this limit uses; all unless given.
        params: further keys of the data entry, such as ``part``.

    Returns:
        What was recognised and why, counts, sizes, ranges, unpaired and mismatched files, a contact sheet.

    Raises:
        DataError: there is nothing at the path, or no image in it.
        SpecError: a parameter that does not exist or cannot be.
    """
    entry: PathParams = PathParams.build("data", dict(params or {}))
    source = Source(where=find_source(path), params=entry)
    found = recognise(source)
    inventory = take_inventory(source, found.layout)
    seen = _look(inventory, pick(inventory.degraded, limit))
    alone = [Problem(kind="unpaired", where=w, message="it has no other half") for w in inventory.unpaired]
    return DataReport(
        path=path,
        layout=found.layout.name,
        title=found.layout.title,
        terms=found.layout.terms,
        why=found.why,
        images=len(inventory.degraded),
        truths=len(inventory.truths),
        checked=seen.checked,
        parts=_parts(inventory.degraded),
        channels=seen.channels,
        domain=seen.domain,
        degraded=seen.degraded.side(),
        truth=seen.truth.side(),
        problems=(*alone, *seen.problems),
        notes=(*inventory.notes, *seen.notes()),
        sheet=sheet.contact_sheet(seen.rows) if seen.rows else b"",
    )


def _parts(image_ids: Iterable[str]) -> dict[str, int]:
    folders = Counter(PurePosixPath(i).parent.as_posix() for i in image_ids)
    return {name: folders[name] for name in sorted(folders)}


class _Seen:
    """What reading the images has shown."""

    def __init__(self) -> None:
        self.degraded, self.truth = _Tally(), _Tally()
        self.problems: list[Problem] = []
        self.rows: list[sheet.Row] = []
        self.kinds: Counter[str] = Counter()
        self.checked, self.channels, self.domain = 0, 0, ""

    def notes(self) -> list[str]:
        found = []
        brightest = max(self.degraded.high, self.truth.high)
        if self.kinds["linear"] and brightest <= 1:
            found.append(f"linear values reach only {brightest:.3g}: without light beyond white no halo appears")
        if len(self.kinds) > 1:
            found.append("kinds of numbers: " + ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common()))
        return found


def _look(inventory: Inventory, image_ids: tuple[str, ...]) -> _Seen:
    seen, shown = _Seen(), set(pick(image_ids, ROWS))
    for image_id in image_ids:
        seen.checked += 1
        degraded = _read(seen, image_id, inventory.degraded[image_id])
        truth = _read(seen, image_id, inventory.truths.get(image_id))
        for view, tally in ((degraded, seen.degraded), (truth, seen.truth)):
            if view is not None:
                tally.add(view)
                _judge(seen, image_id, view)
        if degraded is not None and truth is not None:
            seen.problems += _compare(image_id, degraded, truth)
        if degraded is not None and image_id in shown:
            small = None if truth is None else sheet.thumbnail(truth.picture)
            seen.rows.append(sheet.Row(image_id, sheet.thumbnail(degraded.picture), small))
    return seen


def _read(seen: _Seen, image_id: str, read: Read | None) -> View | None:
    try:
        return None if read is None else read()
    except DataError as error:
        seen.problems.append(Problem(kind="unreadable", where=image_id, message=error.what))
        return None


def _judge(seen: _Seen, image_id: str, view: View) -> None:
    """Look at one image alone."""
    image, kind = view.picture
    seen.kinds[kind] += 1
    seen.channels = seen.channels or image.shape[0]
    seen.domain = seen.domain or DOMAINS[kind]
    if DOMAINS[kind] != seen.domain:
        message = f"{kind} values, where the first image is of the domain {seen.domain}"
        seen.problems.append(Problem(kind="kind", where=image_id, message=message))
    highest = float(image.max())
    if kind == "linear" and highest > LINEAR_MAX:
        message = f"linear values reach {highest:.4g}; beyond {LINEAR_MAX:g} they are clipped"
        seen.problems.append(Problem(kind="range", where=image_id, message=message))


def _compare(image_id: str, degraded: View, truth: View) -> list[Problem]:
    """Look at both halves of a pair."""
    found: list[tuple[Kind, str]] = []
    if _size(degraded) != _size(truth):
        found.append(("size", f"{_size(degraded)} degraded, {_size(truth)} truth"))
    if degraded.type != truth.type and degraded.type != "computed":
        found.append(("type", f"{degraded.type} degraded, {truth.type} truth"))
    low, high = sorted((_mean(degraded), _mean(truth)))
    if degraded.picture.kind == truth.picture.kind and high > FAR_APART * low:
        means = f"{_mean(degraded) * degraded.white:.4g} degraded, {_mean(truth) * truth.white:.4g} truth"
        found.append(("range", f"the mean values are far apart: {means}"))
    return [Problem(kind=kind, where=image_id, message=message) for kind, message in found]
