"""Pairs of folders in a tree, and which degraded image belongs to which truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from udc_ray.data import tree
from udc_ray.data.images import index_images
from udc_ray.errors import DataError
from udc_ray.location import Folder, Place

PAIR_NAMES = (
    ("LQ", "HQ"),
    ("input", "GT"),
    ("LQ_syn", "HQ_syn"),
    ("LQ_syn_new", "HQ_syn_new"),
    ("LQ_patch", "HQ_patch"),
)
"""Names of the folders of degraded images and of truths; case does not matter."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A folder of degraded images and one of truths.

    Attributes:
        prefix: POSIX path of the folder that holds both, relative to the data set; it begins the image ids.
        degraded: folder of the degraded images.
        truth: folder of the truths, or None where there is none (a test set whose truths were withheld).
    """

    prefix: str
    degraded: Folder
    truth: Folder | None

    def put(self, path: str) -> str:
        """A path of this part relative to the data set."""
        return f"{self.prefix}/{path}" if self.prefix else path


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Degraded images and their truths.

    Attributes:
        degraded: file by id.
        truths: file by the id of the degraded image; ids without truth are missing.
        lonely: degraded images without truth, as paths to show.
        extra: truths without degraded image, as paths to show.
        searched: where the truths were looked for.
    """

    degraded: Mapping[str, Place]
    truths: Mapping[str, Place]
    lonely: tuple[str, ...]
    extra: tuple[str, ...]
    searched: str


def find_pair(folder: Folder | Place) -> tuple[Folder, Folder] | None:
    """The folders of degraded images and truths in `folder`, or None where it is no pair, or a file."""
    table = {name.lower(): inside for name, inside in tree.subfolders(folder).items()}
    names = [pair for pair in PAIR_NAMES if all(name.lower() in table for name in pair)]
    if len(names) > 1:
        raise DataError(
            f"{folder} holds both {' and '.join('/'.join(pair) for pair in names)}",
            "two data sets in one folder",
            "move one pair elsewhere, or name the folders: --set data.degraded=NAME --set data.truth=NAME",
        )
    return (table[names[0][0].lower()], table[names[0][1].lower()]) if names else None


def find_parts(folder: Folder | Place) -> tuple[Part, ...]:
    """Every pair of folders in a tree; where there is one, also the degraded folders whose truths are missing."""
    parts: list[Part] = []
    inside: list[str] = []  # pairs are not looked into
    for prefix, here in tree.walk(folder):
        if any(f"{prefix}/".startswith(f"{done}/") for done in inside):
            continue
        pair = find_pair(here)
        if pair is not None:
            parts.append(Part(prefix=prefix, degraded=pair[0], truth=pair[1]))
            inside.append(prefix)
            if not prefix:
                break
        else:
            alone = _alone(here)
            parts += [Part(prefix=prefix, degraded=alone, truth=None)] if alone is not None else []
    return tuple(parts) if any(part.truth is not None for part in parts) else ()


def _alone(folder: Folder) -> Folder | None:
    names = {name.lower(): inside for name, inside in tree.subfolders(folder).items()}
    return next((names[degraded.lower()] for degraded, _ in PAIR_NAMES if degraded.lower() in names), None)


def truth_of(image_id: str, truths: Mapping[str, Place]) -> Place | None:
    """Truth of a degraded image: the same path, else the path less its leading folders.

    The SYNTH data set stores ``input/ZTE_new_5/test/a.npy`` against ``GT/test/a.npy``.
    """
    parts = image_id.split("/")
    candidates = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((truths[c] for c in candidates if c in truths), None)


def lies_in(image_id: str, folder: str | None) -> bool:
    """Whether an id lies below a folder of this name (or chain of names), whatever the case; None is everywhere."""
    return folder is None or f"/{folder.strip('/')}/".lower() in f"/{image_id}".lower()


def match(parts: Sequence[Part], only: str | None = None) -> Matched:
    """Pair the files of the parts that have truths, by path without suffix.

    Args:
        parts: of one data set.
        only: leave out images that do not lie in this folder (`lies_in`).
    """
    degraded: dict[str, Place] = {}
    truths: dict[str, Place] = {}
    lonely: list[str] = []
    extra: list[str] = []
    for part in parts:
        if part.truth is None:
            continue
        inputs, targets = index_images(part.degraded), index_images(part.truth)
        inputs = {i: place for i, place in inputs.items() if lies_in(part.put(i), only)}
        found = {i: truth_of(i, targets) for i in inputs}
        used = set(found.values())
        degraded |= {part.put(i): place for i, place in inputs.items()}
        truths |= {part.put(i): truth for i, truth in found.items() if truth is not None}
        lonely += [part.put(f"{part.degraded.name}/{i}{inputs[i].suffix}") for i, t in found.items() if t is None]
        rest = {i: place for i, place in targets.items() if place not in used and lies_in(part.put(i), only)}
        extra += [part.put(f"{part.truth.name}/{i}{place.suffix}") for i, place in rest.items()]
    return Matched(
        degraded=dict(sorted(degraded.items())),
        truths=truths,
        lonely=tuple(lonely),
        extra=tuple(extra),
        searched=", ".join(str(part.truth) for part in parts if part.truth is not None),
    )


def match_words(files: Mapping[str, Place], word: str, other: str, only: str | None = None) -> Matched:
    """Pair files whose paths differ in one word: ``Poled/a_LQ_patch_1.png`` and ``Poled/a_HQ_patch_1.png``."""
    inputs = {i: place for i, place in files.items() if word in i and lies_in(i, only)}
    targets = {i: place for i, place in files.items() if other in i and word not in i}
    truths = {i: targets[i.replace(word, other)] for i in inputs if i.replace(word, other) in targets}
    used = set(truths.values())
    return Matched(
        degraded=inputs,
        truths=truths,
        lonely=tuple(f"{i}{inputs[i].suffix}" for i in inputs if i not in truths),
        extra=tuple(f"{i}{t.suffix}" for i, t in targets.items() if t not in used and lies_in(i, only)),
        searched=f"the files with {other} in their name",
    )
