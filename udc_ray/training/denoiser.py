"""Training of the default diffusion prior: noise prediction on clean and degraded photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udc_ray import rng
from udc_ray.purifiers.schedule import Schedule
from udc_ray.training import crops

SCHEDULE = Schedule(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
"""The linear schedule of Ho et al. 2020."""


@dataclass(frozen=True, kw_only=True)
class DenoiserRecipe:
    """One step: half of the crops clean, half degraded; eps is predicted (Ho et al. 2020, eq. 14).

    Times are drawn up to `focus` with probability `focus_share`, as purification stays there.
    """

    batches: crops.Batches
    tune: Sequence[crops.Scene]
    focus: int = 250
    focus_share: float = 0.9
    device: str = "cpu"

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Mean squared error of the predicted noise."""
        degraded, truth = self.batches(step)
        half = degraded.shape[0] // 2
        x0 = torch.cat([degraded[:half], truth[half:]]) * 2 - 1
        generator = rng.generator(self.batches.seed, "noise", "train", step=step)
        ceiling = self.focus if generator.random() < self.focus_share else SCHEDULE.num_train_timesteps
        t_B = torch.from_numpy(generator.integers(0, ceiling, x0.shape[0]))
        noise = rng.normal(generator, *x0.shape)
        abar = torch.from_numpy(SCHEDULE.alpha_bar)[t_B].float()[:, None, None, None]
        x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        x_t = x_t.to(self.device, memory_format=torch.channels_last)
        predicted: Tensor = network(x_t, t_B.to(self.device)).sample
        return (predicted.float() - noise.to(self.device)).square().mean()

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """One-step denoising PSNR in dB at sigma 10, 25 and 50 of 255 on clean tune crops."""
        return {f"sigma{sigma}": self._one_step(network, sigma) for sigma in (10, 25, 50)}

    def _one_step(self, network: nn.Module, sigma: int) -> float:
        t = SCHEDULE.nearest(sigma)
        abar, ratio = float(SCHEDULE.alpha_bar[t]), SCHEDULE.sigma(t) / 127.5
        scores: list[float] = []
        for scene in self.tune:
            generator = rng.generator(0, scene.name, f"tune/{sigma}")
            _, truth = crops.crop_pair(scene, 256, generator)
            noise = rng.normal(generator, *truth.shape)
            noisy = truth * 2 - 1 + noise * ratio
            eps = network((noisy * abar**0.5)[None].to(self.device), torch.tensor([t], device=self.device)).sample
            x0 = noisy - eps[0].cpu() * ratio
            scores.append(-10 * ((x0 - (truth * 2 - 1)) / 2).square().mean().log10().item())
        return sum(scores) / len(scores)
