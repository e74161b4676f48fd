"""A prior of a few thousand random weights, for the tests of purifiers."""

from functools import cache
from pathlib import Path

import torch
from diffusers import UNet2DModel

from udc_ray.purifiers.denoiser import Denoiser, Sidecar, save_prior
from udc_ray.purifiers.schedule import Schedule

LINEAR = Schedule(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
SIDECAR = Sidecar(input_range=(-1, 1), prediction="epsilon", schedule=LINEAR, training_domain="none: random weights")


def tiny_unet(channels: int = 3) -> UNet2DModel:
    """Two levels, group normalisation, seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=16,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            add_attention=False,
        )


@cache
def tiny_denoiser() -> Denoiser:
    return Denoiser(tiny_unet(), LINEAR)


def tiny_prior(folder: Path) -> Path:
    save_prior(folder, tiny_unet(), SIDECAR)
    return folder
