"""Guides: distances that pull a reverse chain towards its input, and the knobs they come with.

GDMP (Wang et al. 2022, "Guided Diffusion Model for Adversarial Purification") compares pixels or SSIM with the input,
noised as the chain is; AGDM (Lin et al. 2024) compares features that an adversarially trained network gives. All
distances are twice differentiable in both images, so that an attack can go through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from udc_ray.attacks.objectives import SSIM
from udc_ray.purifiers.guide_network import FeatureNetwork, layer_distances
from udc_ray.purifiers.sampler import Level, add_noise, root

Form = Literal["eps", "mean"]
Reduction = Literal["mean", "sum"]
"""``mean`` over positions, as published; ``sum`` over them, whose pull on a pixel does not fade as images grow."""

_SSIM = SSIM("ssim", "truth")


@dataclass(frozen=True, kw_only=True)
class _Guide:
    """The knobs of every guide; see `udc_ray.purifiers.plan.Guide`.

    Attributes:
        scale: s. With the reduction ``mean`` the gradient of D falls as the number of pixels grows, and s has to
            grow with it.
        form: where the gradient acts.
        reduction: of the distance, over the positions of the image.
        noised: whether the reference is noised as x_t is, with noise of its own from the step's tape.
    """

    scale: float
    form: Form = "mean"
    reduction: Reduction = "mean"
    noised: bool = True

    def _reduced(self, mean_B: Tensor, x_BCHW: Tensor) -> Tensor:
        return mean_B if self.reduction == "mean" else mean_B * (x_BCHW.shape[-2] * x_BCHW.shape[-1])

    def _compared(self, reference: Tensor, abar_t: Level, noise: Tensor | None) -> Tensor:
        """The reference in the network's range, at the level of x_t where it is noised."""
        if not self.noised:
            return root(abar_t) * (2 * reference - 1)
        if noise is None:
            raise ValueError("a guide with a noised reference needs noise")
        return add_noise(2 * reference - 1, noise, abar_t)


@dataclass(frozen=True, kw_only=True)
class MSEGuide(_Guide):
    """GDMP's distance in pixels: D = mean over all values of (x_t - x'_t)^2, x'_t the noised reference.

    Wang et al. 2022, algorithm 1, shift the mean of a step by -s sigma_t^2 grad D (the form ``mean``). Without noise
    x'_t is the mean of the noised reference.
    """

    calls: int = 0

    def distance(self, x_t_BCHW: Tensor, reference_BCHW: Tensor, abar_t: Level, noise_BCHW: Tensor | None) -> Tensor:
        """D per image; see `udc_ray.purifiers.plan.Guide`."""
        gap = x_t_BCHW - self._compared(reference_BCHW, abar_t, noise_BCHW)
        return self._reduced(gap.square().mean(dim=(1, 2, 3)), x_t_BCHW)


@dataclass(frozen=True, kw_only=True)
class SSIMGuide(_Guide):
    """GDMP's distance in structure: D = 1 - SSIM((x_t + 1) / 2, (x'_t + 1) / 2), at least 11 x 11 pixels.

    SSIM is that of the reported scores: Gaussian window, range 1, places where the window lies inside the image.
    """

    calls: int = 0

    def distance(self, x_t_BCHW: Tensor, reference_BCHW: Tensor, abar_t: Level, noise_BCHW: Tensor | None) -> Tensor:
        """D per image; see `udc_ray.purifiers.plan.Guide`."""
        compared = self._compared(reference_BCHW, abar_t, noise_BCHW)
        return self._reduced(_SSIM.loss((x_t_BCHW + 1) / 2, (compared + 1) / 2), x_t_BCHW)


@dataclass(frozen=True, kw_only=True)
class FeatureGuide(_Guide):
    """AGDM's distance for restoration, its first term: there is no class whose probability could be raised.

    D = sum over layers l of the mean over positions of || phi_l(u(x_t)) - phi_l(r) ||^2, with features phi of length
    1 over the channels, u(x_t) = (x_t / sqrt(abar_t) + 1) / 2, and r the purifier's input in [0, 1]; where `noised`,
    r is u of the noised input. The gradient acts through the predicted noise unless `form` says otherwise, so that
    it counts at eta 0 too, where the posterior's variance, which scales the form ``mean``, multiplies no noise.

    Attributes:
        network: its features; frozen.
        calls: one for x_t, one for r.
    """

    network: FeatureNetwork
    form: Form = "eps"
    noised: bool = False
    calls: int = 2

    def distance(self, x_t_BCHW: Tensor, reference_BCHW: Tensor, abar_t: Level, noise_BCHW: Tensor | None) -> Tensor:
        """D per image; see `udc_ray.purifiers.plan.Guide`."""
        wanted = unscaled(self._compared(reference_BCHW, abar_t, noise_BCHW), abar_t) if self.noised else reference_BCHW
        found = self.network.features(unscaled(x_t_BCHW, abar_t))
        return self._reduced(layer_distances(found, self.network.features(wanted)).sum(dim=0), x_t_BCHW)


def unscaled(x_t: Tensor, abar_t: Level) -> Tensor:
    """u(x_t): the noisy image back at the signal's own scale, in [0, 1] but for the noise."""
    return (x_t / root(abar_t) + 1) / 2
