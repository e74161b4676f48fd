"""Models: restorers give an image for an image, classifiers one number a class; both in the canonical domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

TaskName = Literal["restoration", "classification"]
"""What a model is for; `udc_ray.tasks` says how its answers are judged."""


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """What is known of a model.

    Attributes:
        name: name in reports.
        parameters: number of trainable values.
        channels: 3 for RGB, 4 for raw planes.
        size_multiple: sides are padded to this inside the restorer.
        domain: ``any``, or the canonical domain that it was trained in.
        global_statistics: whether the output at a pixel depends on the whole image (no tiling).
        source: where the weights come from.
        licence: licence of the weights.
        sha256: of the weights file, or None.
        task: what it is for.
        classes: number of classes that a classifier tells apart, else None.
    """

    name: str
    parameters: int
    channels: int = 3
    size_multiple: int = 1
    domain: Literal["any", "srgb", "tonemapped"] = "any"
    global_statistics: bool = True
    source: str = ""
    licence: str = ""
    sha256: str | None = None
    task: TaskName = "restoration"
    classes: int | None = None


class Restorer(Protocol):
    """f. Padding, domain change, second inputs, normalisation and output selection are inside.

    A call takes B x C x H x W float32 in [0, 1] and returns the same shape, unclamped and
    differentiable. A classifier (`descriptor.task`) returns B x K logits instead, K = `descriptor.classes`.
    """

    descriptor: Descriptor

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Restore or classify a batch."""
        ...

    def to(self, device: str) -> Restorer:
        """Move to a device."""
        ...


class ModuleRestorer:
    """A model made of an nn.Module that already speaks the canonical domain.

    Args:
        module: B x C x H x W in [0, 1] to the same shape, or to B x K logits.
        descriptor: what is known of it.
        channels_last: keep weights and activations with channels last in memory, about twice as
            fast for convolutions on a CPU; not every module can (a `view` inside may refuse).
    """

    def __init__(self, module: nn.Module, descriptor: Descriptor, *, channels_last: bool = False) -> None:
        self.module = module.eval().requires_grad_(False)
        self.descriptor = descriptor
        self.channels_last = channels_last
        if channels_last:
            for parameter in module.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if not self.channels_last:
            result: Tensor = self.module(x_BCHW)
            return result
        result = self.module(x_BCHW.contiguous(memory_format=torch.channels_last))
        return result.contiguous()

    def to(self, device: str) -> ModuleRestorer:
        self.module.to(device)
        return self
