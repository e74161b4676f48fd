"""From files and flags to a spec.

    presets/default.yaml < --preset < SPEC < flags < --set

A given top-level key replaces the earlier one whole; `run` merges key by key. Where data is given
and limit is not, all its images are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from udc_ray.errors import SpecError, did_you_mean
from udc_ray.redact import has_credentials
from udc_ray.spec import Entry, RunSpec, parse_spec
from udc_ray.yaml_text import load_yaml

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "default"
RECORDED_KEYS = frozenset({"fingerprint", "resolved"})
"""Keys that a run directory adds to its spec.yaml; taken as read when such a file is given as SPEC."""

_ENTRY_LISTS = ("attacks", "defenses")
_ENTRIES = ("model", "data", "perceptual")
_FLAG_ENTRY = re.compile(r"^(?P<name>[^:=,]+(?::[A-Za-z_]\w*)?)(?::(?P<params>\w+=.*))?$", re.DOTALL)

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the flags of the command line say; None and empty are not given.

    Attributes:
        model, weights: name, path or ``package.module:factory``, and a weights file.
        data, display: name or path of the data, and the display that clean images are sent through.
        reference: False with ``--no-reference``.
        attacks, defenses: each ``NAME`` or ``NAME:key=value,key=value``; they replace the list.
        limit, seed: as in the spec.
    """

    model: str | None = None
    weights: str | None = None
    data: str | None = None
    display: str | None = None
    reference: bool | None = None
    attacks: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    limit: int | None = None
    seed: int | None = None


def build_spec(
    *,
    spec_file: Path | str | None = None,
    preset: str | None = None,
    flags: Overrides | None = None,
    sets: tuple[str, ...] = (),
    base: str | None = None,
) -> RunSpec:
    """Lay the sources over one another and validate the result.

    Args:
        spec_file: a YAML file with any of the spec's keys.
        preset: name of a shipped preset that replaces keys of the default one.
        flags: what the command line says.
        sets: ``key=value`` with a dotted key and a YAML value, such as ``run.threads=2``.
        base: a shipped preset that stands between the default one and `preset`; the command's own.

    Raises:
        SpecError: anything that cannot be read or used.
    """
    values = _read_preset(DEFAULT_PRESET)
    for name in (base, preset):
        if name is not None:
            values = _overlay(values, _read_preset(name))
    given: Values = {}
    if spec_file is not None:
        given = _read_file(Path(spec_file))
        values = _overlay(values, given)
    flags = flags or Overrides()
    keys = {text.partition("=")[0].strip() for text in sets}
    own_limit = "limit" in given or flags.limit is not None or "limit" in keys
    # a flag for the display alone leaves the data, and so the limit, as they are
    values = _overlay(values, _from_flags(flags, values), keep_limit=own_limit or flags.data is None)
    for text in sets:
        values = _apply_set(values, text, keep_limit=own_limit)
    _refuse_credentials(values)
    return parse_spec(values)


def list_presets() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def parse_entry(text: str) -> Values:
    """Read ``NAME`` or ``NAME:key=value,key=value`` (values in YAML) as an entry of a list."""
    match = _FLAG_ENTRY.match(text.strip())
    if match is None:
        raise SpecError(f"cannot read the entry {text!r}", change="write NAME or NAME:key=value,key=value")
    entry: Values = {"name": match["name"].strip()}
    for part in _split(match["params"] or ""):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key or key in entry:
            raise SpecError(
                f"cannot read {part!r} in {text!r}",
                "given twice" if key in entry else "parameters are written key=value",
                "write NAME:key=value,key=value",
            )
        entry[key] = load_yaml(value, f"{text!r}")
    return entry


def spec_values(spec: RunSpec) -> Values:
    """A spec as the plain values that YAML holds; `parse_spec` reads them back."""
    values = spec.model_dump(mode="json")
    for key in _ENTRIES:
        values[key] = _entry_values(getattr(spec, key))
    for key in _ENTRY_LISTS:
        values[key] = [_entry_values(entry) for entry in getattr(spec, key)]
    return values


def dump_yaml(values: Values) -> str:
    """YAML text in the order of the keys."""
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return text


def _entry_values(entry: Entry) -> Values:
    modes = {} if entry.grad_mode is None else {"grad_mode": list(entry.grad_mode)}
    return {"name": entry.name, **entry.params, **modes}


def _read_preset(name: str) -> Values:
    if name not in list_presets():
        raise SpecError(f"unknown preset {name!r}", change=did_you_mean(name, list_presets()))
    return _read_file(PRESETS / f"{name}.yaml")


def _read_file(path: Path) -> Values:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"the spec {path} is no text", "another kind of file", "give a YAML file") from error
    except OSError as error:
        raise SpecError(
            f"cannot read the spec {path}: {error.strerror or error}", "a wrong path", "give a YAML file"
        ) from error
    values = load_yaml(text, f"the spec {path}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SpecError(f"the spec {path} is a {type(values).__name__}, not a mapping", change="write key: value lines")
    recorded = RECORDED_KEYS if "fingerprint" in values else frozenset()
    return {key: value for key, value in values.items() if key not in recorded}


def _overlay(values: Values, layer: Values, *, keep_limit: bool = False) -> Values:
    """Replace keys; a layer with data and without a limit drops a limit that was not the user's own."""
    result = {**values, **layer}
    if isinstance(values.get("run"), dict) and isinstance(layer.get("run"), dict):
        result["run"] = {**values["run"], **layer["run"]}
    if "data" in layer and "limit" not in layer and not keep_limit:
        result.pop("limit", None)
    return result


def _from_flags(flags: Overrides, values: Values) -> Values:
    layer: Values = {key: value for key in ("limit", "seed") if (value := getattr(flags, key)) is not None}
    for key in _ENTRY_LISTS:
        if getattr(flags, key):
            layer[key] = [parse_entry(text) for text in getattr(flags, key)]
    model, data = {"weights": flags.weights}, {"display": flags.display, "reference": flags.reference}
    for key, extra in (("model", model), ("data", data)):
        chosen, given = getattr(flags, key), {k: v for k, v in extra.items() if v is not None}
        if chosen is not None:
            layer[key] = {"name": chosen, **given}
        elif given:
            layer[key] = {**_as_mapping(values.get(key), key), **given}
    return layer


def _apply_set(values: Values, text: str, *, keep_limit: bool) -> Values:
    dotted, equals, value_text = text.partition("=")
    path = [part.strip() for part in dotted.split(".")]
    if not equals or not all(path):
        raise SpecError(f"cannot read --set {text!r}", change="write --set key=value, such as --set run.threads=2")
    value = load_yaml(value_text, f"--set {text}")
    if len(path) == 1:
        return _overlay(values, {path[0]: value}, keep_limit=keep_limit)
    return {**values, path[0]: _replaced(values.get(path[0]), path, 1, value)}


def _replaced(node: Any, path: list[str], depth: int, value: Any) -> Any:
    """A copy of `node` in which the field at ``path[depth:]`` is `value`."""
    if depth == len(path):
        return value
    here, key = ".".join(path[:depth]), path[depth]
    if isinstance(node, list):
        if not key.isascii() or not key.isdigit() or int(key) >= len(node):
            raise SpecError(f"--set: {here} has no item {key!r}", change=f"count from 0; it has {len(node)} items")
        copy = list(node)
        copy[int(key)] = _replaced(node[int(key)], path, depth + 1, value)
        return copy
    mapping = _as_mapping(node, here)
    return {**mapping, key: _replaced(mapping.get(key), path, depth + 1, value)}


def _as_mapping(node: Any, where: str) -> Values:
    """A mapping as it is, nothing as an empty one, and a bare name as an entry."""
    if node is None:
        return {}
    if isinstance(node, str):
        return {"name": node}
    if isinstance(node, Mapping):
        return dict(node)
    raise SpecError(f"{where} is {node!r}, which has no fields", change="set it as a whole")


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def _refuse_credentials(node: Any, where: str = "") -> None:
    if isinstance(node, str) and has_credentials(node):
        raise SpecError(
            f"{where} holds a URI with a user and a secret",
            "credentials are written into the address",
            "give them in the environment or in the store's own configuration",
        )
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        _refuse_credentials(value, f"{where}.{key}" if where else str(key))
