"""Every purifier by name."""

from __future__ import annotations

from udc_ray.purifiers.base import Purifier
from udc_ray.registry import Registry

PURIFIERS: Registry[Purifier] = Registry(
    "defence",
    {
        "identity": "udc_ray.purifiers.simple:Identity",
        "jpeg": "udc_ray.purifiers.simple:Jpeg",
        "median": "udc_ray.purifiers.simple:Median",
        "broken-control": "udc_ray.purifiers.broken:BrokenControl",
        "gaussian-noise": "udc_ray.purifiers.simple:GaussianNoise",
        "ddpm": "udc_ray.purifiers.diffusion:DDPM",
        "ddim": "udc_ray.purifiers.diffusion:DDIM",
        "one-step": "udc_ray.purifiers.diffusion:OneStep",
        "twice-one-step": "udc_ray.purifiers.guided:TwiceOneStep",
        "gradual": "udc_ray.purifiers.gradual:Gradual",
        "diffpure": "udc_ray.purifiers.diffpure:DiffPure",
        "freqpure": "udc_ray.purifiers.freqpure:FreqPure",
        "gdmp": "udc_ray.purifiers.guided:GDMP",
        "agdm": "udc_ray.purifiers.guided:AGDM",
    },
)
