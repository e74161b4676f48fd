"""The published restoration networks by name: how they are built, fed and read.

Key names and shapes of `build` are those of the published checkpoints. What a network's authors do
around it (domain, padding, which of several outputs counts) is data in `PUBLISHED`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from udc_ray.errors import SpecError, did_you_mean
from udc_ray.models.padding import SizeRule
from udc_ray.models.ranges import RANGES

CENTRE_CODE = (-0.0020032346, 0.035204366, -2.0214582e-05, 0.005986772, 9.432769e-05)
"""PCA code of the measured, central PSF of the ZTE Axon 20 (Feng et al., CVPR 2021), for DISCNet."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published network.

    Attributes:
        title: name in its paper.
        network: ``module:Class`` below `udc_ray.models.networks`, or the whole path.
        options: keywords of the class.
        range: domain of input and output, a key of `RANGES`.
        size: sizes that it takes.
        selects: which of several returned values is the image; None where there is one.
        code: second input, repeated for the batch.
        global_statistics: whether a pixel's result depends on the whole image, so that tiles change it.
        domain: canonical domain of the images that it was trained on.
        source: where its users get weights.
        licence: licence of the upstream.
    """

    title: str
    network: str
    options: Mapping[str, Any] = field(default_factory=dict)
    range: str = "unit"
    size: SizeRule
    selects: int | None = None
    code: tuple[float, ...] | None = None
    global_statistics: bool = False
    domain: str = "any"
    source: str
    licence: str

    def run(self, network: nn.Module, x_BCHW: Tensor, *, otherwise: str | None = None) -> Tensor:
        """Feed an image and read the result, in the network's own domain, unclamped.

        Args:
            network: as `build` returns it, with its weights.
            x_BCHW: images in [0, 1].
            otherwise: see `SizeRule.fit`.
        """
        fitted, crop = self.size.fit(RANGES[self.range].enter(x_BCHW), otherwise=otherwise)
        inputs = [fitted]
        if self.code is not None:
            code_C11 = torch.tensor(self.code, dtype=torch.float32, device=fitted.device).to(fitted.dtype)
            inputs.append(code_C11.reshape(1, -1, 1, 1).expand(len(fitted), -1, -1, -1))
        output = network(*inputs)
        return crop(output if self.selects is None else output[self.selects])


_FACTS = {
    "discnet": ("jnjaby/DISCNet", "MIT according to its readme; no licence file"),
    "udcunet": ("J-FHu/UDCUNet", "MIT"),
    "bnudc": ("JaihyunKoh/BNUDC", "BSD style"),
    "srudc": ("NamecantbeNULL/SRUDC", "none stated"),
    "uformer": ("ZhendongWang6/Uformer", "MIT"),
    "dagf": ("varun19299/deep-atrous-guided-filter", "none at top level"),
    "ecfnet": ("zhuyr97/ECFNet", "none stated"),
    "nafnet": ("megvii-research/NAFNet", "MIT"),
    "restormer": ("swz30/Restormer", "Academic Public License, non-commercial"),
    "swinir": ("JingyunLiang/SwinIR", "Apache-2.0"),
}


def _entry(family: str, **values: Any) -> Published:
    repository, licence = _FACTS[family]
    return Published(source=repository, licence=licence, **values)


def _uformer(title: str, **options: Any) -> Published:
    return _entry(
        "uformer",
        title=title,
        network="uformer:Uformer",
        options=options,
        size=SizeRule(multiple=128, published="square"),
    )


def _nafnet(title: str, encoder: tuple[int, ...], middle: int, decoder: tuple[int, ...]) -> Published:
    return _entry(
        "nafnet",
        title=title,
        network="udc_ray.models.nafnet:NAFNet",
        options={"width": 32, "encoder_blocks": encoder, "middle_blocks": middle, "decoder_blocks": decoder},
        size=SizeRule(multiple=16, published="inside"),
        global_statistics=True,
    )


def _srudc(title: str, width: int) -> Published:
    return _entry(
        "srudc",
        title=title,
        network="srudc:SRUDC",
        options={"width": width},
        range="signed",
        size=SizeRule(multiple=8, published="reflect"),
        selects=0,
        global_statistics=True,
    )


PUBLISHED: dict[str, Published] = {
    "discnet": _entry(
        "discnet",
        title="DISCNet",
        network="discnet:DISCNet",
        size=SizeRule(multiple=4, published="inside"),
        code=CENTRE_CODE,
        domain="tonemapped",
    ),
    "udcunet": _entry(
        "udcunet",
        title="UDC-UNet",
        network="udcunet:UDCUNet",
        range="linear",
        size=SizeRule(multiple=8, published="none"),
        domain="tonemapped",
    ),
    "bnudc": _entry(
        "bnudc", title="BNUDC", network="bnudc:BNUDC", size=SizeRule(multiple=16, published="none"), selects=2
    ),
    "srudc_f": _srudc("SRUDC-f", 24),
    "srudc_l": _srudc("SRUDC-l", 16),
    "uformer_t": _uformer("Uformer-T", width=16),
    "uformer_s": _uformer("Uformer-S", width=32),
    "uformer_b": _uformer("Uformer-B", width=32, depths=(1, 2, 8, 8, 2, 8, 8, 2, 1)),
    "dagf": _entry(
        "dagf",
        title="DAGF",
        network="dagf:DAGF",
        range="signed",
        size=SizeRule(multiple=4, published="none"),
        global_statistics=True,
    ),
    "ecfnet": _entry(
        "ecfnet",
        title="ECFNet",
        network="ecfnet:ECFNet",
        size=SizeRule(multiple=8, published="none"),
        selects=-1,
        domain="tonemapped",
    ),
    "nafnet_sidd_w32": _nafnet("NAFNet, SIDD width 32", (2, 2, 4, 8), 12, (2, 2, 2, 2)),
    "nafnet_gopro_w32": _nafnet("NAFNet, GoPro width 32", (1, 1, 1, 28), 1, (1, 1, 1, 1)),
    "restormer_denoise": _entry(
        "restormer",
        title="Restormer, denoising",
        network="restormer:Restormer",
        size=SizeRule(multiple=8, published="reflect"),
        global_statistics=True,
    ),
    "swinir_color_dn": _entry(
        "swinir",
        title="SwinIR, colour denoising",
        network="swinir:SwinIR",
        size=SizeRule(multiple=8, published="mirror"),
    ),
}
"""Every published network by the name under which it is built."""


def published(name: str) -> Published:
    """Facts about a published network.

    Raises:
        SpecError: an unknown name.
    """
    if name not in PUBLISHED:
        raise SpecError(f"unknown network {name!r}", change=did_you_mean(name, PUBLISHED))
    return PUBLISHED[name]


def build(name: str, **options: Any) -> nn.Module:
    """Build a bare published network in evaluation mode, its weights as they come.

    Args:
        name: a name of `PUBLISHED`.
        options: keywords of its class that differ from the published configuration, such as
            ``image_size`` of Uformer and SwinIR.

    Raises:
        SpecError: an unknown name, or an option that its class does not take.
    """
    entry = published(name)
    module, _, attribute = entry.network.partition(":")
    where = module if "." in module else f"udc_ray.models.networks.{module}"
    network_class: type[nn.Module] = getattr(importlib.import_module(where), attribute)
    try:
        return network_class(**{**entry.options, **options}).eval()
    except TypeError as error:
        raise SpecError(f"{entry.title} cannot be built: {error}", "an option that it does not take") from error


def run_published(name: str, network: nn.Module, image: Tensor) -> Tensor:
    """Run a published network as its authors do, up to the clamp.

    The image is mapped to the network's domain, padded and cropped by the published rule, and the published one of
    several outputs is returned, in the network's own domain, unclamped and differentiable.

    Args:
        name: a name of `PUBLISHED`.
        network: the network, as `build` returns it.
        image: N x C x H x W in [0, 1], float32 or float64, of the type of the weights.

    Raises:
        DataError: a size that the network does not take, and for which its authors define no padding.
    """
    return published(name).run(network, image)
