"""PSF codes: the five numbers by which DISCNet (Feng et al., CVPR 2021) is told the PSF.

A code is the projection of a PSF onto the first five principal components of a set of PSFs,

    code = basis (psf - mean),

PSF, mean and the rows of the basis being vectors of K * L * 3 numbers. The published codes come from a
basis that was not published, so only the public code of the centre PSF is known to fit official weights.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from udc_ray.data import arrays, tree
from udc_ray.data.images import read_bytes
from udc_ray.data.psf_files import read_psf, read_values
from udc_ray.data.simulate_files import write_atomically
from udc_ray.data.synth import frame
from udc_ray.errors import DataError
from udc_ray.location import Folder, Place, RemoteFile

Array = NDArray[np.float64]

LENGTH = 5
"""Numbers in a code."""
CENTRE_CODE = (-2.0032346e-03, 3.5204366e-02, -2.0214582e-05, 5.9867720e-03, 9.4327690e-05)
"""Code of the centre PSF of SYNTH (number 5), as its owners gave it out."""
MAX_BYTES = 2**32
"""Memory that a set of PSFs may take."""
_ROUNDED = 5e-5
"""The public code is also given out rounded to four digits."""
_NOTHING = 1e-10
"""Share of the variance below which a component is rounding."""
NOT_COMPARABLE = (
    "these codes are in a basis of their own: sign, order and scale differ from those of the official weights, "
    "whose basis was not published; use them with a network trained on them, and the public centre code "
    "with official weights"
)


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Principal components of a set of PSFs.

    Attributes:
        mean: K x L x 3.
        components: 5 x K x L x 3, orthonormal rows; rows are zero where the set has no more components.
            The sign is fixed: the largest entry of a row is positive.
        explained: 5 shares of the variance of the set.
    """

    mean: Array
    components: Array
    explained: Array

    def encode(self, psf_3KL: Tensor) -> Array:
        """Code of a PSF, 5 numbers; the PSF is normalised and brought to the size of the basis."""
        vector = _prepared(psf_3KL, self.mean.shape[:2]) - self.mean
        return np.asarray(np.tensordot(self.components, vector, axes=3))

    def decode(self, code: Array) -> Array:
        """The PSF that a code stands for, K x L x 3."""
        return np.asarray(self.mean + np.tensordot(code, self.components, axes=1))


@dataclass(frozen=True, kw_only=True)
class CodeTable:
    """Codes of a set of PSFs.

    Attributes:
        names: stems of the files.
        codes: N x 5.
        residuals: share of each PSF's deviation from the mean that its code does not hold, 0 to 1.
        basis: in which the codes are.
        warnings: what to know before the codes are used.
    """

    names: tuple[str, ...]
    codes: Array
    residuals: Array
    basis: Basis
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Codes by name, shares of variance and warnings, for JSON."""
        rows = zip(self.names, self.codes, self.residuals, strict=True)
        return {
            "psfs": [{"name": name, "code": code.tolist(), "residual": float(rest)} for name, code, rest in rows],
            "explained": self.basis.explained.tolist(),
            "warnings": list(self.warnings),
        }


class Code(NamedTuple):
    """A code from a file, and what to know before it is used with official weights."""

    values: Array
    warnings: tuple[str, ...]


def _prepared(psf_3KL: Tensor, size: tuple[int, ...]) -> Array:
    """A PSF with colours that sum to 1, centred in K x L x 3."""
    framed = frame(frame(psf_3KL.double(), 1, size[0]), 2, size[1])
    return np.asarray((framed / framed.sum((1, 2), keepdim=True)).permute(1, 2, 0).numpy())


def compute_basis(psfs: Sequence[Tensor]) -> Basis:
    """Principal components of a set of PSFs, by singular value decomposition in float64.

    Args:
        psfs: 3 x K x L each; smaller ones are padded with zeros about their centre.

    Raises:
        DataError: fewer than two PSFs, PSFs that are all the same, or a set that is too large.
    """
    if len(psfs) < 2:
        raise DataError(
            "principal components need at least two PSFs, one was given",
            "a code says how a PSF differs from the others of a set",
            "give several PSFs, or a basis that was computed from a set",
        )
    size = tuple(max(psf.shape[axis] for psf in psfs) for axis in (1, 2))
    if len(psfs) * size[0] * size[1] * 3 * 8 > MAX_BYTES:
        raise DataError(f"{len(psfs)} PSFs of {size[0]} x {size[1]} do not fit into memory", change="give fewer")
    vectors = np.stack([_prepared(psf, size) for psf in psfs])
    mean = vectors.mean(0)
    _, scales, rows = np.linalg.svd((vectors - mean).reshape(len(psfs), -1), full_matrices=False)
    variance = scales**2
    if variance[0] <= _NOTHING * float((vectors**2).sum()):
        raise DataError("the PSFs are all the same", change="give PSFs that differ")
    share = variance / variance.sum()
    kept = min(LENGTH, int((share > _NOTHING).sum()))
    components, explained = np.zeros((LENGTH, rows.shape[1])), np.zeros(LENGTH)
    signs = np.sign(rows[np.arange(kept), np.abs(rows[:kept]).argmax(1)])
    components[:kept], explained[:kept] = rows[:kept] * signs[:, None], share[:kept]
    return Basis(mean=mean, components=components.reshape(LENGTH, *mean.shape), explained=explained)


def encode_psfs(files: Mapping[str, Place], basis: Basis | None = None) -> CodeTable:
    """Compute the codes of a set of PSFs.

    Args:
        files: PSF files by name; see `psf_set`.
        basis: an earlier basis; computed from this set unless given.
    """
    psfs = [read_psf(place) for place in files.values()]
    found = compute_basis(psfs) if basis is None else basis
    codes = np.stack([found.encode(psf) for psf in psfs])
    return CodeTable(
        names=tuple(files),
        codes=codes,
        residuals=np.array([_residual(found, psf, code) for psf, code in zip(psfs, codes, strict=True)]),
        basis=found,
        warnings=(NOT_COMPARABLE, *_few(found)),
    )


def _residual(basis: Basis, psf: Tensor, code: Array) -> float:
    vector = _prepared(psf, basis.mean.shape[:2])
    away = float(((vector - basis.mean) ** 2).sum())
    return 0.0 if away == 0 else float(((vector - basis.decode(code)) ** 2).sum()) / away


def _few(basis: Basis) -> tuple[str, ...]:
    kept = int((basis.explained > 0).sum())
    if kept == LENGTH:
        return ()
    return (f"the set has {kept} components only, so the last {LENGTH - kept} numbers of every code are 0",)


def psf_set(source: Folder | Place) -> dict[str, Place]:
    """PSF files by stem: the .npy files of a folder, or one file."""
    if isinstance(source, RemoteFile) or (isinstance(source, Path) and not source.is_dir()):
        return {source.stem: source}
    files = {file.stem: file for name, file in tree.files_in(source).items() if name.endswith(".npy")}
    if not files:
        raise DataError(f"there is no PSF in {source}", "a PSF is a .npy file", "give the folder that holds them")
    return files


def save_codes(table: CodeTable, folder: Path) -> list[Path]:
    """Write every code as the data set does: float32 of shape (5,); ``a_psf_5`` becomes ``a_code_5.npy``."""
    paths = []
    for name, code in zip(table.names, table.codes, strict=True):
        stem = name.replace("_psf", "_code") if "_psf" in name else f"{name}_code"
        buffer = io.BytesIO()
        np.save(buffer, code.astype(np.float32))
        paths.append(folder / f"{stem}.npy")
        write_atomically(paths[-1], buffer.getvalue())
    return paths


def save_basis(basis: Basis, path: Path) -> None:
    """Write a basis as .npz, so that later PSFs get codes that fit."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mean=basis.mean, components=basis.components, explained=basis.explained)
    write_atomically(path, buffer.getvalue())


def load_basis(path: Place) -> Basis:
    """Read what `save_basis` has written.

    Raises:
        DataError: the file cannot be read, or is no basis.
    """
    try:
        content = read_bytes(path)
        parts = {name: arrays.read_member(content, name) for name in ("mean", "components", "explained")}
    except DataError:
        raise
    except Exception as error:  # decoders raise all sorts of things on foreign bytes; each is the file's fault
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot use {path}: {reason}", "no basis of PSFs", "compute it again") from error
    mean, components, explained = parts["mean"], parts["components"], parts["explained"]
    fits = mean.ndim == 3 and components.shape == (LENGTH, *mean.shape) and explained.shape == (LENGTH,)
    if not fits or not all(p.dtype == np.float64 and np.isfinite(p).all() for p in parts.values()):
        raise DataError(f"{path} is no basis of PSFs", "another archive", "compute it again")
    return Basis(mean=mean, components=components, explained=explained)


def load_code(path: Place) -> Code:
    """Read a code (.npy, 5 numbers), and say whether it is known to fit official weights.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    values = read_values(path).astype(np.float64).reshape(-1)
    if values.size != LENGTH or not np.isfinite(values).all():
        raise DataError(f"{path} is no PSF code: it holds {values.size} numbers", "a code has 5", "give another file")
    if np.allclose(values, CENTRE_CODE, rtol=0, atol=_ROUNDED):
        return Code(values, ())
    warning = (
        "this is not the public centre code: with official weights it means something only if it comes from the "
        "kernel_code folder of SYNTH, as sign and scale of any other basis differ"
    )
    return Code(values, (warning,))
