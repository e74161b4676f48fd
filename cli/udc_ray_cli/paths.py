"""Relative paths in a spec become absolute, so that a run can be resumed from any folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from udc_ray.data.open import ShippedParams
from udc_ray.models.checkpoints import SUFFIXES
from udc_ray.models.zoo import MODELS
from udc_ray.spec import Entry, RunSpec


def with_absolute_paths(spec: RunSpec) -> RunSpec:
    """The same spec with the paths of model, data, weights and PSF made absolute."""
    data, model = _located(spec.data), _located(spec.model)
    if data.name != ShippedParams.name:
        data = data.model_copy(update={"name": absolute(data.name)})
    if _is_weights_file(model.name):
        model = model.model_copy(update={"name": absolute(model.name)})
    defenses = tuple(_located(entry) for entry in spec.defenses)
    return spec.model_copy(update={"data": data, "model": model, "defenses": defenses})


def absolute(path: str) -> str:
    """An absolute path; a URI stays as it is."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _is_weights_file(name: str) -> bool:
    return name not in MODELS and (Path(name).suffix.lower() in SUFFIXES or Path(name).expanduser().is_file())


def _located(entry: Entry) -> Entry:
    return entry.model_copy(update={"params": {key: _value(key, value) for key, value in entry.params.items()}})


def _value(key: str, value: Any) -> Any:
    if isinstance(value, str) and (key == "weights" or (key == "display" and value.endswith(".npy"))):
        return absolute(value)
    return value
