"""The auxiliary network of AGDM's guide (Lin et al. 2024): features that small perturbations hardly move.

An encoder of smooth layers, so that second derivatives exist, whose features are declared at three resolutions.
A restoration head reads nothing but these features: what a photograph looks like has to be in them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.errors import DataError, WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.location import local_folder
from udc_ray.models.checkpoints import load_into, read_state_dict

WEIGHTS, CARD = "guide.safetensors", "card.json"
GUIDE_FILES = (WEIGHTS, CARD)
"""The files of a guide's folder."""
DEFAULT_GUIDE = Path(__file__).parent.parent / "weights" / "guide"
"""Folder of the guide that is shipped."""

LENGTH_EPS = 1e-6
"""Added to the squared length of a feature: a root has no derivative at 0, and a feature of length 0 is 0."""


class FeatureNetwork(Protocol):
    """What a guide needs of a network."""

    def features(self, x_BCHW: Tensor) -> Sequence[Tensor]:
        """Feature maps of images in [0, 1], of at most length 1 over the channels; twice differentiable."""
        ...


class GuideShape(BaseModel):
    """Size of a guide's network.

    Attributes:
        widths: channels of the declared layers, which lie at 1, 1/2 and 1/4 of the resolution.
        blocks: residual blocks before each of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (16, 32, 64)
    blocks: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = (1, 1, 2)


class GuideNetwork(nn.Module):
    """Encoder with three declared layers, and a head that restores from them.

    There is no normalisation over positions: a feature depends on the pixels around it only.

    Args:
        shape: its size.
    """

    def __init__(self, shape: GuideShape | None = None) -> None:
        super().__init__()
        self.shape = shape or GuideShape()
        widths = self.shape.widths
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(count)))
            for width, count in zip(widths, self.shape.blocks, strict=True)
        )
        self.head = _Head(widths)

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """The declared layers, each of length 1 over the channels at every position.

        Args:
            x_BCHW: B x 3 x H x W, [0, 1] where it is an image; of any size.

        Returns:
            B x width x h x w at 1, 1/2 and 1/4 of H and W, rounded up.
        """
        if x_BCHW.shape[1] != 3:
            raise DataError(
                f"the guide's network takes RGB images, these have {x_BCHW.shape[1]} channels",
                "raw planes where RGB is expected",
                "leave the guided purifier out, or give it another guide",
            )
        maps, hidden = [], self.stem(2 * x_BCHW - 1)
        for number, stage in enumerate(self.stages):
            hidden = stage(self.down[number - 1](F.silu(hidden)) if number else hidden)
            maps.append(unit_length(hidden))
        return maps

    def restore(self, features: Sequence[Tensor]) -> Tensor:
        """The head: B x 3 x H x W, unclamped, from what `features` gave."""
        restored: Tensor = self.head(features)
        return restored

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Restore B x 3 x H x W in [0, 1]; the output is unclamped."""
        return self.restore(self.features(x_BCHW))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        added: Tensor = self.second(F.silu(self.first(F.silu(x_BCHW))))
        return x_BCHW + added


class _Head(nn.Module):
    """No path leads past the features, not even the image's own: it would leave them nothing to carry."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(width, widths[0], 1) for width in widths)
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        total: Tensor = self.project[0](features[0])
        for project, found in zip(self.project[1:], features[1:], strict=True):
            total = total + F.interpolate(project(found), size, mode="bilinear", align_corners=False)
        restored: Tensor = 0.5 + self.last(F.silu(total))
        return restored


def unit_length(x_BCHW: Tensor) -> Tensor:
    """Each position's channels divided by their length; smooth everywhere."""
    return x_BCHW * (x_BCHW.square().sum(dim=1, keepdim=True) + LENGTH_EPS).rsqrt()


def layer_distances(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean over positions of the squared distance of two feature maps: B values for each layer, L x B.

    A value lies between 0 and 4, as the features have length 1.
    """
    pairs = zip(found, wanted, strict=True)
    return torch.stack([(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs])


class _Card(BaseModel):
    """What the loader needs of a card; the rest is for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    network: GuideShape
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def guide_folder(weights: str | None) -> Path:
    """Where a guide lies on this machine: the shipped one, or a folder or URI, which is fetched."""
    return DEFAULT_GUIDE if weights is None else local_folder(weights, GUIDE_FILES, WeightsError)


def read_card(folder: Path) -> GuideShape:
    """Read the card of a guide and compare the hash of its weights, without loading them."""
    for name in GUIDE_FILES:
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder / name} is missing",
                "a broken installation" if folder == DEFAULT_GUIDE else "not the folder of a guide",
                f"a guide is a folder with {' and '.join(GUIDE_FILES)}, as `udc-ray train guide` writes it",
            )
    try:
        values: Any = json.loads((folder / CARD).read_text())
        card = _Card.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise WeightsError(
            f"{folder / CARD}: {where}: {first['msg']}",
            f"given: {first['input']!r}",
            "write network: {widths, blocks} and the sha256 of the weights into the card",
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / CARD} cannot be read: {error}", "a truncated file, or not JSON") from error
    digest = file_sha256(folder / WEIGHTS)
    if digest != card.sha256:
        raise WeightsError(
            f"{folder / WEIGHTS} is not the file that {CARD} describes",
            "a truncated copy, or weights and card of different guides",
            f"copy the whole folder again; the file's sha256 is {digest}",
        )
    return card.network


def load_guide(folder: Path = DEFAULT_GUIDE, device: str = "cpu") -> GuideNetwork:
    """Load a guide's network: checked hash, strict keys, evaluation mode, frozen; nothing is downloaded.

    Args:
        folder: guide.safetensors and card.json.
        device: ``cpu`` or ``cuda``.
    """
    shape = read_card(folder)
    with torch.random.fork_rng(devices=[]):  # the weights made here are replaced; nobody's generator moves
        network = GuideNetwork(shape)
    load_into(network, read_state_dict(folder / WEIGHTS), folder / WEIGHTS)
    return network.to(device).eval().requires_grad_(False)
