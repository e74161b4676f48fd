"""Does the place of an image in a batch change its bits? Measured before a run, not hoped for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What the probes settled; written to the run's spec and kept by every resume.

    Attributes:
        micro_batch: slots of every forward pass.
        threads: torch threads of a host.
        device_type: ``cpu`` or ``cuda``.
        notes: what had to be changed, and why.
        levels: times that were chosen for defences with ``selector: anls``, by their place in the spec.
        layers: the layer whose features decided, likewise.
        selections: how they were chosen, for selection.json; not kept in the spec.
    """

    micro_batch: int
    threads: int
    device_type: str
    notes: tuple[str, ...] = ()
    levels: dict[str, int] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    selections: tuple[dict[str, Any], ...] = ()

    def to_values(self) -> dict[str, Any]:
        """What the run's spec keeps, as plain values."""
        chosen = {"levels": self.levels, "layers": self.layers}
        settled = {name: value for name, value in asdict(self).items() if name not in {"selections", *chosen}}
        return settled | {name: value for name, value in chosen.items() if value}


def output_and_gradient(network: Network, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of its mean square per image with respect to the input.

    A network that gives no gradient (its queries can still be answered) has the gradient 0.
    """
    leaf = x_BCHW.detach().clone().requires_grad_(True)
    output = network(leaf)
    if not output.requires_grad:
        return output, torch.zeros_like(leaf)
    gradient = torch.autograd.grad(output.square().flatten(1).mean(dim=1).sum(), leaf)[0]
    return output.detach(), gradient


def position_invariant(network: Network, shape: tuple[int, int, int], slots: int, device: str = "cpu") -> bool:
    """Whether every image gets the same bits, forward and backward, at every place of the batch.

    Args:
        network: B x C x H x W to the same shape, differentiable.
        shape: C, H, W of the images.
        slots: batch size.
        device: where the network lives.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(slots, *shape, generator=generator).to(device)
    reference = output_and_gradient(network, x)
    for turn in range(1, slots):
        turned = output_and_gradient(network, x.roll(turn, dims=0))
        if not all(torch.equal(a, b.roll(-turn, dims=0)) for a, b in zip(reference, turned, strict=True)):
            return False
    return True


def settle(
    networks: Sequence[Network], shapes: list[tuple[int, int, int]], asked: Resolved, device: str = "cpu"
) -> Resolved:
    """Find a micro-batch and a thread count at which results do not depend on the place.

    The micro-batch asked for is kept where it passes; else it goes up to a multiple of 4, else the
    host goes down to one thread.
    """
    multiple = -(-asked.micro_batch // 4) * 4
    tries = [(asked.micro_batch, asked.threads), (multiple, asked.threads), (asked.micro_batch, 1), (multiple, 1)]
    before = torch.get_num_threads()
    try:
        for slots, threads in dict.fromkeys(tries):
            torch.set_num_threads(threads)
            if all(position_invariant(n, shape, slots, device) for n in networks for shape in shapes):
                changed = (slots, threads) != (asked.micro_batch, asked.threads)
                note = f"results depended on the place in the batch: micro_batch {slots}, threads {threads}"
                return Resolved(
                    micro_batch=slots,
                    threads=threads,
                    device_type=asked.device_type,
                    notes=(*asked.notes, note) if changed else asked.notes,
                )
    finally:
        torch.set_num_threads(before)
    warning = "results depend on the place in the batch at every setting that was tried; micro_batch 1 is used"
    return Resolved(micro_batch=1, threads=1, device_type=asked.device_type, notes=(*asked.notes, warning))
