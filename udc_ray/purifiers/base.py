"""Purifiers: attacked image in, image for the restorer out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from udc_ray.hashing import file_sha256
from udc_ray.params import Params
from udc_ray.probe import Network
from udc_ray.tape import Tape


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a purification cost.

    Attributes:
        nfe: denoiser calls per image.
        auxiliary: calls of guides per image.
        seconds: wall time of the batch.
    """

    nfe: int = 0
    auxiliary: int = 0
    seconds: float = 0.0


class Purifier(Params):
    """A purifier is its parameters; `prepare` loads what it needs on a device.

    Attributes:
        random: whether its output depends on noise.
        grad_modes: gradient modes it offers besides ``blind``.
    """

    random: ClassVar[bool] = False
    # A path says nothing about the content, and more samples are more draws of the same noise.
    not_identity: ClassVar[frozenset[str]] = frozenset({"weights", "samples"})
    grad_modes: ClassVar[frozenset[str]] = frozenset({"bpda"})

    samples: int = Field(default=1, ge=1)
    """Fresh purifications that are evaluated per image; 1 for deterministic purifiers."""

    def prepare(self, device: str) -> Any:
        """Load the networks the purifier needs; the result is handed to `purify`."""
        return None

    def weight_files(self) -> dict[str, str]:
        """Names and paths of the files whose hashes belong to the fingerprint."""
        return {}

    def weight_hashes(self) -> dict[str, str]:
        """sha256 of `weight_files`, by name."""
        return {name: file_sha256(Path(path)) for name, path in self.weight_files().items()}

    @property
    def calls(self) -> int:
        """Roughly how many network calls one purification takes; for planning only."""
        return 0

    def networks(self, prepared: Any) -> list[Network]:
        """Networks whose bits must not depend on the place in a batch; for the probe before a run."""
        return []

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Any) -> tuple[Tensor, Trace]:
        """Purify B x C x H x W in [0, 1]; returns the same shape in [0, 1] and the cost.

        Noise is drawn from ``tape.generators(self.identity())`` only.
        """
        raise NotImplementedError("a purifier implements purify")
