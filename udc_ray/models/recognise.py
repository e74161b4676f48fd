"""What network a state dict belongs to, and its sizes, from its keys and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from udc_ray.errors import WeightsError
from udc_ray.location import Place
from udc_ray.models.checkpoints import first_difference
from udc_ray.models.published import PUBLISHED, build

State = Mapping[str, Tensor]
_NEW_WEIGHT_NORM = re.compile(r"\.parametrizations\.weight\.original([01])$")


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A network that a checkpoint belongs to.

    Attributes:
        name: the published network whose class it is.
        options: its sizes, where they differ from that one's.
        family: the class, for messages.
    """

    name: str
    family: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name for people, with the sizes that differ."""
        sizes = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{PUBLISHED[self.name].title}{f' ({sizes})' if sizes else ''}"


@dataclass(frozen=True)
class _Family:
    names: tuple[str, ...]
    mark: str
    """A key that no other family has."""
    sizes: Callable[[State], dict[str, Any]]


def plain_keys(state: State) -> dict[str, Tensor]:
    """Keys as the published files have them: weight norm as ``weight_g`` and ``weight_v``."""
    return {_NEW_WEIGHT_NORM.sub(lambda m: ".weight_" + "gv"[int(m[1])], key): value for key, value in state.items()}


def recognise(state: State) -> Recognised | None:
    """The published network that a state dict looks like; None where it looks like none."""
    for name, family in _FAMILIES.items():
        if family.mark not in state:
            continue
        try:
            sizes = family.sizes(state)
        except (KeyError, IndexError, ZeroDivisionError):  # the mark alone: a file that was cut, or something like it
            sizes = {}
        return _nearest(name, family.names, sizes)
    return None


def require_published(state: State, wanted: str, path: Place) -> Recognised:
    """The network of a file that has to be of one kind.

    Raises:
        WeightsError: it is of another; names the network that it looks like, and the first differing key.
    """
    family = next(name for name, f in _FAMILIES.items() if wanted in f.names)
    found = recognise(state)
    if found is not None and found.family == family:
        return found
    with torch.device("meta"):
        difference = first_difference(build(wanted), state)
    looks = f"they look like those of {found.title}" if found is not None else "they look like no network known here"
    raise WeightsError(
        f"{path} are no weights of {PUBLISHED[wanted].title}: {difference}",
        looks,
        f"give --model {found.name}" if found is not None else "see what a file holds with `udc-ray show FILE`",
    )


def _nearest(family: str, names: tuple[str, ...], sizes: dict[str, Any]) -> Recognised:
    """The published configuration with most sizes in common, and what differs from it."""

    def differing(name: str) -> dict[str, Any]:
        usual = {**_DEFAULTS.get(family, {}), **PUBLISHED[name].options}
        return {key: value for key, value in sizes.items() if usual.get(key) != value}

    best = min(names, key=lambda name: len(differing(name)))
    return Recognised(name=best, family=family, options=differing(best))


_DEFAULTS: dict[str, dict[str, Any]] = {
    "discnet": {"channels": 3, "width": 32},
    "udcunet": {"channels": 3, "width": 32, "blocks": 2, "bottom_blocks": 8},
    "srudc": {"channels": 3, "depths": (16, 16, 16, 32, 16, 16, 16)},
    "uformer": {
        "channels": 3,
        "image_size": 128,
        "depths": (2,) * 9,
        "heads": (1, 2, 4, 8, 16, 16, 8, 4, 2),
    },
    "ecfnet": {"channels": 3, "width": 24, "blocks": 6},
    "nafnet": {"channels": 3},
    "restormer": {
        "channels": 3,
        "width": 48,
        "blocks": (4, 6, 6, 8),
        "refinement_blocks": 4,
        "heads": (1, 2, 4, 8),
        "expansion": 2.66,
        "norm_bias": False,
    },
    "swinir": {
        "channels": 3,
        "image_size": 128,
        "width": 180,
        "depths": (6,) * 6,
        "heads": (6,) * 6,
        "window": 8,
        "mlp_ratio": 2.0,
    },
    "bnudc": {"high_width": 72, "blocks": 6},
}
"""Sizes of the published configurations that are the defaults of the classes."""


def _count(state: State, pattern: str) -> int:
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def _discnet(state: State) -> dict[str, Any]:
    width, channels = state["conv_11.0.weight"].shape[:2]
    return {"width": width, "channels": channels}


def _udcunet(state: State) -> dict[str, Any]:
    width, channels = state["cond_head.0.weight"].shape[:2]
    blocks, bottom = _count(state, r"enconv_layer0\.(\d+)\."), _count(state, r"Bottom_conv\.(\d+)\.")
    return {"width": width, "channels": channels, "blocks": blocks, "bottom_blocks": bottom}


def _bnudc(state: State) -> dict[str, Any]:
    return {
        "high_width": state["shallow_feat.0.weight"].shape[0],
        "blocks": _count(state, r"orsnet\.orb1\.body\.(\d+)\.pre_conv1"),
    }


def _srudc(state: State) -> dict[str, Any]:
    width, channels = state["inconv.proj.weight"].shape[:2]
    depths = tuple(_count(state, rf"layers\.{n}\.blocks\.(\d+)\.") for n in range(_count(state, r"layers\.(\d+)\.")))
    return {"width": width, "channels": channels, "depths": depths}


def _uformer(state: State) -> dict[str, Any]:
    width, channels = state["input_proj.proj.0.weight"].shape[:2]
    stages = [*(f"encoderlayer_{n}" for n in range(4)), "conv", *(f"decoderlayer_{n}" for n in range(4))]
    tables = [state[f"{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages]
    return {
        "width": width,
        "channels": channels,
        "depths": tuple(_count(state, rf"{stage}\.blocks\.(\d+)\.") for stage in stages),
        "heads": tuple(table.shape[1] for table in tables),
    }


def _ecfnet(state: State) -> dict[str, Any]:
    return {
        "width": state["Encoder.0.layers.0.convs.0.conv.0.weight"].shape[0],
        "blocks": _count(state, r"Encoder\.0\.layers\.(\d+)\."),
    }


def _nafnet(state: State) -> dict[str, Any]:
    width, channels = state["intro.weight"].shape[:2]
    levels = range(_count(state, r"downs\.(\d+)\."))
    return {
        "width": width,
        "channels": channels,
        "encoder_blocks": tuple(_count(state, rf"encoders\.{n}\.(\d+)\.") for n in levels),
        "middle_blocks": _count(state, r"middle_blks\.(\d+)\."),
        "decoder_blocks": tuple(_count(state, rf"decoders\.{n}\.(\d+)\.") for n in levels),
    }


def _restormer(state: State) -> dict[str, Any]:
    width, channels = state["patch_embed.proj.weight"].shape[:2]
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    hidden = state["encoder_level1.0.ffn.project_out.weight"].shape[1]
    return {
        "width": width,
        "channels": channels,
        "blocks": tuple(_count(state, rf"{level}\.(\d+)\.") for level in levels),
        "refinement_blocks": _count(state, r"refinement\.(\d+)\."),
        "heads": tuple(state[f"{level}.0.attn.temperature"].shape[0] for level in levels),
        "expansion": 2.66 if int(width * 2.66) == hidden else hidden / width,
        "norm_bias": "encoder_level1.0.norm1.body.bias" in state,
    }


def _swinir(state: State) -> dict[str, Any]:
    width, channels = state["conv_first.weight"].shape[:2]
    groups = range(_count(state, r"layers\.(\d+)\."))
    first = "layers.{}.residual_group.blocks.0.{}"
    tables = [state[first.format(n, "attn.relative_position_bias_table")] for n in groups]
    window = (int(round(tables[0].shape[0] ** 0.5)) + 1) // 2
    mask = state.get("layers.0.residual_group.blocks.1.attn_mask")
    return {
        "width": width,
        "channels": channels,
        "depths": tuple(_count(state, rf"layers\.{n}\.residual_group\.blocks\.(\d+)\.") for n in groups),
        "heads": tuple(table.shape[1] for table in tables),
        "window": window,
        "mlp_ratio": state[first.format(0, "mlp.fc1.weight")].shape[0] / width,
        "image_size": 128 if mask is None else window * int(round(mask.shape[0] ** 0.5)),
    }


def _fixed(state: State) -> dict[str, Any]:
    return {}


_FAMILIES = {
    "discnet": _Family(("discnet",), "conv_11.0.weight", _discnet),
    "udcunet": _Family(("udcunet",), "cond_head.0.weight", _udcunet),
    "bnudc": _Family(("bnudc",), "shallow_feat.0.weight", _bnudc),
    "srudc": _Family(("srudc_f", "srudc_l"), "inconv.proj.weight", _srudc),
    "uformer": _Family(("uformer_t", "uformer_s", "uformer_b"), "input_proj.proj.0.weight", _uformer),
    "dagf": _Family(("dagf",), "guided_map.norm1.w_0", _fixed),
    "ecfnet": _Family(("ecfnet",), "Encoder.0.layers.0.convs.0.conv.0.weight", _ecfnet),
    "nafnet": _Family(("nafnet_sidd_w32", "nafnet_gopro_w32"), "intro.weight", _nafnet),
    "restormer": _Family(("restormer_denoise",), "patch_embed.proj.weight", _restormer),
    "swinir": _Family(("swinir_color_dn",), "conv_first.weight", _swinir),
}
