"""environment.json: with what, where and how a run was made."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from udc_ray.records import SCHEMA_VERSION
from udc_ray.redact import redact_command, redact_values

DISTRIBUTIONS = (
    "udc-ray",
    "torch",
    "numpy",
    "ray",
    "diffusers",
    "deepspeed",
    "scikit-image",
    "scipy",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "torchmetrics",
)
DECISIVE = ("udc-ray", "torch")
"""A change of these between two sessions of a run is warned of."""


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Versions of what is installed; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(package: Path | None = None) -> str | None:
    """Commit of the checkout that this package runs from, with ``-dirty``; None where it is installed.

    Args:
        package: folder of the package; udc_ray's own unless given.
    """
    root = (package or Path(__file__).parent).resolve().parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # an installed package may lie inside somebody's repository
        return None
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def describe_session(arguments: Sequence[str]) -> dict[str, Any]:
    """What is known when a session begins; devices, probes and the end are added as they come.

    Args:
        arguments: the command line; its secrets are masked.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "platform": platform.platform(),
        "devices": {},
        "command_line": redact_command(arguments),
        "git_commit": git_commit(),
        "start": now(),
        "end": None,
        "probes": {},
        "executed": {},
    }


def add_session(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a run that goes on: the new session, and all earlier ones under ``earlier``."""
    document = dict(redact_values(new))
    if old is not None:
        before = {key: value for key, value in old.items() if key != "earlier"}
        document["earlier"] = [*old.get("earlier", []), before]
    return document


def changed_versions(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[str]:
    """Warnings about another udc-ray or torch than in the session before."""
    before = dict((old or {}).get("versions", {}))
    after = dict(new.get("versions", {}))
    return [
        f"{name} was {before[name]} when this run began and is {after.get(name, 'missing')} now"
        for name in DECISIVE
        if name in before and before[name] != after.get(name)
    ]
