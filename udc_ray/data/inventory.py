"""The images of a recognised source with a way to read each, before anything is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from udc_ray.data import openers, parts, stacks, synth, tree
from udc_ray.data.arrays import RAW_WHITE
from udc_ray.data.folder import index_source
from udc_ray.data.images import Picture, read_image
from udc_ray.data.layouts import Layout
from udc_ray.data.pairs import shown
from udc_ray.data.source import Source
from udc_ray.data.stored import read_stored
from udc_ray.errors import DataError
from udc_ray.location import Folder, Place


class View(NamedTuple):
    """An image that was read.

    Attributes:
        picture: C x H x W and how its numbers are meant.
        type: in which it is stored (``uint16``).
        white: stored value of 1.0.
    """

    picture: Picture
    type: str
    white: float


class Read(Protocol):
    """Reads one image."""

    def __call__(self) -> View: ...


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What there is to check.

    Attributes:
        degraded: by image id.
        truths: by image id; some may be missing.
        unpaired: paths of files of either side that are alone.
        notes: what else there is to know.
    """

    degraded: Mapping[str, Read]
    truths: Mapping[str, Read]
    unpaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def take_inventory(source: Source, layout: Layout) -> Inventory:
    """List the images of a source.

    Raises:
        DataError: there is nothing to list.
    """
    if layout.open is openers.open_labels:
        return _of_labels(source)
    if layout.open is openers.open_stacks:
        return _of_stacks(source)
    if layout.open is openers.open_synth and not openers.stored_psfs(source):
        return _of_synth(source)
    channels, only = 3 if source.first is None else source.first.channels, source.params.part
    if layout.open is openers.open_folder:
        files = {i: file for i, file in index_source(source.where).items() if parts.lies_in(i, only)}
        return Inventory(degraded=_readers(files, channels), truths={})
    by_name = layout.open is openers.open_patches
    matched = openers.patches(source, only) if by_name else parts.match(source.parts, only)
    return Inventory(
        degraded=_readers(matched.degraded, channels),
        truths=_readers(matched.truths, channels),
        unpaired=(*matched.lonely, *matched.extra),
        notes=(*_part_notes(source), *_synth_notes(source, layout)),
    )


def _readers(files: Mapping[str, Place], channels: int) -> dict[str, Read]:
    return {i: partial(_read_file, file, channels) for i, file in files.items()}


def _read_file(file: Place, channels: int) -> View:
    picture = read_image(file, channels)
    stored = read_stored(file)
    kind = "unknown" if stored is None else stored.type
    whites = {"linear": 1.0, "raw": RAW_WHITE, "srgb": 65535.0 if kind == "uint16" else 255.0}
    return View(picture, kind, whites[picture.kind])


def _of_labels(source: Source) -> Inventory:
    found = openers.open_labels(source, 3)
    labels = Counter(int(truth) for i in found.image_ids if (truth := found.load(i).truth) is not None)
    counts = ", ".join(f"{label}: {labels[label]}" for label in sorted(labels))
    return Inventory(
        degraded={i: partial(_read_labelled, found, i) for i in found.image_ids},
        truths={},
        notes=(f"images of {len(labels)} classes ({counts})",),
    )


def _read_labelled(found: openers.AnyData, image_id: str) -> View:
    return View(Picture(found.load(image_id).degraded, "srgb"), "uint8", 255.0)


def _of_stacks(source: Source) -> Inventory:
    alone: tuple[str, ...] = ()
    try:
        found = stacks.open_stacks(source.where)
    except DataError as error:
        found, alone = stacks.open_stacks(source.where, reference=False), (error.what,)
    ids = [i for i in found.image_ids if parts.lies_in(i, source.params.part)]
    return Inventory(
        degraded={i: partial(_read_slice, found.degraded[i]) for i in ids},
        truths={i: partial(_read_slice, found.truths[i]) for i in ids if i in found.truths},
        unpaired=alone,
    )


def _read_slice(image: stacks.Slice) -> View:
    return View(Picture(image.read(), "srgb"), "uint8", 255.0)


def _of_synth(source: Source) -> Inventory:
    params = source.params
    found = synth.open_synth(source.where, params.psf, part=params.part)
    truths = _readers({i: found.files[i] for i in found.image_ids}, 3)
    return Inventory(
        degraded={i: partial(_read_synth, found, i) for i in found.image_ids},
        truths=truths,
        notes=(f"degraded images are computed by PSF {', '.join(_psfs(found))}", *_found_beside(source)),
    )


def _psfs(found: synth.SynthFolder) -> list[str]:
    return sorted({psf.stem for psf in found.psfs.values()})


def _read_synth(found: synth.SynthFolder, image_id: str) -> View:
    linear = found.degrade(image_id)
    return View(Picture(linear, "linear"), "computed", 1.0)


def _found_beside(source: Source) -> list[str]:
    psfs, codes = synth.find_psfs(source.where), synth.find_codes(source.where)
    return [f"{len(psfs)} PSFs and {len(codes)} PSF codes belong to it"]


def _synth_notes(source: Source, layout: Layout) -> list[str]:
    return _found_beside(source) if layout.open is openers.open_synth else []


def _part_notes(source: Source) -> list[str]:
    without = [p.put(p.degraded.name) for p in source.parts if p.truth is None]
    corrected = [p.prefix or "." for p in source.parts if tree.descend(_above(source, p), "LQ_pre") is not None]
    notes = [f"{shown(tuple(without), 6)}: no truths, left out"] if without else []
    if corrected:
        notes.append(
            f"LQ_pre in {shown(tuple(corrected), 6)} is not used; BNUDC's P-OLED weights need it: "
            "give the folder that holds it with data.degraded=LQ_pre and data.truth=HQ"
        )
    return notes


def _above(source: Source, part: parts.Part) -> Folder | Place:
    found = tree.descend(source.where, *part.prefix.split("/")) if part.prefix else None
    return source.where if found is None else found
