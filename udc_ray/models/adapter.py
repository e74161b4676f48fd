"""Published networks as restorers: the canonical domain outside, their own inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from udc_ray.errors import SpecError, WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.location import Place
from udc_ray.models.base import Descriptor
from udc_ray.models.checkpoints import load_into, read_state_dict, require_fit
from udc_ray.models.published import Published, build, published
from udc_ray.models.ranges import RANGES
from udc_ray.models.recognise import Recognised, plain_keys, recognise, require_published
from udc_ray.models.tiling import tiled

OTHER_SIZES = "reflect"
"""Padding where a network's authors define none: what most of the others do."""
AVERAGED = ("params_ema", "params", "state_dict")
"""Order in which weights are looked for where the published configuration evaluates the running average."""


class PublishedRestorer:
    """A published network that takes and returns images in [0, 1]; see `udc_ray.models.base.Restorer`.

    Domain, padding, PSF code and output selection are inside, and gradients flow through all of them. Padding is
    made inside, so nothing outside can perturb it.

    Args:
        network: as `build` returns it, with its weights.
        entry: what is known of it.
        descriptor: name, sizes and licence, for reports.
        tile: edge of tiles in px for large images, or None for the whole image at once.
        overlap: px by which tiles reach into one another.
    """

    def __init__(
        self,
        network: nn.Module,
        entry: Published,
        descriptor: Descriptor,
        *,
        tile: int | None = None,
        overlap: int = 32,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.entry, self.descriptor, self.tile, self.overlap = entry, descriptor, tile, overlap
        if tile is not None and entry.global_statistics:
            raise SpecError(
                f"{entry.title} cannot be tiled: a pixel of its result depends on the whole image",
                "it pools or attends over all pixels, so each tile would be restored as an image of its own",
                "leave tile out, or crop the images (data.size)",
            )

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if self.tile is None:
            return self._whole(x_BCHW)
        return tiled(self._whole, x_BCHW, self.tile, self.overlap)

    def to(self, device: str) -> PublishedRestorer:
        self.network.to(device)
        return self

    def _whole(self, x_BCHW: Tensor) -> Tensor:
        return RANGES[self.entry.range].leave(self.entry.run(self.network, x_BCHW, otherwise=OTHER_SIZES))


def load_published(
    path: Place, name: str | None = None, *, tile: int | None = None, overlap: int = 32
) -> PublishedRestorer:
    """Load a published network from its checkpoint.

    Args:
        path: the file.
        name: the network that it has to be of; recognised by its keys unless given.
        tile: see `PublishedRestorer`.
        overlap: see `PublishedRestorer`.

    Raises:
        WeightsError: a file that cannot be read, or of another network.
    """
    state = plain_keys(read_state_dict(path))
    found = recognise(state) if name is None else require_published(state, name, path)
    if found is None:
        raise not_recognised(path, state)
    return as_restorer(found, state, path, tile=tile, overlap=overlap)


def as_restorer(
    found: Recognised, state: Mapping[str, Tensor], path: Place, *, tile: int | None = None, overlap: int = 32
) -> PublishedRestorer:
    """The restorer of a checkpoint that was read and recognised; see `load_published`."""
    if found.family == "udcunet":  # its published configuration evaluates the running average
        state = plain_keys(read_state_dict(path, AVERAGED))
    network, entry = load_network(found, state, path), published(found.name)
    return PublishedRestorer(network, entry, describe(network, found, path), tile=tile, overlap=overlap)


def load_network(found: Recognised, state: Mapping[str, Tensor], path: Place) -> nn.Module:
    """Build the network that a state dict was recognised as, and give it its weights.

    Raises:
        WeightsError: a key or a shape that does not fit.
    """
    with torch.device("meta"):  # sizes from a foreign file cost nothing before they fit
        require_fit(build(found.name, **found.options), state, path)
    network = build(found.name, **found.options)
    load_into(network, state, path)
    return network


def describe(network: nn.Module, found: Recognised, path: Place) -> Descriptor:
    """What is known of a published network and its file."""
    entry = published(found.name)
    domain: Literal["any", "tonemapped"] = "tonemapped" if entry.domain == "tonemapped" else "any"
    return Descriptor(
        name=found.name if not found.options else found.title,
        parameters=sum(p.numel() for p in network.parameters()),
        channels=int(found.options.get("channels", 3)),
        size_multiple=entry.size.multiple,
        domain=domain,
        global_statistics=entry.global_statistics,
        source=str(path),
        licence=f"upstream: {entry.licence}",
        sha256=file_sha256(path),
    )


def not_recognised(path: Place, state: Mapping[str, Tensor]) -> WeightsError:
    """What a user is told of a checkpoint that no known network made."""
    first = next(iter(state))
    return WeightsError(
        f"{path} are the weights of no network known here (the first key is {first})",
        "a checkpoint alone does not say how another network is built",
        "give the model that it belongs to: --model package.module:factory --weights PATH; "
        "or install udc-ray[spandrel], which knows more",
    )
