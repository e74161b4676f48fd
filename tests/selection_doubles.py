"""A purifier of which the best level is known, and clean images for the tests of the choice of levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from purifier_doubles import LINEAR
from run_doubles import small_run
from torch import Tensor

from udc_ray.data import simulate
from udc_ray.data.shipped import open_shipped
from udc_ray.prepare import Prepared
from udc_ray.purifiers.base import Trace
from udc_ray.purifiers.schedule import Schedule
from udc_ray.purifiers.selectors import Leveled
from udc_ray.tape import Tape, normal_like


class Knowledge:
    """Stands for a prior."""

    schedule: Schedule = LINEAR


class Planted(Leveled):
    """Leaves the image alone at its best level, and moves it the further away the further the level is off."""

    name: ClassVar[str] = "planted"
    random: ClassVar[bool] = True
    grad_modes: ClassVar[frozenset[str]] = frozenset({"bpda"})

    best: int = 30

    def prepare(self, device: str) -> Knowledge:
        return Knowledge()

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Any) -> tuple[Tensor, Trace]:
        self.require_level()
        off = abs((self.best if self.t is None else self.t) - self.best) / 100
        noise = normal_like(tape.generators(self.noise_key), x_BCHW)
        return (x_BCHW + off * (0.5 + 0.2 * noise)).clamp(0, 1), Trace(nfe=1)


ENTRY = "selection_doubles:Planted"


def anls(clean: Path, **params: Any) -> dict[str, Any]:
    """The selector of the tests: three candidates on a dozen small crops."""
    small = {"levels": [10, 30, 60], "trials": 12, "edge": 32, "exposed": 2, "attack": {"name": "fgsm"}, "draws": 50}
    return {"name": "anls", "clean": str(clean), **small, **params}


def leveled_run(clean: Path, *sets: str, best: int = 30, **params: Any) -> Prepared:
    """A prepared run of one attack on one planted defence, by the network of `doubles.Conv`."""
    selector = anls(clean, **params)
    entry = {"name": ENTRY, "best": best, "selector": selector, "grad_mode": ["blind", "bpda"]}
    return small_run(f"defenses={[entry]}", *sets)


def clean_folder(folder: Path) -> Path:
    """Unattacked images behind the display of the tests: photographs that they do not evaluate, as PNG."""
    data = open_shipped(simulate.get_display("toled"), size=64)
    folder.mkdir(exist_ok=True)
    for image_id in data.image_ids:
        pixels = (data.load(image_id).degraded * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{image_id}.png")
    return folder
