"""Training of the default restorer: PSNR loss on simulated under-display photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udc_ray import rng
from udc_ray.training import crops


def psnr_loss(output_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """Minus the mean PSNR in dB of the unclamped output (the loss of the NAFNet paper)."""
    mse_B = (output_BCHW.float() - truth_BCHW).square().mean(dim=(1, 2, 3))
    return 10 * (mse_B + 1e-8).log10().mean()


@dataclass(frozen=True, kw_only=True)
class RestorerRecipe:
    """One step: a keyed batch of crops, restored, judged by PSNR."""

    batches: crops.Batches
    tune: Sequence[crops.Scene]
    """Scenes of the tune split, for `validate`."""
    device: str = "cpu"

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Minus the mean PSNR of one batch."""
        degraded, truth = (t.to(self.device, memory_format=torch.channels_last) for t in self.batches(step))
        return psnr_loss(network(degraded), truth)

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean PSNR in dB of the clamped output, per display, on centre 256 x 256 crops."""
        scores: dict[str, list[float]] = {}
        for scene in self.tune:
            degraded, truth = crops.crop_pair(scene, 256, rng.generator(0, scene.name, f"tune/{scene.display.name}"))
            output = network(degraded[None].to(self.device)).clamp(0, 1).cpu()
            mse = (output[0] - truth).square().mean().item()
            kind = f"{scene.display.name}{'-hdr' if scene.hdr else ''}"
            scores.setdefault(kind, []).append(-10 * torch.tensor(mse).log10().item())
        return {name: sum(values) / len(values) for name, values in scores.items()}
