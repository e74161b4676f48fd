"""Priors by what a spec calls them: nothing (the shipped one), a folder, a URI, or ``package.module:factory``."""

from __future__ import annotations

from pathlib import Path

from udc_ray.errors import WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.location import RemoteFolder, local_folder, look
from udc_ray.purifiers import denoiser
from udc_ray.purifiers.checkpoints import find_layout, layout_of
from udc_ray.purifiers.denoiser import Denoiser
from udc_ray.purifiers.sidecar import Declared, Sidecar
from udc_ray.purifiers.supplied import is_factory, load_supplied, supplied_hashes, supplied_sidecar


def describe(weights: str | None, declared: Declared | None = None) -> Sidecar:
    """All that is known of a prior, before it is loaded.

    Args:
        weights: as in a spec.
        declared: what the spec says of it.

    Raises:
        UserError: it is no prior, something is left unsaid, or two say different things.
    """
    if weights is not None and is_factory(weights):
        return supplied_sidecar(weights, declared)
    return denoiser.read_sidecar(folder_of(weights), declared)


def load(weights: str | None, device: str, declared: Declared | None = None) -> Denoiser:
    """Load a prior on ``cpu`` or ``cuda``; see `describe`."""
    if weights is not None and is_factory(weights):
        return load_supplied(weights, device, declared)
    return denoiser.load_denoiser(folder_of(weights), device, declared)


def files(weights: str | None) -> dict[str, str]:
    """Paths of the files that decide a prior's output, by name; names do not tell where in the folder they lie."""
    if weights is not None and is_factory(weights):
        return {}
    folder = folder_of(weights)
    return {f"prior/{Path(name).name}": str(folder / name) for name in layout_of(folder).deciding}


def hashes(weights: str | None) -> dict[str, str]:
    """sha256 of all that is known to decide a prior's output, by name: `files`, or a factory's source and values."""
    if weights is not None and is_factory(weights):
        return {f"prior/{name}": value for name, value in supplied_hashes(weights).items()}
    return {name: file_sha256(Path(path)) for name, path in files(weights).items()}


def folder_of(weights: str | None) -> Path:
    """Where a prior lies on this machine; of one behind a URI, the files it is made of are fetched."""
    if weights is None:
        return denoiser.DEFAULT_PRIOR
    found = look(weights, WeightsError)
    if isinstance(found, RemoteFolder):
        return local_folder(weights, find_layout(found.files.__contains__).names, WeightsError)
    return found if isinstance(found, Path) else local_folder(weights, (), WeightsError)
