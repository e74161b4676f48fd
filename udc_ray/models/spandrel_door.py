"""Architectures that `spandrel` knows, through the optional extra ``udc-ray[spandrel]``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from udc_ray.errors import WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.location import Place
from udc_ray.models.base import Descriptor
from udc_ray.models.padding import SizeRule


@dataclass
class SpandrelRestorer:
    """A network that spandrel built; padded at the right and the bottom by reflection where its size rule asks for it.

    Attributes:
        network: B x C x H x W in [0, 1] to the same shape.
        size: sizes that it takes.
        descriptor: what is known of it.
    """

    network: nn.Module
    size: SizeRule
    descriptor: Descriptor

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        fitted, crop = self.size.fit(x_BCHW)
        # not spandrel's own call: it runs in inference mode, through which no gradient flows
        return crop(self.network(fitted))

    def to(self, device: str) -> SpandrelRestorer:
        self.network.to(device)
        return self


def load_with_spandrel(path: Place, state: Mapping[str, Tensor]) -> SpandrelRestorer | None:
    """Load a checkpoint that no network here knows.

    Args:
        path: the file, for messages and its hash.
        state: its state dict.

    Returns:
        None where spandrel is not installed, or does not know it either.

    Raises:
        WeightsError: it is of a network that restores no image of the same size.
    """
    try:
        spandrel: Any = importlib.import_module("spandrel")
    except ImportError:  # not installed, or without a torchvision that can be imported
        return None
    try:
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError:
        return None
    if found.purpose == "SR" or found.scale != 1 or found.input_channels != found.output_channels:
        raise WeightsError(
            f"{path} are weights of {found.architecture.name}, which makes other images than it takes",
            f"it is a network of scale {found.scale}, from {found.input_channels} to {found.output_channels} channels",
            "give a restorer: one image of the same size",
        )
    rule = found.size_requirements
    descriptor = Descriptor(
        name=found.architecture.name,
        parameters=sum(p.numel() for p in found.model.parameters()),
        channels=found.input_channels,
        size_multiple=rule.multiple_of,
        source=f"{path}, by spandrel",
        sha256=file_sha256(path),
    )
    size = SizeRule(multiple=rule.multiple_of, published="square" if rule.square else "reflect")
    return SpandrelRestorer(found.model.eval().requires_grad_(False), size, descriptor)
