"""The paths that a spec names: data, weights and PSF files, here, on a shared disk, or behind a URI."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from udc_ray.data.open import ShippedParams
from udc_ray.models.checkpoints import SUFFIXES
from udc_ray.models.zoo import MODELS
from udc_ray.purifiers.supplied import is_factory
from udc_ray.spec import Entry, RunSpec
from udc_ray.stores import is_uri

Change = Callable[[str], str]

_PLACES = frozenset({"weights", "backbone", "heads"})


def with_places(spec: RunSpec, change: Change) -> RunSpec:
    """The same spec with every path in it changed."""
    data, model = _changed(spec.data, change), _changed(spec.model, change)
    if data.name != ShippedParams.name:
        data = data.model_copy(update={"name": change(data.name)})
    if is_weights_file(model.name):
        model = model.model_copy(update={"name": change(model.name)})
    defenses = tuple(_changed(entry, change) for entry in spec.defenses)
    return spec.model_copy(update={"data": data, "model": model, "defenses": defenses})


def places_of(spec: RunSpec) -> list[str]:
    """The paths that a spec names, each once."""
    found: dict[str, None] = {}

    def remember(place: str) -> str:
        found[place] = None
        return place

    with_places(spec, remember)
    return list(found)


def with_absolute_paths(spec: RunSpec) -> RunSpec:
    """The same spec with its paths made absolute, so that a run can be resumed from any folder."""
    return with_places(spec, absolute)


def absolute(path: str) -> str:
    """An absolute path; a URI stays as it is."""
    return path if is_uri(path) else os.path.abspath(os.path.expanduser(path))


def is_weights_file(name: str) -> bool:
    """Whether the name of a model is that of a file."""
    return name not in MODELS and (Path(name).suffix.lower() in SUFFIXES or Path(name).expanduser().is_file())


def _changed(entry: Entry, change: Change) -> Entry:
    return entry.model_copy(update={"params": {key: _value(key, value, change) for key, value in entry.params.items()}})


def _value(key: str, value: Any, change: Change) -> Any:
    if key == "selector" and isinstance(value, Mapping):
        clean = value.get("clean")
        return {**value, "clean": change(clean)} if isinstance(clean, str) else value
    if isinstance(value, str) and is_factory(value):
        return value
    if isinstance(value, str) and (key in _PLACES or (key in {"display", "psf"} and value.endswith(".npy"))):
        return change(value)
    return value
