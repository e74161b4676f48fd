"""Training of the network behind AGDM's guide: TRADES with its KL replaced by a distance of features.

Zhang et al. 2019 (TRADES) weigh a task loss against the worst change of the outputs in a ball; Lin et al. 2024
(AGDM) train their auxiliary network so. Restoration has no class probabilities: here the task is to restore a
degraded crop, and what may not change are the features that the guide compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from udc_ray import rng
from udc_ray.errors import SpecError
from udc_ray.purifiers.guide_network import FeatureNetwork, GuideNetwork, layer_distances
from udc_ray.training import crops
from udc_ray.training.loop import TrainSpec
from udc_ray.training.restorer import psnr_loss

EPS = 8 / 255
"""Radius of the Linf ball around a crop."""
SIGMA = 45 / 255
"""Largest noise on a crop: the level of t = 103 under the linear schedule of 1000 times."""

_NEAR = ("noise", "adversarial")


class GuideSpec(TrainSpec):
    """How long and how to train a guide.

    Attributes:
        beta: weight of the worst change of the features, in dB for a change as large as the distance of two
            photographs; 0 trains the plain twin.
        bfloat16: off unless set: its steps near 1 are as large as a half step of the 8-bit grid.
    """

    beta: float = Field(default=6.0, ge=0)
    bfloat16: bool = False


@dataclass(frozen=True, kw_only=True)
class GuideRecipe:
    """One step: restore noisy degraded crops, and keep their features where those of the crops without noise are.

    The distance is measured in units of that between the crops of the step, layer by layer: in absolute units the
    features fade into a constant, which nothing can change.

    Attributes:
        batches: degraded and true crops; two a step at least.
        tune: scenes of the tune split.
        beta: see `GuideSpec`.
        attack_steps: PGD steps of the inner maximisation.
        device: where to train.
    """

    batches: crops.Batches
    tune: Sequence[crops.Scene]
    beta: float = 6.0
    attack_steps: int = 3
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.beta and self.batches.batch < 2:
            raise SpecError(
                "a guide is trained on two crops a step at least",
                "its distances are measured in units of that between the crops of a step",
                "give --batch 2 or more",
            )

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Minus the PSNR of the restored crops, plus beta times the relative change of their features."""
        guide = cast(GuideNetwork, network)
        degraded, truth = (t.to(self.device, memory_format=torch.channels_last) for t in self.batches(step))
        generator = rng.generator(self.batches.seed, "guide", "train", step=step)
        sigma_B = rng.uniform(generator, 0, SIGMA, len(degraded))[:, None, None, None]
        noisy = degraded + (sigma_B * rng.normal(generator, *degraded.shape)).to(self.device)
        seen = guide.features(noisy)
        task = psnr_loss(guide.restore(seen), truth)
        if not self.beta:
            return task
        anchor = guide.features(degraded)
        unit_L = layer_distances(anchor, [a.roll(1, 0) for a in anchor]).mean(dim=1) + 1e-6
        start = rng.uniform(generator, -EPS, EPS, *degraded.shape).to(self.device)
        worst = worst_change(guide, noisy, [a.detach() for a in anchor], unit_L.detach(), start, self.attack_steps)
        moved_L = layer_distances(guide.features(noisy + worst), anchor).mean(dim=1)
        return task + self.beta * (moved_L / unit_L).mean()

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean PSNR in dB of the restored, clamped tune crops, per display."""
        scores: dict[str, list[float]] = {}
        for scene, degraded, truth in self._tune_crops():
            mse = (network(degraded[None])[0].clamp(0, 1) - truth).square().mean().item()
            scores.setdefault(scene.display.name, []).append(-10 * torch.tensor(mse).log10().item())
        return {name: sum(values) / len(values) for name, values in scores.items()}

    def separation(self, network: FeatureNetwork) -> dict[str, float]:
        """How far apart the features hold what differs, and how close what does not; on the tune crops.

        Returns:
            Mean distances D of a crop x from another photograph behind the same display (``other``), from its mean
            over 5 x 5 pixels (``smooth``), from x with noise of 25/255 (``noise``), and from x with the delta in the
            Linf ball of 8/255 that ten PGD steps find against D (``adversarial``; not cut to [0, 1]); and how many
            times the first two exceed the last two.
        """
        found: dict[str, list[Tensor]] = {"other": [], "smooth": [], "noise": [], "adversarial": []}
        for x in self._tune_batches():
            anchor = [a.detach() for a in network.features(x)]
            start = rng.uniform(rng.generator(0, "start", "tune/guide"), -EPS, EPS, *x.shape).to(x)
            noise = rng.normal(rng.generator(0, "noise", "tune/guide"), *x.shape).to(x)
            changed = {
                "other": x.roll(1, 0),
                "smooth": avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False),
                "noise": x + noise * 25 / 255,
                "adversarial": x + worst_change(network, x, anchor, torch.ones(len(anchor)).to(x), start, 10),
            }
            with torch.no_grad():
                for name, image in changed.items():
                    found[name].append(layer_distances(network.features(image), anchor).sum(dim=0))
        means = {name: float(torch.cat(values).mean()) for name, values in found.items()}
        times = {f"{far}_over_{near}": means[far] / means[near] for far in ("other", "smooth") for near in _NEAR}
        return means | times

    def _tune_crops(self) -> list[tuple[crops.Scene, Tensor, Tensor]]:
        made = []
        for scene in self.tune:
            generator = rng.generator(0, scene.name, f"tune/{scene.display.name}")
            degraded, truth = crops.crop_pair(scene, 128, generator)
            made.append((scene, degraded.to(self.device), truth.to(self.device)))
        return made

    def _tune_batches(self) -> list[Tensor]:
        made = self._tune_crops()
        displays = sorted({scene.display.name for scene, _, _ in made})
        return [torch.stack([d for scene, d, _ in made if scene.display.name == name]) for name in displays]


class Pixels:
    """The images themselves as features: what a distance of pixels separates, to compare with."""

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """One map, in [0, 1]."""
        return [x_BCHW]


def worst_change(
    network: FeatureNetwork, x_BCHW: Tensor, anchor: Sequence[Tensor], unit_L: Tensor, start_BCHW: Tensor, steps: int
) -> Tensor:
    """PGD (Madry et al. 2018) on the distance of features: the delta that moves them farthest from `anchor`.

    Args:
        network: whose features.
        x_BCHW: images in [0, 1], or such images with noise.
        anchor: features to move away from.
        unit_L: by what the distance in each layer is divided.
        start_BCHW: the first delta; where `anchor` is of `x_BCHW` itself, 0 has no gradient.
        steps: of 2.5 eps / steps each.

    Returns:
        delta of the shape of `x_BCHW`, each value in [-8/255, 8/255].
    """
    delta = start_BCHW
    for _ in range(steps):
        leaf = delta.detach().requires_grad_()
        distance = (layer_distances(network.features(x_BCHW + leaf), anchor).sum(dim=1) / unit_L).sum()
        (gradient,) = torch.autograd.grad(distance, leaf)
        delta = (delta + 2.5 * EPS / steps * gradient.sign()).clamp(-EPS, EPS)
    return delta.detach()
