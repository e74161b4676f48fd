"""What decides the numbers of a run, as one document and its SHA-256.

Values are taken as asked, with defaults filled in (``auto`` stays ``auto``). Not in it: hosts, chunk,
save, paths and budgets. Data and weights that are given by path count by their content.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udc_ray.data.open import PathParams, ShippedParams
from udc_ray.metered.endpoint import is_target, read_endpoint
from udc_ray.metrics.perceptual import get_perceptual
from udc_ray.models.zoo import MODELS
from udc_ray.params import Params
from udc_ray.plan import read_attack, read_defence
from udc_ray.spec import Entry, RunSpec, canonical_json

DTYPE = "float32"
PATH = "PATH"
"""Stands where a path was: the content is in ``files``."""

_PATH_KEYS = frozenset({"weights", "path"})
_NUMBER = re.compile(r"^[\d\s./+-]+$")
_SUFFIX = re.compile(r"\.[A-Za-z]\w*$")
_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def fingerprint_document(spec: RunSpec, file_hashes: Mapping[str, str], device_type: str) -> dict[str, Any]:
    """All that the fingerprint is taken over.

    Args:
        spec: the run as asked.
        file_hashes: sha256 of every weight and image file, by a name that is no path.
        device_type: ``cpu`` or ``cuda``.
    """
    return {
        "model": _model(spec.model),
        "data": _data(spec.data),
        "attacks": _distinct([_attack(entry) for entry in spec.attacks]),
        "defenses": [_defence(entry) for entry in spec.defenses],
        "objective": spec.objective,
        "protocol": spec.protocol,
        "perceptual": _perceptual(spec.perceptual),
        "success": spec.success.model_dump(mode="json"),
        "seed": spec.seed,
        "limit": spec.limit,
        "run": {"micro_batch": spec.run.micro_batch, "threads": spec.run.threads},
        "dtype": DTYPE,
        "device_type": device_type,
        "files": dict(file_hashes),
    }


def hash_document(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a document, hexadecimal."""
    return hashlib.sha256(canonical_json(dict(document)).encode()).hexdigest()


def fingerprint(spec: RunSpec, file_hashes: Mapping[str, str], device_type: str) -> str:
    """The fingerprint of a run; see `fingerprint_document`."""
    return hash_document(fingerprint_document(spec, file_hashes, device_type))


def cells_key(document: Mapping[str, Any]) -> str:
    """What all cells of a run have in common: the hash of model, data and whatever else decides numbers."""
    shared = {key: value for key, value in document.items() if key not in {"attacks", "defenses", "files"}}
    own = {key: value for key, value in document["files"].items() if not key.startswith(("defense:", "attack:"))}
    return hashlib.sha256(canonical_json([shared, own]).encode()).hexdigest()


def first_difference(old: Any, new: Any, prefix: str = "") -> str | None:
    """Dotted name of the first field in which two documents differ; None if they are equal."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(str(k), old.get(k, _MISSING), new.get(k, _MISSING)) for k in dict.fromkeys([*old, *new])]
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        longest = max(len(old), len(new))
        pairs = [(str(n), _item(old, n), _item(new, n)) for n in range(longest)]
    else:
        return None if type(old) is type(new) and old == new else prefix
    for key, before, after in pairs:
        found = first_difference(before, after, f"{prefix}.{key}" if prefix else key)
        if found is not None:
            return found
    return None


_MISSING = object()


def _item(values: list[Any] | tuple[Any, ...], position: int) -> Any:
    return values[position] if position < len(values) else _MISSING


def _attack(entry: Entry) -> dict[str, Any]:
    built = read_attack(entry)
    # Only the budget is left out: whatever else may change does change numbers.
    return _dump(entry.name, built.attack, {"budget"}) | {"grad_mode": _plain(built.grad_modes)}


def _defence(entry: Entry) -> dict[str, Any]:
    built = read_defence(entry)
    values = {"name": entry.name} if built.purifier is None else _dump(entry.name, built.purifier, set())
    return values | {"grad_mode": list(built.grad_modes)}


def _dump(name: str, built: Params, without: set[str]) -> dict[str, Any]:
    values = built.model_dump(mode="json", exclude=without)
    return {"name": name} | {key: _value(key, value) for key, value in values.items()}


def _data(entry: Entry) -> dict[str, Any]:
    """The data entry with its defaults; anything but the shipped images is a path."""
    shipped = entry.name == ShippedParams.name
    built: Params = (ShippedParams if shipped else PathParams).build("data", entry.params)
    return _dump(entry.name if shipped else PATH, built, set())


def _perceptual(entry: Entry) -> dict[str, Any]:
    built = get_perceptual(entry)
    return {"name": entry.name} if built is None else _dump(entry.name, built, set())


def _model(entry: Entry) -> dict[str, Any]:
    if is_target(entry.name):
        endpoint = read_endpoint(entry)
        return _dump(endpoint.url, endpoint, set(endpoint.not_identity) | {"url"})
    if entry.name in MODELS:
        return _dump(entry.name, MODELS.get(entry.name).build("model", entry.params), set())
    name = PATH if _is_path(entry.name) or Path(entry.name).is_file() else entry.name
    return {"name": name} | {key: _value(key, value) for key, value in entry.params.items()}


def _value(key: str, value: Any) -> Any:
    if isinstance(value, str) and not _FACTORY.match(value) and (key in _PATH_KEYS or _is_path(value)):
        return PATH
    return value


def _is_path(text: str) -> bool:
    """Whether a text names a file or a folder; registry names and ``package.module:factory`` do not."""
    if _FACTORY.match(text) or _NUMBER.match(text):
        return False
    return "/" in text or os.sep in text or text in {".", "..", "~"} or _SUFFIX.search(text) is not None


def _distinct(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries that differ in their budget only are one."""
    return list({canonical_json(v): v for v in values}.values())


def _plain(modes: tuple[str, ...] | None) -> list[str] | None:
    return None if modes is None else list(modes)
