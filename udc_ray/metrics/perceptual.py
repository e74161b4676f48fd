"""Perceptual distances: what two images look like to a network, instead of pixel by pixel.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS), CVPR
2018; Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric" (ST-LPIPS), ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from udc_ray.errors import WeightsError
from udc_ray.hashing import file_sha256
from udc_ray.location import Place, place
from udc_ray.metrics.trunks import WIDTHS, AlexNet, ShiftTolerantAlexNet, Trunk
from udc_ray.models.checkpoints import load_into, read_state_dict
from udc_ray.params import Params
from udc_ray.registry import Registry
from udc_ray.spec import Entry

SHIPPED = Path(__file__).parent.parent / "weights" / "stlpips" / "stlpips_alex.safetensors"

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
"""Mean and standard deviation of ImageNet's channels, on [-1, 1]."""

_KEPT_BYTES = 128 * 2**20
"""Of reference features that are remembered."""


class PerceptualDistance(nn.Module):
    """Weighted squared distance of normalised features (equation 1 of LPIPS), 0 for equal images.

    The features of the second argument are remembered while it comes again, as the truth does at
    every step of an attack; what is remembered has the bits of a fresh computation.

    Args:
        trunk: gives the feature maps.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(1, width, 1, 1)) for width in WIDTHS)
        self._kept: list[tuple[Tensor, list[Tensor]]] = []

    @property
    def smallest(self) -> int:
        """Least height and width of an image, in pixels."""
        return self.trunk.smallest

    def forward(self, x_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Distance per image.

        Args:
            x_BCHW: B x 3 x H x W, [0, 1] where it is an image; the gradient goes to it.
            reference_BCHW: of the same shape and type, a constant.

        Returns:
            B values, not negative.
        """
        distance_B = x_BCHW.new_zeros(len(x_BCHW))
        references = self._reference_features(reference_BCHW.detach())
        for weight, found, wanted in zip(self.heads, self.features(x_BCHW), references, strict=True):
            distance_B = distance_B + (weight * (found - wanted).square()).sum(dim=1).mean(dim=(1, 2))
        return distance_B

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """The five feature maps, of Euclidean length 1 over the channels at every place."""
        shift, scale = (
            torch.tensor(v, dtype=torch.float32, device=x_BCHW.device).to(x_BCHW.dtype)[:, None, None]
            for v in (_SHIFT, _SCALE)
        )
        standard_BCHW = (2 * x_BCHW - 1 - shift) / scale
        # Convolutions, blurs and pools are two to ten times as fast on a CPU with channels last.
        maps = self.trunk(standard_BCHW.contiguous(memory_format=torch.channels_last))
        # `vector_norm` has a gradient (0) where all features are 0; a root of a sum has none there.
        return [m / (torch.linalg.vector_norm(m, dim=1, keepdim=True) + 1e-10) for m in maps]

    def _reference_features(self, reference_BCHW: Tensor) -> list[Tensor]:
        for known, features in self._kept:
            if _alike(known, reference_BCHW) and torch.equal(known, reference_BCHW):
                return features
        with torch.no_grad():
            features = self.features(reference_BCHW)
        entries = [(reference_BCHW.clone(), features), *self._kept]
        totals = accumulate(sum(m.nbytes for m in maps) for _, maps in entries)
        self._kept = [entry for entry, total in zip(entries, totals, strict=True) if total <= _KEPT_BYTES]
        return features


def _alike(first: Tensor, second: Tensor) -> bool:
    return (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)


class Perceptual(Params):
    """A perceptual distance as data: which one, and where its weights are."""

    def load(self) -> PerceptualDistance:
        """Build it on the CPU, in float32."""
        raise WeightsError(f"the distance {self.name!r} cannot be loaded", "it does not define load()")

    def weight_hashes(self) -> dict[str, str]:
        """Sha256 of the weight files, by a name that is no path."""
        return {}

    def why_not(self, channels: int, height: int, width: int) -> str | None:
        """What keeps it from judging images of this shape, if anything does."""
        if channels != 3:
            return f"it compares RGB images, and these have {channels} channels"
        smallest = TRUNKS[self.name].smallest
        return f"it needs {smallest} x {smallest} pixels" if min(height, width) < smallest else None


class ShiftTolerant(Perceptual):
    """ST-LPIPS with the AlexNet trunk; its weights come with udc-ray."""

    name: ClassVar[str] = "stlpips"

    def load(self) -> PerceptualDistance:
        if not SHIPPED.is_file():
            raise WeightsError(
                f"the weights of the perceptual distance are missing: {SHIPPED}",
                "an installation without its data files",
                "install udc-ray again",
            )
        distance = PerceptualDistance(ShiftTolerantAlexNet())
        load_into(distance, read_state_dict(SHIPPED), SHIPPED)
        return distance

    def weight_hashes(self) -> dict[str, str]:
        return {"stlpips": file_sha256(SHIPPED)}


class Official(Perceptual):
    """LPIPS 0.1 with the AlexNet trunk, the number of most papers; both weight files are the user's.

    Nothing is downloaded. Its numbers are not comparable with those of ST-LPIPS.
    """

    name: ClassVar[str] = "lpips-alex"

    backbone: str
    """Path or URI of torchvision's AlexNet state dict, such as ``alexnet-owt-7be5be79.pth``."""
    heads: str
    """Path or URI of the linear heads, version 0.1: ``alex.pth`` of the ``lpips`` package."""

    def load(self) -> PerceptualDistance:
        distance = PerceptualDistance(AlexNet())
        backbone, heads = place(self.backbone, WeightsError), place(self.heads, WeightsError)
        load_into(distance.trunk, _renamed(backbone, _TORCHVISION, "a state dict of torchvision's AlexNet"), backbone)
        load_into(distance.heads, _renamed(heads, _HEADS, "the heads of LPIPS for AlexNet"), heads)
        return distance

    def weight_hashes(self) -> dict[str, str]:
        files = {"backbone": self.backbone, "heads": self.heads}
        return {name: file_sha256(place(file, WeightsError)) for name, file in files.items()}


_TORCHVISION = {
    f"features.{theirs}.{part}": f"conv{ours}.{part}"
    for ours, theirs in enumerate((0, 3, 6, 8, 10), start=1)
    for part in ("weight", "bias")
}
_HEADS = {f"lin{k}.model.1.weight": str(k) for k in range(len(WIDTHS))}


def _renamed(path: Place, names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """The entries that are needed, under our names; others, such as a classifier, are left out."""
    state = read_state_dict(path)
    missing = next((theirs for theirs in names if theirs not in state), None)
    if missing is not None:
        raise WeightsError(
            f"{path} is not {what}: the key {missing} is missing (the first key is {next(iter(state))})",
            "another file, or backbone and heads are exchanged",
            "give backbone: torchvision's alexnet-owt-7be5be79.pth and heads: alex.pth of lpips, version 0.1",
        )
    return {ours: state[theirs] for theirs, ours in names.items()}


TRUNKS: dict[str, type[Trunk]] = {ShiftTolerant.name: ShiftTolerantAlexNet, Official.name: AlexNet}

PERCEPTUAL: Registry[Perceptual] = Registry(
    "perceptual distance",
    {
        "stlpips": "udc_ray.metrics.perceptual:ShiftTolerant",
        "lpips-alex": "udc_ray.metrics.perceptual:Official",
    },
)
"""Perceptual distances by name."""

NONE = "none"
"""In place of a name: no distance is measured."""


def get_perceptual(entry: Entry) -> Perceptual | None:
    """The distance that a spec asks for; None for ``none``."""
    if entry.name == NONE:
        return None
    found: Perceptual = PERCEPTUAL.get(entry.name).build("perceptual distance", entry.params)
    return found


@lru_cache(maxsize=4)
def loaded(perceptual: Perceptual, device: torch.device, dtype: torch.dtype) -> PerceptualDistance:
    """A distance on a device, frozen; loaded once a process."""
    distance = perceptual.load().to(device, dtype).eval().requires_grad_(False)
    distance.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return distance
