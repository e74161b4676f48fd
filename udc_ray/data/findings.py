"""What `udc_ray.data.check` finds out about a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["unpaired", "unreadable", "size", "kind", "type", "range"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding: a file that is alone, cannot be read, or does not fit its other half.

    Attributes:
        kind: of problem.
        where: image id, or path of the file.
        message: in a line.
    """

    kind: Kind
    where: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Side:
    """The degraded images, or the truths, as stored.

    Attributes:
        count: images read.
        sizes: how many have which size, ``height x width``.
        types: how many are stored in which type.
        low: smallest value.
        high: largest value.
        mean: mean over the images.
    """

    count: int
    sizes: Mapping[str, int]
    types: Mapping[str, int]
    low: float
    high: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Plain findings about a data set.

    Attributes:
        path: as given.
        layout: name of the layout that was recognised, with its `title` and `terms`.
        why: what it was recognised by.
        images: degraded images, or images of a single folder.
        truths: how many of them have one.
        checked: images that were read.
        parts: images by folder.
        channels: 3 or 4; 0 where no image could be read.
        domain: canonical domain; empty where no image could be read.
        degraded: what the degraded images hold; None where none could be read.
        truth: what the truths hold; None where there are none.
        problems: unpaired and mismatched files.
        notes: what else there is to know.
        sheet: contact sheet, PNG; empty where no image could be read.
    """

    path: str
    layout: str
    title: str
    terms: str
    why: str
    images: int
    truths: int
    checked: int
    parts: Mapping[str, int]
    channels: int
    domain: str
    degraded: Side | None
    truth: Side | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    sheet: bytes

    @property
    def unpaired(self) -> tuple[str, ...]:
        """Files of either side that are alone."""
        return tuple(p.where for p in self.problems if p.kind == "unpaired")

    @property
    def mismatched(self) -> tuple[Problem, ...]:
        """Every other problem."""
        return tuple(p for p in self.problems if p.kind != "unpaired")

    def document(self) -> dict[str, Any]:
        """All but the contact sheet, for JSON."""
        values = asdict(self)
        del values["sheet"]
        return values
