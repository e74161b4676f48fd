"""Purification plans: which times, which kernel, what guides; data, and no noise of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from udc_ray.purifiers.sampler import Level, Variance
from udc_ray.purifiers.schedule import Schedule

Kernel = Literal["ddim", "euler"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: noise to the first time, and the way back.

    Attributes:
        timesteps: times of the network calls, descending; the last step goes to abar = 1.
        kernel: ``ddim`` (Song et al. 2021; with eta 1 the ancestral chain of Ho et al. 2020) or ``euler``
            (Euler-Maruyama on the reverse VP-SDE, Song et al. 2021b, as in DiffPure).
        eta: 0 is deterministic (DDIM), 1 is the ancestral posterior (DDPM).
        variance: of the noise that a DDIM step adds; see `sampler.ddim_step`.
        clip_x0: whether the estimate of the clean image is clipped to [-1, 1] in every step.
        start: what the noise is added to: the result of the round before, or the purifier's input.
        reference: what the guide and the hook compare with: the purifier's input, or the round before.
        guided: whether the plan's guide acts in this round.
    """

    timesteps: tuple[int, ...]
    kernel: Kernel = "ddim"
    eta: float = 0.0
    variance: Variance = "fixed_small"
    clip_x0: bool = True
    start: Literal["previous", "input"] = "previous"
    reference: Literal["input", "previous"] = "input"
    guided: bool = True

    def __post_init__(self) -> None:
        downward = all(a > b for a, b in zip(self.timesteps, self.timesteps[1:], strict=False))
        if not self.timesteps or self.timesteps[-1] < 0 or not downward:
            raise ValueError(f"times must descend to 0 or above, and there must be one: {self.timesteps}")


class Guide(Protocol):
    """A distance that pulls the chain towards a reference."""

    @property
    def scale(self) -> float:
        """s, what the gradient is multiplied by."""
        ...

    @property
    def form(self) -> Literal["eps", "mean"]:
        """Where the pull acts (Dhariwal and Nichol 2021, algorithms 2 and 1, with log p = -s D).

        ``eps`` adds s sqrt(1 - abar_t) grad D to the predicted noise, at any eta; ``mean`` takes s sigma_t^2 grad D
        from the mean of the step, sigma_t^2 the posterior's variance.
        """
        ...

    @property
    def calls(self) -> int:
        """Calls of an auxiliary network per image and step."""
        ...

    @property
    def noised(self) -> bool:
        """Whether `distance` wants noise to put on the reference."""
        ...

    def distance(self, x_t_BCHW: Tensor, reference_BCHW: Tensor, abar_t: Level, noise_BCHW: Tensor | None) -> Tensor:
        """D per image (B), twice differentiable in both images.

        Args:
            x_t_BCHW: the chain's noisy image, in the network's range.
            reference_BCHW: what it is compared with, in [0, 1].
            abar_t: share of the signal's power in `x_t_BCHW`.
            noise_BCHW: standard normal noise of this step where `noised` is set, else None.
        """
        ...


class Hook(Protocol):
    """Changes the estimate of the clean image in every step, before it is clipped."""

    def __call__(self, x0_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """Estimate in the network's range and reference in [0, 1] to a new estimate."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that one purification does.

    Attributes:
        rounds: done one after the other.
        guide: pulls every step of the rounds that are guided; None for none.
        hook: changes every estimate of the clean image; None for none.
    """

    rounds: tuple[Round, ...]
    guide: Guide | None = None
    hook: Hook | None = None

    @property
    def nfe(self) -> int:
        """Calls of the denoiser per image."""
        return sum(len(one.timesteps) for one in self.rounds)

    @property
    def auxiliary(self) -> int:
        """Calls of the guide's network per image."""
        if self.guide is None:
            return 0
        return self.guide.calls * sum(len(one.timesteps) for one in self.rounds if one.guided)

    def respaced(self, schedule: Schedule, steps: int) -> Plan:
        """The same plan with at most so many steps a round, from the same first times (surrogate-k)."""
        rounds = [
            replace(one, timesteps=schedule.timesteps(one.timesteps[0], min(steps, len(one.timesteps))))
            for one in self.rounds
        ]
        return replace(self, rounds=tuple(rounds))
