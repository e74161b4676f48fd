"""Every attack by name."""

from __future__ import annotations

from udc_ray.attacks.base import Attack
from udc_ray.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "noise": "udc_ray.attacks.noise:Noise",
        "fgsm": "udc_ray.attacks.pgd:FGSM",
        "pgd": "udc_ray.attacks.pgd:PGD",
        "ssim-pgd": "udc_ray.attacks.pgd:SSIMPGD",
        "cw": "udc_ray.attacks.cw:CarliniWagnerL2",
        "square": "udc_ray.attacks.square:Square",
        "simba": "udc_ray.attacks.simba:SimBA",
    },
)
