"""Task features: what a network makes of images inside, one vector an image.

A noise level is judged by the features of the very network that it protects (task-guided, Yu et al. 2024, UAD-RS):
the output of its bottleneck, averaged over the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from udc_ray.batching import micro_batches
from udc_ray.errors import SpecError, did_you_mean
from udc_ray.models.base import Restorer
from udc_ray.models.nafnet import NAFNet

PROBE_EDGE = 128
"""Edge in px of the image by which a bottleneck is looked for."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Where features are read.

    Attributes:
        name: of the module, as `named_modules` has it.
        width: features an image.
    """

    name: str
    width: int


def network_of(restorer: Restorer) -> nn.Module:
    """The network inside a restorer.

    Raises:
        SpecError: there is none to look into.
    """
    held: object = restorer
    while not isinstance(held, nn.Module):
        inside = (getattr(held, name, None) for name in ("inner", "module", "network"))
        held = next((one for one in inside if one is not None), None)
        if held is None:
            raise SpecError(
                f"the model {restorer.descriptor.name} shows no layers",
                "features are read inside the network, and this model is no torch module or hides it",
                "give the model as package.module:factory that returns a torch.nn.Module, or a fixed noise level",
            )
    return held


def find_layer(restorer: Restorer, name: str | None = None, device: str = "cpu") -> Layer:
    """The layer whose output is averaged.

    A NAFNet declares its middle blocks. Of any other network it is the last module, in the order in which they
    end, of those that give the smallest maps with more channels than the image; maps of one pixel are no maps.

    Args:
        restorer: the model.
        name: the module to take, in place of the rule.
        device: where the model is.

    Raises:
        SpecError: no module of that name, or none that gives such maps.
    """
    network, channels = network_of(restorer), restorer.descriptor.channels
    if name is None and isinstance(network, NAFNet):
        name = "middle_blks"
    known = [module for module, _ in network.named_modules() if module]
    if name is not None and name not in known:
        raise SpecError(f"the model {restorer.descriptor.name} has no layer {name!r}", change=did_you_mean(name, known))
    ramp = torch.linspace(0, 1, PROBE_EDGE, device=device)
    x_BCHW = (ramp[:, None] * ramp[None, :]).expand(1, channels, PROBE_EDGE, PROBE_EDGE).contiguous()
    seen: list[tuple[str, torch.Size]] = []
    with torch.no_grad(), _watched(network, name, lambda module, y: seen.append((module, y.shape))):
        restorer(x_BCHW)
    maps = [(module, shape) for module, shape in seen if name is not None or _is_map(shape, channels)]
    if not maps:
        raise SpecError(
            f"no layer of {restorer.descriptor.name} gives maps of features",
            "what its modules return are tokens, tuples, or nothing that is wider than the image",
            "name a module whose output is B x C x H x W: layer: NAME",
        )
    smallest = min(shape[2] * shape[3] for _, shape in maps)
    module, shape = next(one for one in reversed(maps) if one[1][2] * one[1][3] == smallest)
    return Layer(name=module, width=shape[1])


def look(restorer: Restorer, layer: Layer, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """One pass without gradient: the features, B x width, and the restorer's output.

    The features are the layer's output, its last one where it is called several times, averaged over the image.

    Args:
        restorer: the model.
        layer: as `find_layer` found it.
        x_BCHW: images in [0, 1], on the model's device.
    """
    found: list[Tensor] = []
    watched = _watched(network_of(restorer), layer.name, lambda _, y_BCHW: found.append(y_BCHW.mean(dim=(2, 3))))
    with torch.no_grad(), watched:
        output = restorer(x_BCHW)
    return found[-1], output


def features_of(restorer: Restorer, layer: Layer, images: Sequence[Tensor], slots: int, device: str = "cpu") -> Matrix:
    """Features of images of any sizes, N x width, in micro-batches of one shape.

    Args:
        restorer: the model.
        layer: as `find_layer` found it.
        images: C x H x W each.
        slots: images a forward pass.
        device: where the model is.
    """
    found = np.zeros((len(images), layer.width), dtype=np.float32)
    for batch in micro_batches([""] * len(images), images, slots):
        rows = look(restorer, layer, batch.x_BCHW.to(device))[0].cpu().numpy()
        found[list(batch.where)] = rows[: batch.count]
    return found


def _is_map(shape: torch.Size, channels: int) -> bool:
    return shape[1] > channels and min(shape[2:]) > 1


@contextmanager
def _watched(network: nn.Module, wanted: str | None, show: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Show every output B x C x H x W of a module, of all unless one is named, as they end."""
    watched = {name: module for name, module in network.named_modules() if name and wanted in (None, name)}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                show(name, output)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in watched.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
