"""How the shipped clean features were made: ``python -m udc_ray.training.clean_features --photos DIR --out DIR``.

What the default restorer makes of images that nobody attacked: crops of the training photographs behind the shipped
displays, its bottleneck averaged over each crop. A noise level is chosen by how near purified images come to them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from udc_ray import rng
from udc_ray.clean_side import CleanSide, save_clean_side
from udc_ray.data import simulate
from udc_ray.data.simulate import Display
from udc_ray.features import features_of, find_layer
from udc_ray.hashing import file_sha256
from udc_ray.models.base import Restorer
from udc_ray.models.loading import load
from udc_ray.training import crops

EDGES = (64, 80, 96, 112, 128)
"""Edges of the crops in px."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """An unattacked degraded crop, 3 x edge x edge, and the display that it was taken through."""

    image: Tensor
    display: str


def training_crops(
    photographs: Sequence[crops.Photograph], displays: Sequence[Display], each: int, seed: int = 0
) -> Iterator[Crop]:
    """`each` crops of every photograph behind every display, keyed by the photograph's name and the display."""
    for photograph in photographs:
        for scene in crops.make_scenes([photograph], displays):
            for number in range(each):
                generator = rng.generator(seed, scene.name, f"clean-features/{scene.display.name}", sample=number)
                degraded, _ = crops.crop_pair(scene, EDGES[int(generator.integers(len(EDGES)))], generator)
                yield Crop(image=degraded, display=scene.display.name)


def clean_features(restorer: Restorer, made: Sequence[Crop], *, slots: int = 8, device: str = "cpu") -> CleanSide:
    """Features of unattacked crops at the restorer's bottleneck."""
    layer = find_layer(restorer, device=device)
    return CleanSide(
        features=features_of(restorer, layer, [crop.image for crop in made], slots, device),
        layer=layer.name,
        model=restorer.descriptor.sha256,
        displays=tuple(crop.display for crop in made),
    )


def make(folders: Sequence[Path], out: Path, each: int = 3, seed: int = 0) -> None:
    """Write the features of the default restorer, and a card of how they were made."""
    photographs = [photo for photo in crops.read_part(folders, "train") if not photo.hdr]
    displays = list(simulate.load_displays().values())
    side = clean_features(load("default"), list(training_crops(photographs, displays, each, seed)))
    path = save_clean_side(out / "clean_features.npz", side)
    named = " ".join(f"--photos {folder.name}" for folder in folders)
    card = {
        "what": "features of the default restorer on unattacked degraded crops, for choosing a noise level (ANLS)",
        "command": f"python -m udc_ray.training.clean_features {named} --out {out.name} --each {each} --seed {seed}",
        "data": "CID22 training half (CC BY-SA 4.0, credit CID22, Cloudinary), GB82 (CC0); the train part of "
        "udc_ray/data/split.json. Averages over crops only: no image can be made of them",
        "displays": [display.name for display in displays],
        "photographs": len(photographs),
        "crops": f"{each} of every photograph behind every display, edges {', '.join(map(str, EDGES))} px, keyed",
        "layer": side.layer,
        "shape": list(side.features.shape),
        "dtype": "float16",
        "model_sha256": side.model,
        "torch": torch.__version__,
        "sha256": file_sha256(path),
    }
    (out / "clean_features.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, action="append", required=True, help="folder of photographs; may repeat")
    parser.add_argument("--out", type=Path, required=True, help="folder for features and card")
    parser.add_argument("--each", type=int, default=3, help="crops of a photograph behind a display")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    make(given.photos, given.out, given.each, given.seed)


if __name__ == "__main__":
    main()
