"""The models that come by name."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import nn

from udc_ray.errors import WeightsError
from udc_ray.hashing import file_sha256, module_sha256
from udc_ray.location import Place, place
from udc_ray.models.adapter import as_restorer, load_network, not_recognised
from udc_ray.models.base import Descriptor, ModuleRestorer, Restorer
from udc_ray.models.checkpoints import load_into, read_state_dict
from udc_ray.models.nafnet import NAFNet
from udc_ray.models.networks.resnet_cifar import CifarResNet, with_counters
from udc_ray.models.published import PUBLISHED
from udc_ray.models.recognise import plain_keys, recognise
from udc_ray.models.spandrel_door import load_with_spandrel
from udc_ray.params import Params
from udc_ray.registry import Registry

_WEIGHTS = Path(__file__).parent.parent / "weights"
DEFAULT_WEIGHTS = _WEIGHTS / "restorer" / "restorer.safetensors"
CIFAR_WEIGHTS = _WEIGHTS / "cifar10" / "resnet20.safetensors"


class ZooModel(Params):
    """A model as data: its architecture and where its weights are."""

    weights: str | None = None
    """Path or URI of a weights file."""

    def load(self) -> Restorer:
        """Build the network and read its weights."""
        raise WeightsError(f"the model {self.name!r} cannot be loaded", "it does not define load()")

    def _file(self) -> Place | None:
        return place(self.weights, WeightsError) if self.weights else None


def describe(
    network: nn.Module, name: str, weights: Place | None, *, source: str = "", licence: str = ""
) -> Descriptor:
    """Describe a network; without a file, the hash is of the values themselves, if it has any.

    A network with a number of `classes` is a classifier.
    """
    values = module_sha256(network) if weights is None and network.state_dict() else None
    convolution = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = getattr(network, "channels", convolution.in_channels if convolution is not None else 3)
    classes = getattr(network, "classes", None)
    return Descriptor(
        name=name,
        parameters=sum(p.numel() for p in network.parameters()),
        channels=channels if channels in (3, 4) else 3,
        size_multiple=int(getattr(network, "size_multiple", 1)),
        sha256=file_sha256(weights) if weights is not None else values,
        source=source,
        licence=licence,
        task="classification" if isinstance(classes, int) else "restoration",
        classes=classes if isinstance(classes, int) else None,
    )


class Identity(ZooModel):
    """Returns its input: a control, whose attacked PSNR is that of the attacked image itself."""

    name: ClassVar[str] = "identity"

    def load(self) -> ModuleRestorer:
        if self.weights is not None:
            raise WeightsError("the model 'identity' has no weights", change="leave the weights out")
        return ModuleRestorer(nn.Identity(), describe(nn.Identity(), self.name, None))


class NAFNetModel(ZooModel):
    """A NAFNet with any sizes, and weights of one's own."""

    name: ClassVar[str] = "nafnet"
    width: int = Field(default=32, ge=1)
    encoder_blocks: tuple[int, ...] = (2, 2, 4, 8)
    middle_blocks: int = Field(default=12, ge=0)
    decoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    channels: int = Field(default=3, ge=3, le=4)

    def load(self) -> ModuleRestorer:
        path = self._file()
        if path is None:
            raise WeightsError("the model 'nafnet' needs weights", change="add --weights PATH")
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise WeightsError("encoder_blocks and decoder_blocks differ in length", change="give one number per level")
        network = NAFNet(self.width, self.encoder_blocks, self.middle_blocks, self.decoder_blocks, self.channels)
        load_into(network, read_state_dict(path), path)
        return ModuleRestorer(network, describe(network, self.name, path, source=str(path)), channels_last=True)


class DefaultModel(ZooModel):
    """The shipped restorer, NAFNet(16, (1, 1, 2, 4), 2, (1, 1, 1, 1)); its card lies beside the weights."""

    name: ClassVar[str] = "default"

    def load(self) -> ModuleRestorer:
        path = self._file() or DEFAULT_WEIGHTS
        _require_shipped(path, DEFAULT_WEIGHTS, "the default restorer")
        network = NAFNet(16, (1, 1, 2, 4), 2, (1, 1, 1, 1))
        load_into(network, read_state_dict(path), path)
        source, licence = (str(path), "") if self.weights else ("trained by udc-ray; see card.json", "Apache-2.0")
        return ModuleRestorer(
            network, describe(network, self.name, path, source=source, licence=licence), channels_last=True
        )


class CifarResNet20(ZooModel):
    """A classifier of 32 x 32 images into CIFAR-10's ten classes; ResNet-20, 91.7 % on its test images as published."""

    name: ClassVar[str] = "cifar-resnet20"

    def load(self) -> ModuleRestorer:
        path = self._file() or CIFAR_WEIGHTS
        _require_shipped(path, CIFAR_WEIGHTS, self.name)
        network = CifarResNet(blocks=3)
        load_into(network, with_counters(network, read_state_dict(path)), path)
        shipped = "github.com/akamaster/pytorch_resnet_cifar10; see card.json", "BSD-2-Clause"
        source, licence = (str(path), "") if self.weights else shipped
        return ModuleRestorer(network, describe(network, self.name, path, source=source, licence=licence))


def _require_shipped(path: Place, shipped: Path, model: str) -> None:
    if path == shipped and not shipped.is_file():
        raise WeightsError(
            f"the weights of {model} are missing: {path}",
            "an installation without its data files",
            "install udc-ray again, or give --weights PATH",
        )


def load_file(path: Place) -> Restorer:
    """Load a network from its weights file alone: a NAFNet of any size, or a published one, known by its keys."""
    state = plain_keys(read_state_dict(path))
    found = recognise(state)
    if found is None:
        by_spandrel = load_with_spandrel(path, state)
        if by_spandrel is None:
            raise not_recognised(path, state)
        return by_spandrel
    if found.family != "nafnet":
        return as_restorer(found, state, path)
    network = load_network(found, state, path)
    return ModuleRestorer(network, describe(network, path.stem, path, source=str(path)), channels_last=True)


MODELS: Registry[ZooModel] = Registry(
    "model",
    {
        "cifar-resnet20": "udc_ray.models.zoo:CifarResNet20",
        "default": "udc_ray.models.zoo:DefaultModel",
        "identity": "udc_ray.models.zoo:Identity",
        "nafnet": "udc_ray.models.zoo:NAFNetModel",
        **{name: f"udc_ray.models.published_models:{name}" for name in PUBLISHED},
    },
)
"""Models by name; a path and ``package.module:factory`` are understood by `udc_ray.models.loading`."""
