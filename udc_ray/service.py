"""A model as a service: the bytes of requests in, the bytes of answers out, in micro-batches of one fixed shape.

An answer does not depend on what else is asked at the time: empty slots are padded, and images of
different sizes never share a micro-batch. Random victims draw fresh noise for every request.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from torch import Tensor

from udc_ray import memory
from udc_ray.batching import MicroBatch, micro_batches
from udc_ray.data import png16
from udc_ray.errors import SpecError, UdcRayError
from udc_ray.metered import formats
from udc_ray.metered.endpoint import StorageDepth, is_target
from udc_ray.models.loading import load_restorer
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.purifiers.selectors import Leveled
from udc_ray.purifiers.victim import Victim
from udc_ray.spec import Entry
from udc_ray.tape import Tape

MAX_PIXELS = 2**22
"""Pixels of an image, at most: 2048 x 2048."""


class BadRequest(UdcRayError):
    """A request that is not answered.

    Args:
        message: why, for whoever asked.
        status: HTTP status.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status

    def __reduce__(self) -> tuple[type[BadRequest], tuple[str, int]]:
        return type(self), (self.message, self.status)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is put behind HTTP.

    Attributes:
        model: entry of a restorer or a classifier.
        defense: entry of a purifier that stands before it, or None.
        micro_batch: images per forward pass; every pass has exactly this many slots.
        device: ``cpu`` or ``cuda``.
        max_pixels: pixels of an image, at most.
    """

    model: Entry
    defense: Entry | None = None
    micro_batch: int = 4
    device: str = "cpu"
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that can be answered.

    Attributes:
        x_CHW: the image, in [0, 1].
        depth: of the PNG that was sent, or ``float`` for .npy; the answer comes in the same.
    """

    x_CHW: Tensor
    depth: StorageDepth


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer's bytes and their media type."""

    body: bytes
    media_type: str


class Service:
    """Answers images with a victim.

    Args:
        served: what it is.
        victim: an already loaded victim, for tests.

    Raises:
        UserError: the model or the defence cannot be loaded.
    """

    def __init__(self, served: Served, victim: Victim | None = None) -> None:
        self.served = served
        self.victim = victim or load_victim(served)
        self.descriptor = self.victim.restorer.descriptor
        self.task = self.descriptor.task

    @property
    def path(self) -> str:
        """Where it is asked."""
        return "/restore" if self.task == "restoration" else "/classify"

    @property
    def max_bytes(self) -> int:
        """Bytes of a request, at most: the largest image as float64."""
        return self.served.max_pixels * self.descriptor.channels * 8 + formats.SLACK

    def info(self) -> dict[str, Any]:
        """What a client may know."""
        purifier = self.victim.purifier
        return {
            "name": self.descriptor.name,
            "task": self.task,
            "defense": None if purifier is None else purifier.identity(),
            "random": self.victim.random,
            "channels": self.descriptor.channels,
            "classes": self.descriptor.classes,
            "formats": ["npy", "png"] if self.descriptor.channels == 3 else ["npy"],
            "size": "any H x W; the model pads to its own multiple inside",
            "size_multiple": self.descriptor.size_multiple,
            "max_pixels": self.served.max_pixels,
            "max_bytes": self.max_bytes,
            "micro_batch": self.served.micro_batch,
            "path": self.path,
            "udc_ray": metadata.version("udc-ray"),
        }

    def read(self, content: bytes) -> Asked:
        """The image of a request, known by its first bytes.

        Raises:
            BadRequest: it is no image that the model takes.
        """
        if len(content) > self.max_bytes:
            raise BadRequest(f"the request has more than {self.max_bytes} bytes", 413)
        media_type = _recognise(content)
        try:
            channels, height, width = shape = formats.announced_shape(content, media_type)
            self._check(channels, height, width)
            x_CHW = formats.decode_image(content, media_type, shape)
        except ValueError as error:
            raise BadRequest(f"the image cannot be used: {error}") from error
        if float(x_CHW.min()) < 0 or float(x_CHW.max()) > 1:
            raise BadRequest("the image leaves [0, 1]; scale it, and clip it")
        header = png16.read_header(content)
        depth: StorageDepth = "float" if header is None else 16 if header.depth == 16 else 8
        return Asked(x_CHW=x_CHW, depth=depth)

    def answer(self, images: Sequence[Tensor]) -> list[Tensor | BadRequest]:
        """Evaluate images, one each; an image on which the model fails spoils no other size."""
        found: list[Tensor | BadRequest] = [BadRequest("not evaluated", 500)] * len(images)
        draws = [secrets.token_hex(16) for _ in images]  # names of the noise, never used again
        for batch in micro_batches(draws, list(images), self.served.micro_batch):
            for position, output in zip(batch.where, self._evaluate(batch), strict=True):
                found[position] = output
        return found

    def write(self, output: Tensor, depth: StorageDepth) -> Reply:
        """An answer: .npy unclamped float32, PNG clamped and rounded, scores as JSON."""
        if self.task == "classification":
            scores = {"scores": [float(v) for v in output]}
            return Reply(body=json.dumps(scores).encode(), media_type=formats.JSON)
        values = output.numpy().transpose(1, 2, 0)
        if depth == "float":
            return Reply(body=formats.npy_bytes(values), media_type=formats.NPY)
        levels = np.rint(np.nan_to_num(values.astype(np.float64)).clip(0, 1) * (2**depth - 1))
        return Reply(
            body=formats.png_bytes(levels.astype(np.uint8 if depth == 8 else np.uint16)), media_type=formats.PNG
        )

    def _check(self, channels: int, height: int, width: int) -> None:
        wanted = self.descriptor.channels
        if channels != wanted:
            raise ValueError(f"it has {channels} planes, and the model takes {wanted}")
        if height * width > self.served.max_pixels or 0 in (height, width):
            raise ValueError(f"it has {height} x {width} pixels; 1 to {self.served.max_pixels} are taken")

    def _evaluate(self, batch: MicroBatch) -> list[Tensor | BadRequest]:
        tape = Tape(seed=0, image_ids=batch.image_ids, stream="eval")
        try:
            output, _ = self.victim.evaluate(batch.x_BCHW.to(self.served.device), tape)
        except Exception as error:  # whatever a model raises is told to whoever asked, and the service goes on
            return [_failure(error, batch.x_BCHW)] * batch.count
        return list(output[: batch.count].cpu())


def load_victim(served: Served) -> Victim:
    """Load a model, and its purifier.

    Raises:
        UserError: they cannot be loaded.
    """
    if is_target(served.model.name):
        raise SpecError(
            f"{served.model.name} is served already", "a URL in the place of a model", "give a model of your own"
        )
    restorer = load_restorer(served.model, served.device)
    if served.defense is None or served.defense.name == "none":
        return Victim(restorer=restorer)
    purifier = PURIFIERS.get(served.defense.name).build("defence", served.defense.params)
    if isinstance(purifier, Leveled):
        purifier.require_level()
    return Victim(restorer=restorer, purifier=purifier, prepared=purifier.prepare(served.device))


def _recognise(content: bytes) -> str:
    if content.startswith(png16.SIGNATURE):
        return formats.PNG
    if content.startswith(b"\x93NUMPY"):
        return formats.NPY
    raise BadRequest("the request is no image: post the bytes of a PNG, or of a .npy file with H x W x C floats")


def _failure(error: Exception, x_BCHW: Tensor) -> BadRequest:
    if memory.is_out_of_memory(error):
        return BadRequest("the device is out of memory; ask again later, or with a smaller image", 503)
    first = str(error).splitlines()[0] if str(error) else ""
    size = " x ".join(map(str, x_BCHW.shape[2:]))
    return BadRequest(f"the model fails on images of {size}: {type(error).__name__}: {first}", 422)
