"""What a probe looks at: one victim in one mode, a crop of one image, and noise keyed by both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from udc_ray import rng
from udc_ray.attacks.base import GradientAttack
from udc_ray.attacks.objectives import Objective, get_objective
from udc_ray.data.base import Sample
from udc_ray.errors import UdcRayError
from udc_ray.plan import Plan
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

if TYPE_CHECKING:
    from udc_ray.host import Host

SIDES = (16, 64)
"""Edges in px of the crops that are tried: a small one is enough, but not for every network."""
OFF = 4 / 255
"""How far the point at which gradients are taken lies from the image: a clean image may be a stationary point."""
INSIDE = 0.02
"""By so much the image is drawn in from both ends of the box: clipping would hide half of a central difference."""


class CutGraph(UdcRayError):
    """No gradient reaches the image."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One victim, with what its gradient is taken of.

    Attributes:
        victim: the model, with its gradient mode.
        label: label of the defence in the records.
        attacks: gradient attacks of the run that meet it.
        objective: what is differentiated.
        image_id: the image.
        x_1CHW: point at which gradients are taken, near a crop of the image.
        reference_1: what outputs are compared with.
        tape: keys of the attack's noise.
        slots: images per forward pass.
    """

    victim: Victim
    label: str
    attacks: tuple[GradientAttack, ...]
    objective: Objective
    image_id: str
    x_1CHW: Tensor
    reference_1: Tensor
    tape: Tape
    slots: int = 1

    @property
    def mode(self) -> str:
        """How gradients pass the victim."""
        return self.victim.grad_mode

    def loss(self, output: Tensor) -> Tensor:
        """Loss of every row of an output."""
        reference = self.reference_1.expand(len(output), *self.reference_1.shape[1:])
        return self.objective.loss(output, reference.to(output.dtype) if reference.is_floating_point() else reference)

    def score(self, output: Tensor) -> Tensor:
        """Reported damage of every row of an output."""
        return self.objective.score(output, self.reference_1.expand(len(output), *self.reference_1.shape[1:]))

    def draws(self, draws: list[int], stream: str = "attack") -> Tape:
        """Keys of several draws for the same image, a row each."""
        rows = tuple((0, draw) for draw in draws)
        return replace(self.tape, stream=stream, image_ids=(self.image_id,) * len(draws), rows=rows)

    def gradient(self, x_BCHW: Tensor, tape: Tape, victim: Victim | None = None) -> Tensor:
        """Gradient of the loss as the mode gives it, row by row.

        Raises:
            CutGraph: the output does not depend on the image.
        """
        leaf = x_BCHW.detach().clone().requires_grad_(True)
        output = (victim or self.victim).differentiable(leaf, tape)
        if not output.requires_grad:
            raise CutGraph("the output is not connected with the image")
        (found,) = torch.autograd.grad(self.loss(output).sum(), leaf, allow_unused=True)
        if found is None:
            raise CutGraph("the gradient does not reach the image")
        return found


def met_by_gradients(plan: Plan) -> Iterator[tuple[int, str, tuple[GradientAttack, ...]]]:
    """Every victim that a gradient attack works on: its defence, the mode, and the attacks."""
    found: dict[tuple[int, str], dict[int, GradientAttack]] = {}
    undefended = next((d for d, defence in enumerate(plan.defences) if defence.purifier is None), None)
    for cell in plan.cells:
        attack, victim = plan.attacks[cell.attack].attack, (cell.defence, cell.grad_mode)
        if isinstance(attack, GradientAttack):
            if cell.grad_mode == "blind":
                if undefended is None:
                    continue
                victim = (undefended, "full")
            found.setdefault(victim, {})[cell.attack] = attack
    for (defence, mode), attacks in found.items():
        yield defence, mode, tuple(attacks.values())


def subject_of(host: Host, defence: int, mode: str, attacks: tuple[GradientAttack, ...], side: int) -> Subject:
    """The subject of a victim of a host, on a crop of a keyed image of the run.

    Args:
        host: where the models are.
        defence: number of the defence.
        mode: how gradients pass it.
        attacks: that work on it.
        side: edge of the crop in px.
    """
    ids, seed = host.setup.dataset.image_ids, host.setup.spec.seed
    image_id = ids[int(rng.generator(seed, "probe", "control").integers(len(ids)))]
    cells = [c for c in host.setup.plan.cells if c.defence == defence]
    sample, whole = host.sample(image_id), host.task.name != "restoration"
    image, truth = (sample.degraded, sample.truth) if whole else _cropped(sample, side)
    tape = Tape(seed=seed, image_ids=(image_id,), stream="attack")
    victim = host.victim(defence, mode)
    x_1CHW = image[None].to(host.device)
    objective, reference = _compared_with(host, victim, x_1CHW, truth)
    return Subject(
        victim=victim,
        label=cells[0].defence_label if cells else host.setup.plan.defences[defence].name,
        attacks=attacks,
        objective=objective,
        image_id=image_id,
        x_1CHW=_beside(x_1CHW, tape),
        reference_1=reference,
        tape=tape,
        slots=host.slots,
    )


def _cropped(sample: Sample, side: int) -> tuple[Tensor, Tensor | None]:
    """The middle of an image and of its truth; no truth where it is of another size."""
    image, truth = sample.degraded, sample.truth
    height, width = image.shape[-2:]
    top, left = max(0, height - side) // 2, max(0, width - side) // 2
    place = (..., slice(top, top + side), slice(left, left + side))
    fits = truth is not None and truth.shape[-2:] == image.shape[-2:]
    return image[place], truth[place] if truth is not None and fits else None


def _compared_with(host: Host, victim: Victim, x_1CHW: Tensor, truth: Tensor | None) -> tuple[Objective, Tensor]:
    """The task's own objective; against the victim's answer to the untouched crop where there is no truth to it."""
    names = host.task.objectives
    if truth is not None:
        return get_objective(names[0]), truth[None].to(host.device)
    tape = Tape(seed=host.setup.spec.seed, image_ids=("probe",), stream="control")
    output, _ = victim.evaluate(x_1CHW, tape)
    clean = f"{names[0]}-clean"
    return get_objective(clean if clean in names else names[0]), host.task.clean_reference([output[0]])[None]


def _beside(x_1CHW: Tensor, tape: Tape) -> Tensor:
    """A point near an image at which no two values are equal, as equal ones are kinks of medians."""
    noise = [rng.uniform(g, -OFF, OFF, *x_1CHW.shape[1:]) for g in tape.generators("probe")]
    return INSIDE + (1 - 2 * INSIDE) * x_1CHW + torch.stack(noise).to(x_1CHW)
