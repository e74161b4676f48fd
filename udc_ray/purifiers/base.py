"""Purifiers: attacked image in, image for the restorer out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from udc_ray.errors import SpecError
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

    def __add__(self, other: Trace) -> Trace:
        """The cost of both."""
        return Trace(
            nfe=self.nfe + other.nfe,
            auxiliary=self.auxiliary + other.auxiliary,
            seconds=self.seconds + other.seconds,
        )


Combine = Literal["mean", "median"]
SURROGATE = "surrogate-"
"""Grad mode ``surrogate-k``: the attack differentiates a plan of at most k steps a round."""


def is_surrogate(mode: str) -> bool:
    """Whether a grad mode is ``surrogate-`` and a number of steps above 0."""
    steps = mode.removeprefix(SURROGATE)
    return mode.startswith(SURROGATE) and steps.isascii() and steps.isdecimal() and int(steps) >= 1


class Purifier(Params):
    """A purifier is its parameters; `prepare` loads what it needs on a device.

    Attributes:
        random: whether its output depends on noise.
        grad_modes: gradient modes it offers besides ``blind``; ``surrogate-k`` stands for any k.
    """

    random: ClassVar[bool] = False
    # A path says nothing about the content, and more samples are more draws of the same noise.
    not_identity: ClassVar[frozenset[str]] = frozenset({"weights", "samples"})
    grad_modes: ClassVar[frozenset[str]] = frozenset({"bpda"})

    samples: int = Field(default=1, ge=1)
    """Fresh purifications that are evaluated per image; 1 for deterministic purifiers."""
    copies: int = Field(default=1, ge=1)
    """Purifications whose restored images are combined into one output; the attack sees the combination."""
    combine: Combine = "mean"
    """How `copies` outputs become one, pixel by pixel."""

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

    def offers(self, mode: str) -> bool:
        """Whether gradients can pass in a mode (`blind` needs none)."""
        return "surrogate-k" in self.grad_modes if is_surrogate(mode) else mode in self.grad_modes - {"surrogate-k"}

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Any) -> tuple[Tensor, Trace]:
        """Purify B x C x H x W in [0, 1]; returns the same shape in [0, 1] and the cost.

        Noise is drawn from ``tape.generators(self.noise_key)`` and keys below it only.
        """
        raise NotImplementedError("a purifier implements purify")

    def differentiable(self, x_BCHW: Tensor, tape: Tape, prepared: Any, mode: str) -> Tensor:
        """Purify with the gradient that a mode defines; ``bpda`` is the identity (Athalye et al. 2018).

        Raises:
            SpecError: for a mode that the purifier does not offer.
        """
        if mode != "bpda":
            raise SpecError(
                f"no gradient of mode {mode!r} passes the purifier {self.name!r}",
                change=f"use one of: {', '.join(sorted(self.grad_modes))}",
            )
        with torch.no_grad():
            purified, _ = self.purify(x_BCHW.detach(), tape, prepared)
        # x - x is exactly 0, so the restorer gets the purified image to the bit
        return purified + (x_BCHW - x_BCHW.detach())

    @property
    def noise_key(self) -> str:
        """Name of the purifier's draws: its identity, but for how many of its outputs are combined."""
        return self.model_copy(update={"copies": 1, "combine": "mean"}).identity()
