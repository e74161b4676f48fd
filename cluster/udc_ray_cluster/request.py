"""What a job is asked to do, from the client's command line to the driver on the cluster."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from udc_ray.errors import UserError
from udc_ray.spec import canonical_json

STORAGE_VARIABLE = "UDC_RAY_STORAGE"
"""Names the storage root of a cluster: a folder that all its nodes share, or a URI."""
REQUEST_FILE = "request.json"


class Request(BaseModel):
    """One long command, such as ``evaluate``, with all that it was given.

    Attributes:
        command: name of the command.
        spec: values of the spec as asked, with absolute paths; None where a run is resumed.
        out: run directory, or None for the fingerprint's name under the storage root.
        resume: run directory that is gone on with.
        storage: storage root that the client names.
        fallback: storage root where neither client nor cluster names one.
        shared: folders that are the same on every node.
        max_hours: after so long no new unit is begun.
        arguments: the command line, with its secrets masked.
        options: what else the command was given.
        versions: versions of the client.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    spec: dict[str, Any] | None = None
    out: str | None = None
    resume: str | None = None
    storage: str | None = None
    fallback: str = ""
    shared: tuple[str, ...] = ()
    max_hours: float | None = None
    arguments: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    versions: dict[str, str] = {}

    def root(self) -> str:
        """The storage root, as far as it is known here: what was given, the cluster's own, or the fallback."""
        return self.storage or os.environ.get(STORAGE_VARIABLE) or self.fallback

    def name(self) -> str:
        """Stable name of the run: a hash of the spec as asked and of where it goes."""
        asked = [self.command, self.spec, self.resume or self.out or self.storage or self.fallback]
        return f"udc-{hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:12]}"


def write_request(folder: Path, request: Request) -> None:
    """Put the request into a job's working directory."""
    (folder / REQUEST_FILE).write_text(request.model_dump_json())


def read_request(folder: Path) -> Request:
    """The request of the job whose working directory this is."""
    try:
        return Request.model_validate_json((folder / REQUEST_FILE).read_text())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"the job's {REQUEST_FILE} cannot be read: {str(error).splitlines()[0]}",
            "it was submitted by another version of udc-ray, or not by udc-ray",
            "submit it with: udc-ray evaluate --cluster",
        ) from error
