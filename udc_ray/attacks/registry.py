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
        "apgd": "udc_ray.attacks.apgd:APGD",
        "ssim-pgd": "udc_ray.attacks.pgd:SSIMPGD",
        "cw": "udc_ray.attacks.cw:CarliniWagnerL2",
        "low-frequency": "udc_ray.attacks.low_frequency:LowFrequency",
        "square": "udc_ray.attacks.square:Square",
        "simba": "udc_ray.attacks.simba:SimBA",
        "signhunter": "udc_ray.attacks.signhunter:SignHunter",
        "parsimonious": "udc_ray.attacks.parsimonious:Parsimonious",
        "nes": "udc_ray.attacks.nes:NES",
        "zo-signsgd": "udc_ray.attacks.nes:ZOSignSGD",
        "bandits": "udc_ray.attacks.bandits:Bandits",
        "tile-square": "udc_ray.attacks.tile_square:TileSquare",
        "tile-simba": "udc_ray.attacks.tile_simba:TileSimBA",
        "transfer": "udc_ray.attacks.transfer:Transfer",
        "hopskipjump": "udc_ray.attacks.hopskipjump:HopSkipJump",
        "rays": "udc_ray.attacks.rays:RayS",
        "geoda": "udc_ray.attacks.geoda:GeoDA",
        "find-eps": "udc_ray.attacks.findeps:FindEps",
        "clean-repeat": "udc_ray.attacks.controls:CleanRepeat",
    },
)
