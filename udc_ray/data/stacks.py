"""UDC-2020 as the challenge gave it out: one .mat file of degraded images, one of truths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from udc_ray.data import matlab, tree
from udc_ray.data.base import Sample
from udc_ray.data.canonical import centre_crop
from udc_ray.data.domains import Domain
from udc_ray.data.folder import modified, name_of
from udc_ray.errors import DataError
from udc_ray.hashing import file_sha256
from udc_ray.location import Folder, Place, RemoteFolder

_TRUTH = re.compile(r"(^|_)gt($|_)", re.IGNORECASE)
_ROLE = re.compile(r"_?(display|gt)(?=$|_)", re.IGNORECASE)


class Slice(NamedTuple):
    """One image of a stack."""

    place: Place
    variable: str
    number: int

    def read(self) -> Tensor:
        """3 x H x W in [0, 1], as stored."""
        # Neighbours in the file are the same pixel of all images: copied in that order, which is 20 times as fast.
        pixels = matlab.read_stack(self.place, modified(self.place), self.variable)[self.number].copy(order="K")
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


@dataclass(frozen=True, kw_only=True)
class StackPairs:
    """Images of stacks; ids are ``FILE/0001``, counted from 1.

    Attributes:
        degraded: degraded image of every id.
        truths: truth of every id, or empty.
        size: edge of the centre crop, or None.
    """

    name: str
    image_ids: tuple[str, ...]
    degraded: Mapping[str, Slice]
    truths: Mapping[str, Slice]
    size: int | None = None
    channels: int = 3
    domain: Domain = "srgb"

    @property
    def has_truth(self) -> bool:
        """False with ``--no-reference``."""
        return bool(self.truths)

    def load(self, image_id: str) -> Sample:
        """Cut one image out of its stack."""
        truth = self.truths[image_id] if self.truths else None
        return Sample(
            image_id=image_id,
            degraded=centre_crop(self.degraded[image_id].read(), self.size, image_id),
            truth=None if truth is None else centre_crop(truth.read(), self.size, image_id),
        )

    def places(self) -> list[Place]:
        """The files of its stacks."""
        return [table[i].place for i in self.image_ids for table in self._tables()]

    def _tables(self) -> tuple[Mapping[str, Slice], ...]:
        return (self.degraded, self.truths) if self.truths else (self.degraded,)

    def check(self, image_id: str) -> None:
        """Read one image and drop it."""
        self.load(image_id)

    def take(self, image_ids: tuple[str, ...]) -> StackPairs:
        """The same data set with fewer images."""
        return replace(self, image_ids=image_ids)

    def file_hashes(self) -> dict[str, str]:
        """sha256 of the files, by the id without its number (``:truth`` for those of truths)."""
        hashes: dict[str, str] = {}
        for ending, table in zip(("", ":truth"), self._tables(), strict=False):
            for image_id in self.image_ids:
                key = image_id.rpartition("/")[0] + ending
                hashes[key] = hashes.get(key) or file_sha256(table[image_id].place)
        return hashes


class _Found(NamedTuple):
    """A stack in a file.

    Attributes:
        path: of the file, without suffix, relative to the data set.
        role: what the two halves of a pair have in common.
    """

    path: str
    place: Place
    stack: matlab.Variable
    role: str

    @property
    def is_truth(self) -> bool:
        return _TRUTH.search(self.stack.name) is not None or _TRUTH.search(self.place.stem) is not None


def mat_files(source: Folder | Place) -> dict[str, Place]:
    """The .mat files of a folder and of those directly in it, by relative path without suffix; or the file itself."""
    if not isinstance(source, RemoteFolder) and not tree.is_folder(source):
        return {source.stem: source} if _is_mat(source.name) else {}
    found: dict[str, Place] = {}
    for prefix, folder in tree.walk(source, depth=1):
        files = {name: place for name, place in tree.files_in(folder).items() if _is_mat(name)}
        found |= {f"{prefix}/{place.stem}" if prefix else place.stem: place for place in files.values()}
    return found


def _is_mat(name: str) -> bool:
    return name.lower().endswith(matlab.SUFFIX)


def _find(files: Mapping[str, Place]) -> list[_Found]:
    found = []
    for path, place in files.items():
        stacks = matlab.list_stacks(place)
        for stack in stacks:
            role = f"{_ROLE.sub('', path)}|{_ROLE.sub('', stack.name)}"
            found.append(_Found(path if len(stacks) == 1 else f"{path}/{stack.name}", place, stack, role))
    return found


def open_stacks(source: Folder | Place, *, reference: bool = True, size: int | None = None) -> StackPairs:
    """Open the stacks of a folder or a file.

    A truth has ``gt`` in the name of its variable or file (``val_gt``); any other stack is degraded
    (``val_display``). They belong together by the rest of their names, or where there is one of each.

    Raises:
        DataError: a file that cannot be used, no truth, or stacks that differ in size.
    """
    found = _find(mat_files(source))
    inputs, targets = [f for f in found if not f.is_truth], [f for f in found if f.is_truth]
    if not inputs:
        raise DataError(f"{source} holds truths only", change="add the stack of degraded images (val_display)")
    truths = {f.path: truth for f in inputs if (truth := _truth_for(f, inputs, targets)) is not None}
    if reference:
        _check_pairs(inputs, truths)
    table = {f"{f.path}/{n + 1:04}": (f, n) for f in inputs for n in range(f.stack.shape[0])}
    return StackPairs(
        name=name_of(source),
        image_ids=tuple(sorted(table)),
        degraded={i: _slice(f, n) for i, (f, n) in table.items()},
        truths={i: _slice(truths[f.path], n) for i, (f, n) in table.items()} if reference else {},
        size=size,
    )


def _slice(found: _Found, n: int) -> Slice:
    return Slice(found.place, found.stack.name, n)


def _truth_for(found: _Found, inputs: list[_Found], targets: list[_Found]) -> _Found | None:
    if len(inputs) == len(targets) == 1:
        return targets[0]
    return next((t for t in targets if t.role == found.role), None)


def _check_pairs(inputs: Iterable[_Found], truths: Mapping[str, _Found]) -> None:
    lonely = [f"{f.place.name} ({f.stack.name})" for f in inputs if f.path not in truths]
    if lonely:
        raise DataError(
            f"{len(lonely)} stacks of degraded images have no truth: {', '.join(lonely[:3])}",
            "a truth has the same name with gt in place of display: val_display and val_gt",
            "give the folder that holds both, or use --no-reference",
        )
    for f in inputs:
        shapes = (f.stack.shape, truths[f.path].stack.shape)
        if shapes[0] != shapes[1]:
            sizes = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
            raise DataError(f"the sizes of {f.path} and its truth differ: {sizes}", change="mend one of the two files")
