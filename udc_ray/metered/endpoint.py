"""What a metered target is: its address, what it takes and gives, and what its owner allows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from udc_ray.errors import SpecError
from udc_ray.params import Amount, Params
from udc_ray.redact import redact
from udc_ray.spec import Entry

StorageDepth = Literal["float", 8, 16]

_HEADER = re.compile(r"^(?P<name>[A-Za-z0-9!#$%&'*+.^_`|~-]+)=(?P<variable>[A-Za-z_][A-Za-z0-9_]*)$")
_SECRET_QUERY = re.compile(r"key|token|secret|passw|auth|credential|^sig(nature)?$|^code$", re.IGNORECASE)
_OURS = frozenset(
    {"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "accept"}
    | {"accept-encoding", "user-agent", "expect", "te", "upgrade"}
)
"""Headers that the client writes itself."""


def is_target(name: str) -> bool:
    """Whether the name of a model entry is the URL of a metered target."""
    return name.lower().startswith(("http://", "https://"))


class Endpoint(Params):
    """A model behind HTTP that is asked one image a request.

    In a spec it is the model entry ``{name: URL, authorized: ..., budget: ..., ...}``.
    """

    name: ClassVar[str] = "http"
    # what may change between two runs of one campaign: the price, the pace and the permission
    not_identity: ClassVar[frozenset[str]] = frozenset(
        {"budget", "authorized", "header", "rate", "concurrency", "timeout_s", "refusals_are_free"}
    )

    url: str
    """Where images are posted, such as ``http://127.0.0.1:8000/restore``."""
    format: Literal["png", "npy"] = "png"
    """``png``: RGB, rounded to `depth` bits. ``npy``: H x W x C float32 in [0, 1], C order, as .npy file."""
    depth: Literal[8, 16] = 8
    """Bits of a PNG sample."""
    method: Literal["POST"] = "POST"
    header: str | None = None
    """``NAME=VARIABLE``: a header, such as Authorization, whose whole value the environment variable holds."""
    authorized: str | None = Field(default=None, min_length=3)
    """Who allows these queries, and why; needed for every address beyond this machine."""
    budget: int | None = Field(default=None, ge=1)
    """Requests that the target may ever be sent for this run; needed for every address beyond this machine."""
    rate: Annotated[Amount, Field(gt=0)] | None = None
    """Requests per second at most."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Requests under way at once, at most."""
    timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """Seconds within which an answer has to be there."""
    random: bool = False
    """Whether two answers to one image may differ."""
    task: Literal["restoration", "classification"] = "restoration"
    """``restoration``: an image of the same size comes back. ``classification``: JSON ``{"scores": [...]}``."""
    refusals_are_free: bool = False
    """Whether an answer 429 or 503 costs nothing."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("a target is http://HOST[:PORT]/PATH or https://...")
        if parts.fragment or not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
            raise ValueError("a target's URL is plain ASCII (xn--... for other letters), without a #fragment")
        _ = parts.port  # a port that is no number raises here
        return url

    @model_validator(mode="after")
    def _depth_belongs_to_png(self) -> Endpoint:
        if self.format == "npy" and self.depth != 8:
            raise ValueError("depth is about PNG; an npy target takes float32")
        return self

    @property
    def storage_depth(self) -> StorageDepth:
        """Grid of the images that can be sent; candidates are rounded onto it before they count.

        An attack on this target has this depth, and so have its clean images: the ball lies around what
        is really sent.
        """
        return "float" if self.format == "npy" else self.depth

    @property
    def host(self) -> str:
        """Host name or literal address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Port, the scheme's own unless given."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


def read_endpoint(entry: Entry) -> Endpoint:
    """The target that the model entry of a spec describes.

    Raises:
        SpecError: something that cannot be used; no message repeats a secret that stands in the wrong place.
    """
    _refuse_secrets(entry)
    if "url" in entry.params:
        raise SpecError("the model has a URL twice", change="give it as the model's name alone")
    endpoint: Endpoint = Endpoint.build("model", {**entry.params, "url": entry.name})
    return endpoint


def secret_header(endpoint: Endpoint, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The header that authenticates, read from the environment; it goes into requests and nowhere else.

    Raises:
        SpecError: the variable is not set, or holds what no header can.
    """
    match = _HEADER.match(endpoint.header or "")
    if match is None:
        return {}
    value = (os.environ if environment is None else environment).get(match["variable"], "")
    if not value.strip():
        raise SpecError(
            f"the environment variable {match['variable']} is not set",
            f"it holds the value of the header {match['name']} for {endpoint.host}",
            f"set it where the run starts: export {match['variable']}='Bearer ...'",
        )
    if value != value.strip() or not value.isascii() or not value.isprintable():
        raise SpecError(
            f"the environment variable {match['variable']} holds what no header can",
            "a line break or a space at its end, as left by reading a file, or a letter beyond ASCII",
            "set it to the bare value",
        )
    return {match["name"]: value}


def _refuse_secrets(entry: Entry) -> None:
    """Secrets in a URL or in `header`; what was given is never repeated."""
    parts = urlsplit(entry.name)
    query = any(_SECRET_QUERY.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.netloc or query or redact(entry.name, {}) != entry.name:
        raise SpecError(
            "the URL of the target holds a user, a key or a token",
            "specs are written to the run directory, secrets are not",
            "leave it out of the URL and give header: NAME=VARIABLE, with the value in that environment variable",
        )
    header: Any = entry.params.get("header")
    if header is None:
        return
    match = _HEADER.match(header) if isinstance(header, str) else None
    if match is None:
        raise SpecError(
            "header is not NAME=VARIABLE",
            "the value itself was given (it is not repeated here), or the name holds what no header name can",
            "put the value into an environment variable and name that: header: Authorization=MY_VARIABLE",
        )
    if match["name"].lower() in _OURS:
        raise SpecError(
            f"the header {match['name']} is written by the client itself", change="give another header, or none"
        )
