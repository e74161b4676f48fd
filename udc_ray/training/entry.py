"""Trains a network of the package from photographs, and writes its weights and its card."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from udc_ray.data import simulate
from udc_ray.hashing import file_sha256
from udc_ray.models.nafnet import NAFNet
from udc_ray.purifiers.guide_network import FeatureNetwork, GuideNetwork, GuideShape
from udc_ray.training import crops
from udc_ray.training.denoiser import SCHEDULE, DenoiserRecipe
from udc_ray.training.guide import GuideRecipe, GuideSpec, Pixels
from udc_ray.training.loop import Progress, Recipe, Trainer, TrainSpec
from udc_ray.training.restorer import RestorerRecipe

RESTORER_SHAPE: dict[str, Any] = {
    "width": 16,
    "encoder_blocks": (1, 1, 2, 4),
    "middle_blocks": 2,
    "decoder_blocks": (1, 1, 1, 1),
}
"""Size of the default restorer: 2.0 M parameters, small enough for a CPU."""

PRIOR_SHAPE: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (32, 64, 96, 128),
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
    "norm_num_groups": 16,
    "add_attention": False,
}
"""Size of the default diffusion prior: 3.4 M parameters, convolutions only."""

GUIDE_SHAPE = GuideShape()
"""Size of the default guide: 0.2 M parameters; it is called, and differentiated twice, in every step."""

CREDITS = {
    "cid22_train": "CID22 training half (CC BY-SA 4.0, credit CID22, Cloudinary)",
    "gb82": "GB82 (CC0)",
    "openexr_images": "OpenEXR images (BSD-3-Clause)",
}
"""Licences of the photographs that the shipped weights were trained on, by the name of their folder."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train, on what, and where to put it."""

    what: str
    """``restorer``, ``purifier`` or ``guide``; the last with a `GuideSpec`."""
    folders: Sequence[Path]
    out: Path
    threads: int
    device: str
    spec: TrainSpec

    def __post_init__(self) -> None:
        if (self.what == "guide") != isinstance(self.spec, GuideSpec):
            raise ValueError(f"{self.what} does not go with a {type(self.spec).__name__}")

    @property
    def command(self) -> str:
        """The command line that makes the same weights."""
        photos = [word for folder in self.folders for word in ("--photos", folder.name)]
        s = self.spec
        words = ["udc-ray", "train", self.what, *photos, "--out", self.out.name, "--steps", s.steps]
        words += ["--batch", s.batch, "--crop", s.crop, "--rate", s.rate, "--threads", self.threads]
        words += ["--device", self.device, "--seed", s.seed]
        words += ["--beta", s.beta] if isinstance(s, GuideSpec) else []
        return shlex.join(map(str, words))


def train_network(request: TrainRequest, progress: Progress, stop_after: float = float("inf")) -> bool:
    """Train, resuming from the checkpoint in ``request.out``; True when weights and card are written.

    Args:
        request: what to train.
        progress: called after every step with the step and its loss.
        stop_after: seconds after which to stop with a checkpoint.
    """
    torch.set_num_threads(request.threads)
    torch.manual_seed(request.spec.seed)
    network, recipe = _build(request)
    network = network.to(request.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    trainer = Trainer(network, recipe, request.spec, request.out)
    if not trainer.run(progress, stop_after):
        return False
    averaged = trainer.averaged()
    facts = {"tune_psnr_db": recipe.validate(averaged), "seconds": round(trainer.seconds)}
    if isinstance(recipe, GuideRecipe):
        facts |= _guide_facts(request, averaged, recipe)
    weights = _write_weights(request, averaged)
    _write_card(request, averaged, weights, facts)
    return True


def _build(request: TrainRequest) -> tuple[nn.Module, Recipe]:
    displays = list(simulate.load_displays().values())
    scenes = crops.make_scenes(crops.read_part(request.folders, "train"), displays)
    tune = crops.make_scenes(crops.read_part(request.folders, "tune"), displays)
    spec = request.spec
    batches = crops.Batches(scenes=scenes, batch=spec.batch, crop=spec.crop, seed=spec.seed)
    if request.what == "restorer":
        return NAFNet(**RESTORER_SHAPE), RestorerRecipe(batches=batches, tune=tune, device=request.device)
    if isinstance(spec, GuideSpec):
        recipe = GuideRecipe(batches=batches, tune=tune, beta=spec.beta, device=request.device)
        return GuideNetwork(GUIDE_SHAPE), recipe
    from diffusers import UNet2DModel

    clean = [s for s in tune if s.display.name == displays[0].name and not s.hdr]
    return UNet2DModel(**PRIOR_SHAPE), DenoiserRecipe(batches=batches, tune=clean, device=request.device)


def _write_weights(request: TrainRequest, network: nn.Module) -> Path:
    if request.what == "purifier":
        return _write_prior(request, network)
    path = request.out / f"{request.what}.safetensors"
    partial = path.with_suffix(".partial")
    save_file({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, partial)
    partial.chmod(0o644)
    os.replace(partial, path)
    return path


def _write_prior(request: TrainRequest, network: nn.Module) -> Path:
    from udc_ray.purifiers.denoiser import WEIGHTS, Sidecar, save_prior

    sidecar = Sidecar(
        input_range=(-1, 1),
        prediction="epsilon",
        schedule=SCHEDULE,
        training_domain="clean photographs, and photographs behind the T-OLED, P-OLED and ZTE displays of udc-ray",
    )
    save_prior(request.out, network, sidecar)
    return request.out / WEIGHTS


def _guide_facts(request: TrainRequest, trained: nn.Module, recipe: GuideRecipe) -> dict[str, Any]:
    """Size, which the loader reads, and how well the features separate: now, before training, and without any."""
    torch.manual_seed(request.spec.seed)
    rivals: dict[str, FeatureNetwork] = {
        "trained": cast(GuideNetwork, trained),
        "untrained": GuideNetwork(GUIDE_SHAPE).to(request.device),
        "pixels": Pixels(),
    }
    figures = {name: recipe.separation(network) for name, network in rivals.items()}
    return {"network": GUIDE_SHAPE.model_dump(mode="json"), "separation": figures}


def _data_words(folders: Sequence[Path]) -> str:
    words = ", ".join(CREDITS.get(folder.name, folder.name) for folder in folders)
    return f"{words}; the train part of udc_ray/data/split.json"


def _write_card(request: TrainRequest, network: nn.Module, weights: Path, facts: dict[str, Any]) -> None:
    card = {
        "what": request.what,
        "command": request.command,
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": _data_words(request.folders),
        "displays": sorted(simulate.load_displays()),
        "steps": request.spec.steps,
        "hardware": f"{platform.machine()}, {request.threads} CPU threads" if request.device == "cpu" else "GPU",
        "torch": torch.__version__,
        "sha256": file_sha256(weights),
        **facts,
    }
    (request.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
