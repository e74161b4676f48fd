"""SYNTH (Feng et al., CVPR 2021): degraded images computed when they are read, by the published formula.

    y = clip(|IFFT(FFT(pad(x)) . FFT(psf))|, 0, 500)

per colour, x linear HDR of 0 to 500 padded by 200 black pixels on each side, the PSF padded with zeros
(or cut) about its centre to the same size, y cut back to the size of x. No noise, no quantisation. What
is stored by the data set's own script (nine times the disk of the truths) equals what is computed here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from udc_ray.data import domains, tree
from udc_ray.data.base import Sample
from udc_ray.data.canonical import centre_crop
from udc_ray.data.folder import index_source, modified, name_of
from udc_ray.data.images import read_image
from udc_ray.data.parts import lies_in
from udc_ray.data.psf_files import read_psf
from udc_ray.errors import DataError
from udc_ray.hashing import file_sha256
from udc_ray.location import Folder, Place, is_uri, place

PAD = 200
"""Black pixels on each side of the image."""
CENTRE = 5
"""Number of the one PSF that was measured; the other eight are copies of it, turned."""
SUMS = (0.01, 2.0)
"""Sums of a colour of a PSF between which the image neither vanishes nor saturates."""
_PSF = re.compile(r"_psf_(\d+)\.npy$")
_CODE = re.compile(r"_code_(\d+)\.npy$")


def published_degradation(linear: Tensor, psf: Tensor) -> Tensor:
    """Degrade a linear image by a PSF as the SYNTH data set was.

    Args:
        linear: 3 x H x W, linear light, 0 to 500, any float type; computed in float64.
        psf: 3 x K x L, taken as it is, its centre at [K // 2, L // 2].

    Returns:
        3 x H x W float64, 0 to 500.
    """
    height, width = linear.shape[1] + 2 * PAD, linear.shape[2] + 2 * PAD
    return _filtered(linear, _spectrum(psf, height, width))


def _filtered(linear: Tensor, spectrum: Tensor) -> Tensor:
    size = [linear.shape[1] + 2 * PAD, linear.shape[2] + 2 * PAD]
    padded = torch.nn.functional.pad(linear.double(), (PAD, PAD, PAD, PAD))
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * spectrum, s=size).abs()
    cut: Tensor = blurred[:, PAD:-PAD, PAD:-PAD].clamp(0, domains.LINEAR_MAX).contiguous()
    return cut


def _spectrum(psf: Tensor, height: int, width: int) -> Tensor:
    """Transform of a PSF that is padded or cut to height x width, with its centre at the origin."""
    framed = frame(frame(psf.double(), 1, height), 2, width)
    spectrum: Tensor = torch.fft.rfft2(torch.fft.ifftshift(framed, dim=(1, 2)))
    return spectrum


def frame(psf: Tensor, axis: int, length: int) -> Tensor:
    """Pad with zeros, or cut, one axis of 3 x K x L so that the centre moves from ``K // 2`` to ``length // 2``."""
    there, before = psf.shape[axis], length // 2 - psf.shape[axis] // 2
    framed = psf.new_zeros([length if n == axis else size for n, size in enumerate(psf.shape)])
    start, count = max(0, -before), min(there, length)
    framed.narrow(axis, max(0, before), count).copy_(psf.narrow(axis, start, count))
    return framed


@dataclass(frozen=True, kw_only=True)
class SynthFolder:
    """Linear HDR images, degraded by one or more PSFs as the SYNTH data set was.

    Attributes:
        files: truth of every id.
        psfs: PSF of every id.
        size: edge of the centre crop, or None; it is cut after the whole image was degraded.
    """

    name: str
    image_ids: tuple[str, ...]
    files: Mapping[str, Place]
    psfs: Mapping[str, Place]
    size: int | None = None
    channels: int = 3
    domain: domains.Domain = "tonemapped"
    has_truth: bool = True

    def load(self, image_id: str) -> Sample:
        """Degrade one image and tone-map both."""
        path = self.files[image_id]
        linear, degraded = _read_linear(path), self.degrade(image_id)
        return Sample(
            image_id=image_id,
            degraded=centre_crop(domains.tonemap(degraded), self.size, str(path)),
            truth=centre_crop(domains.tonemap(linear), self.size, str(path)),
        )

    def degrade(self, image_id: str) -> Tensor:
        """One whole degraded image in linear light, 3 x H x W float32, as the data set would store it."""
        path, psf = self.files[image_id], self.psfs[image_id]
        return _degraded(path, modified(path), psf, modified(psf))

    def places(self) -> list[Place]:
        """The truths and PSFs of its images."""
        return [table[i] for i in self.image_ids for table in (self.files, self.psfs)]

    def check(self, image_id: str) -> None:
        """Read one truth and its PSF, without degrading."""
        read_synth_psf(self.psfs[image_id], modified(self.psfs[image_id]))
        centre_crop(_read_linear(self.files[image_id]), self.size, str(self.files[image_id]))

    def take(self, image_ids: tuple[str, ...]) -> SynthFolder:
        """The same data set with fewer images."""
        return replace(self, image_ids=image_ids)

    def file_hashes(self) -> dict[str, str]:
        """sha256 of every truth, by id, and of every PSF that is used."""
        psfs = {f"psf:{psf.stem}": psf for psf in (self.psfs[i] for i in self.image_ids)}
        once = {path: file_sha256(path) for path in {self.files[i] for i in self.image_ids} | set(psfs.values())}
        return {i: once[self.files[i]] for i in self.image_ids} | {key: once[psf] for key, psf in psfs.items()}


def _read_linear(path: Place) -> Tensor:
    image, kind = read_image(path)
    if kind != "linear":
        raise DataError(
            f"{path} holds 8-bit values; the SYNTH formula degrades linear light",
            "an 8-bit image clips every lamp to white, so that no halo appears",
            "give linear HDR data: float .npy, H x W x 3, 0 to 500",
        )
    return image


@lru_cache(maxsize=8)
def _degraded(path: Place, changed: int, psf: Place, psf_changed: int) -> Tensor:
    """One whole degraded image as float32, the type that the data set stores; the times only key the cache."""
    linear = _read_linear(path)
    size = (linear.shape[1] + 2 * PAD, linear.shape[2] + 2 * PAD)
    return _filtered(linear, _psf_spectrum(psf, psf_changed, size)).float()


@lru_cache(maxsize=4)
def _psf_spectrum(psf: Place, changed: int, size: tuple[int, int]) -> Tensor:
    return _spectrum(read_synth_psf(psf, changed), *size)


@lru_cache(maxsize=16)
def read_synth_psf(path: Place, changed: int = 0) -> Tensor:
    """A PSF as it is stored, 3 x K x L float64; one that would blacken or saturate every image is refused."""
    psf = read_psf(path)
    low, high = (float(f(psf.sum((1, 2)))) for f in (torch.min, torch.max))
    if not SUMS[0] <= low <= high <= SUMS[1]:
        raise DataError(
            f"the colours of the PSF {path} sum to {low:.3g} to {high:.3g}, not to about 1",
            "a PSF that was not normalised; the SYNTH formula takes it as it is",
            "divide each colour by its sum and save it again",
        )
    return psf


def find_psfs(source: Folder | Place) -> dict[int, Place]:
    """PSFs of the data set by number: ``PSF/ZTE_new/ZTE_new_psf_5.npy``, in the folder or up to 3 levels above."""
    return _numbered(source, _PSF, "ZTE_new")


def find_codes(source: Folder | Place) -> dict[int, Place]:
    """PSF codes of the data set by number: ``PSF/kernel_code/ZTE_new_code_5.npy``, likewise."""
    return _numbered(source, _CODE, "kernel_code")


def _numbered(source: Folder | Place, pattern: re.Pattern[str], name: str) -> dict[int, Place]:
    inside = [tree.descend(source, "PSF", name), tree.descend(source, "PSF"), tree.descend(source, name)]
    above = [base / "PSF" / name for base in source.parents[:3]] if isinstance(source, Path) else []
    for folder in (*inside, *(path for path in above if os.path.isdir(path))):
        files = {} if folder is None else tree.files_in(folder)
        found = {int(m[1]): file for file_name, file in files.items() if (m := pattern.search(file_name)) is not None}
        if found:
            return dict(sorted(found.items()))
    return {}


def truths_of(source: Folder | Place) -> Folder | None:
    """The folder of the truths: ``GT`` or ``synthetic_data/GT``."""
    return tree.descend(source, "GT") or tree.descend(source, "synthetic_data", "GT")


def open_synth(
    source: Folder | Place, psf: int | str | None, *, part: str | None = None, size: int | None = None
) -> SynthFolder:
    """Open linear HDR images that are degraded as they are read.

    Args:
        source: the SYNTH data set, its ``synthetic_data``, or any folder or file of linear .npy images.
        psf: number of a PSF of the data set, ``all`` of them, or a .npy file; the centre unless given.
        part: only images below this folder (``test``).
        size: edge of the centre crop, or None.
    """
    files = {i: path for i, path in index_source(truths_of(source) or source).items() if lies_in(i, part)}
    chosen = _choose(source, psf)
    table = {f"{prefix}{i}": (path, kernel) for prefix, kernel in chosen.items() for i, path in files.items()}
    return SynthFolder(
        name=name_of(source),
        image_ids=tuple(sorted(table)),
        files={i: path for i, (path, _) in table.items()},
        psfs={i: kernel for i, (_, kernel) in table.items()},
        size=size,
    )


def _choose(source: Folder | Place, psf: int | str | None) -> dict[str, Place]:
    """PSFs by what they put before an image id: ``ZTE_new_5/``, nothing for a file."""
    number = int(psf) if isinstance(psf, str) and psf.isdecimal() else psf
    if isinstance(number, str) and number != "all":
        return {"": place(number) if is_uri(number) else Path(number).expanduser().absolute()}
    found = find_psfs(source)
    if not found:
        raise DataError(
            f"no PSFs belong to {source}",
            "the folder PSF/ZTE_new with ZTE_new_psf_1.npy to ZTE_new_psf_9.npy is neither in it nor above it",
            "give the PSF: --set data.psf=PATH.npy",
        )
    wanted = list(found) if number == "all" else [CENTRE if number is None else int(number)]
    if not set(wanted) <= set(found):
        raise DataError(
            f"there is no PSF {wanted[0]} beside {source}",
            f"those found are {', '.join(map(str, found))}",
            "give one of these numbers, all, or a .npy file: --set data.psf=...",
        )
    return {f"ZTE_new_{n}/": found[n] for n in wanted}
