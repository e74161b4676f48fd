"""Training pairs: photographs blurred once per display, cropped and noised anew at every step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from udc_ray import rng
from udc_ray.data import domains, simulate
from udc_ray.errors import DataError

SPLIT_FILE = Path(simulate.__file__).parent / "split.json"


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A clean photograph, 3 x H x W: sRGB in [0, 1], or linear light up to 500 when `hdr`."""

    name: str
    image: Tensor
    hdr: bool


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A photograph behind one display: the truth and the noiseless light on the sensor."""

    name: str
    display: simulate.Display
    hdr: bool
    truth: Tensor
    """Canonical domain, float16."""
    sensor: Tensor
    """Linear light, float16."""


def split_names(part: str) -> set[str]:
    """Names of the photographs in one part of the split: shipped, test, tune or train."""
    return {name for names in json.loads(SPLIT_FILE.read_text())[part].values() for name in names}


def read_photograph(path: Path) -> Photograph:
    """Read an 8-bit photograph, or linear HDR data (.npz with key ``rgb``)."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            values = archive["rgb"].astype(np.float32)
        return Photograph(name=path.stem, image=torch.from_numpy(values).permute(2, 0, 1).contiguous(), hdr=True)
    values = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    return Photograph(name=path.stem, image=torch.from_numpy(values).permute(2, 0, 1).contiguous(), hdr=False)


def read_part(folders: Sequence[Path], part: str) -> list[Photograph]:
    """Read the photographs of `folders` that belong to one part of the split, sorted by name.

    Photographs that the split does not list belong to ``train``.
    """
    files = sorted(f for folder in folders for f in folder.iterdir() if f.suffix in {".png", ".webp", ".npz", ".jpg"})
    known = {other: split_names(other) for other in ("shipped", "test", "tune", "train")}
    elsewhere = set().union(*(names for other, names in known.items() if other != part))
    wanted = [f for f in files if f.stem in known[part] or (part == "train" and f.stem not in elsewhere)]
    if not wanted:
        raise DataError(f"no photographs for {part} in {', '.join(map(str, folders))}", change="give other folders")
    return [read_photograph(f) for f in wanted]


def make_scenes(photographs: Iterable[Photograph], displays: Iterable[simulate.Display]) -> list[Scene]:
    """Blur every photograph behind every display."""
    displays = list(displays)
    scenes = []
    for photo in photographs:
        for display in displays:
            linear = simulate.to_linear(photo.image, display, hdr=photo.hdr)
            truth = domains.encode(linear, simulate.canonical_domain(display, photo.hdr))
            sensor = simulate.blur(linear, display)
            scenes.append(
                Scene(name=photo.name, display=display, hdr=photo.hdr, truth=truth.half(), sensor=sensor.half())
            )
    return scenes


def _expose(scene: Scene, sensor: Tensor, generator: np.random.Generator) -> Tensor:
    noisy = simulate.add_noise(sensor, scene.display, generator)
    image = domains.encode(noisy, simulate.canonical_domain(scene.display, scene.hdr))
    return image if scene.hdr else simulate.quantise(image)


def crop_pair(scene: Scene, size: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw one crop of a scene: the degraded image and the truth, each 3 x size x size."""
    height, width = scene.truth.shape[1:]
    if min(height, width) < size:
        raise DataError(f"{scene.name} is {width}x{height}, smaller than a crop of {size}", change="leave it out")
    top, left = generator.integers(0, height - size + 1), generator.integers(0, width - size + 1)
    window = (slice(None), slice(int(top), int(top) + size), slice(int(left), int(left) + size))
    return _expose(scene, scene.sensor[window].float(), generator), scene.truth[window].float()


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Keyed batches of crops: batch n is the same whenever and wherever it is drawn."""

    scenes: Sequence[Scene]
    batch: int
    crop: int
    seed: int
    hdr_share: float = 0.15

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Degraded and true crops of one step, each B x 3 x crop x crop."""
        generator = rng.generator(self.seed, "crops", "train", step=step)
        pools = [[s for s in self.scenes if s.hdr == hdr] for hdr in (False, True)]
        pairs = []
        for _ in range(self.batch):
            hdr = bool(generator.random() < self.hdr_share) and bool(pools[1])
            pool = pools[1] if hdr or not pools[0] else pools[0]
            pairs.append(crop_pair(pool[int(generator.integers(len(pool)))], self.crop, generator))
        degraded, truth = zip(*pairs, strict=True)
        return torch.stack(degraded), torch.stack(truth)
