"""A plan as a chain of segments: one network call each, pure, so that any of them can be done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from udc_ray.purifiers.plan import Guide, Plan, Round
from udc_ray.purifiers.sampler import (
    Level,
    NoisePredictor,
    add_noise,
    ddim_step,
    draws_noise,
    eps_of_x0,
    euler_step,
    posterior_variance,
    root,
    x0_estimate,
)
from udc_ray.purifiers.schedule import Schedule
from udc_ray.tape import Tape, normal_like

State = tuple[Tensor, ...]
"""What is stored between two segments: the image; and the result of the round before where a guide needs it."""


class Segment(Protocol):
    """One step of a purification: the state before it and the purifier's input to the state after it."""

    def __call__(self, state: State, x_BCHW: Tensor) -> State:
        """Do the step. The same arguments give the same bits, with or without gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise of a chain, drawn anew whenever it is asked for: nothing is stored, nothing depends on order.

    Attributes:
        tape: keys, one an image.
        name: the purifier's identity.
    """

    tape: Tape
    name: str

    def __call__(self, purpose: str, like: Tensor) -> Tensor:
        """Standard normal noise for one purpose, such as ``0/3/step``: round, step and what for."""
        return normal_like(self.tape.generators(f"{self.name}/{purpose}"), like)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One network call of a round; the first one adds the noise, the last one ends in [0, 1].

    Attributes:
        denoiser: predicts the noise of images in [-1, 1].
        plan: guide and hook.
        round: the round.
        t: time of the call.
        abar_t, abar_prev: signal shares before and after.
        key: ``round/step`` for the noise.
        noise: where it comes from.
        first, last: place in the round.
        guide_gradient: whether gradients pass the guide; without it they are incomplete.
    """

    denoiser: NoisePredictor
    plan: Plan
    round: Round
    t: int
    abar_t: Level
    abar_prev: Level
    key: str
    noise: Noise
    first: bool
    last: bool
    guide_gradient: bool = True

    def __call__(self, state: State, x_BCHW: Tensor) -> State:
        """See `Segment`."""
        image, *kept = state
        if self.first:
            base = x_BCHW if self.round.start == "input" else image
            kept = [image] if self.round.reference == "previous" else []
            image = add_noise(base * 2 - 1, self.noise(f"{self.key}/start", base), self.abar_t)
        image = self._reverse(image, kept[0] if kept else x_BCHW)
        if self.last:
            return (((image + 1) / 2).clamp(0, 1),)
        return (image, *kept)

    def _reverse(self, x_t: Tensor, reference: Tensor) -> Tensor:
        guide = self.plan.guide if self.round.guided else None
        pull = None if guide is None else self._pull(guide, x_t, reference)
        eps_hat = self.denoiser(x_t, self.t)
        if guide is not None and pull is not None and guide.form == "eps":
            eps_hat = eps_hat + guide.scale * root(1 - self.abar_t) * pull
        if self.plan.hook is not None or self.round.clip_x0:
            x0 = x0_estimate(x_t, eps_hat, self.abar_t)
            x0 = x0 if self.plan.hook is None else self.plan.hook(x0, reference)
            eps_hat = eps_of_x0(x_t, x0.clamp(-1, 1) if self.round.clip_x0 else x0, self.abar_t)
        moved = self._kernel(x_t, eps_hat)
        if guide is not None and pull is not None and guide.form == "mean":
            moved = moved - guide.scale * posterior_variance(self.abar_t, self.abar_prev) * pull
        return moved

    def _kernel(self, x_t: Tensor, eps_hat: Tensor) -> Tensor:
        one = self.round
        eta = 1.0 if one.kernel == "euler" else one.eta
        noise = self.noise(f"{self.key}/step", x_t) if draws_noise(eta, self.abar_prev) else None
        if one.kernel == "euler":
            return euler_step(x_t, eps_hat, self.abar_t, self.abar_prev, noise)
        return ddim_step(x_t, eps_hat, self.abar_t, self.abar_prev, one.eta, noise, one.variance)

    def _pull(self, guide: Guide, x_t: Tensor, reference: Tensor) -> Tensor:
        noise = self.noise(f"{self.key}/guide", reference) if guide.noised else None
        pull = guide_gradient(guide, x_t, reference, self.abar_t, noise)
        return pull if self.guide_gradient else pull.detach()


def guide_gradient(guide: Guide, x_t: Tensor, reference: Tensor, abar_t: Level, noise: Tensor | None) -> Tensor:
    """Gradient of a guide's distance with respect to x_t, itself differentiable in x_t and the reference.

    It is taken with ``create_graph`` and the math kernel of attention whether or not a gradient is wanted of it:
    otherwise the last bits differ, and a step that is done again drifts from what was stored.
    """
    keeps = torch.is_grad_enabled() and (x_t.requires_grad or reference.requires_grad)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        image = x_t if keeps and x_t.requires_grad else x_t.detach().requires_grad_()
        compared = reference if keeps and reference.requires_grad else reference.detach().requires_grad_()
        total = guide.distance(image, compared, abar_t, noise).sum()
        gradient: Tensor = torch.autograd.grad(total, image, create_graph=True)[0]
    return gradient if keeps else gradient.detach()


def make_segments(
    plan: Plan, denoiser: NoisePredictor, schedule: Schedule, noise: Noise, *, guide_gradient: bool = True
) -> list[Segment]:
    """The segments of a plan, one a network call.

    Args:
        plan: what to do.
        denoiser: predicts the noise of images in [-1, 1].
        schedule: the denoiser's schedule.
        noise: keyed by round, step and purpose.
        guide_gradient: False cuts the gradient at the guide (grad mode ``full-no-guide``).
    """
    segments: list[Segment] = []
    for number, one in enumerate(plan.rounds):
        abars = [float(schedule.alpha_bar[t]) for t in one.timesteps]
        for place, (t, abar_t, abar_prev) in enumerate(zip(one.timesteps, abars, [*abars[1:], 1.0], strict=True)):
            segments.append(
                Step(
                    denoiser=denoiser,
                    plan=plan,
                    round=one,
                    t=t,
                    abar_t=abar_t,
                    abar_prev=abar_prev,
                    key=f"{number}/{place}",
                    noise=noise,
                    first=place == 0,
                    last=place == len(abars) - 1,
                    guide_gradient=guide_gradient,
                )
            )
    return segments


@torch.no_grad()
def run_chain(segments: Sequence[Segment], x_BCHW: Tensor) -> Tensor:
    """Purify B x C x H x W in [0, 1] without a gradient; the same shape in [0, 1]."""
    state: State = (x_BCHW,)
    for segment in segments:
        state = segment(state, x_BCHW)
    return state[0]
