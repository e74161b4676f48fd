"""A small training loop with keyed batches, an average of the weights, and exact resume."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from udc_ray.errors import SpecError


class TrainSpec(BaseModel):
    """How long and how to train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0)
    batch: int = Field(default=8, gt=0)
    crop: int = Field(default=96, gt=0)
    """Edge of the square training crops in pixels."""
    rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW; cosine to 1 % of it."""
    warmup: int = Field(default=200, ge=0)
    average: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the exponential average of the weights."""
    clip: float = Field(default=1.0, gt=0)
    seed: int = 0
    bfloat16: bool = True
    checkpoint_every: int = Field(default=250, gt=0)


class Recipe(Protocol):
    """What a training step is: the network, its loss, and how it is judged."""

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Scalar loss of the batch of one step."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on the tune split."""
        ...


Progress = Callable[[int, float], None]
"""Called after every step with the step and its loss."""


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Linear warm-up, then a cosine from `rate` to 1 % of it at the last step."""
    if step < spec.warmup:
        return spec.rate * (step + 1) / spec.warmup
    share = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(share * torch.pi)).item())
    return spec.rate * (0.01 + 0.99 * cosine)


class Trainer:
    """Trains one network; `OUT/checkpoint.pt` holds all that a resume needs.

    Args:
        network: the network, trained in place.
        recipe: its loss and validation.
        spec: the settings; a checkpoint of other settings is refused.
        out: folder of the checkpoint.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, spec: TrainSpec, out: Path) -> None:
        self.network, self.recipe, self.spec = network, recipe, spec
        self.checkpoint = out / "checkpoint.pt"
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=spec.rate, betas=(0.9, 0.95), weight_decay=1e-4)
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        out.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._resume()

    def run(self, progress: Progress, stop_after: float = float("inf")) -> bool:
        """Train to the end, or for `stop_after` seconds; True when the last step is done."""
        started = last = time.monotonic()
        self.network.train()
        whole = True
        try:
            while self.step < self.spec.steps and time.monotonic() - started < stop_after:
                whole = False
                loss = self._step()
                whole = True
                now = time.monotonic()
                self.seconds, last = self.seconds + now - last, now
                progress(self.step, loss)
                if self.step % self.spec.checkpoint_every == 0:
                    self._save()
        finally:
            if whole:  # Ctrl-C keeps what is done, unless it came in the middle of a step
                self._save()
        return self.step >= self.spec.steps

    def averaged(self) -> nn.Module:
        """The network with its averaged weights, in evaluation mode."""
        self.network.load_state_dict(self.average)
        return self.network.eval()

    def _step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.step)
        device_type = next(self.network.parameters()).device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.spec.bfloat16):
            loss = self.recipe.loss(self.network, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip)
        self.optimizer.step()
        decay = min(self.spec.average, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value.to(self.average[name].dtype), 1 - decay)
        self.step += 1
        return float(loss.detach())

    def _save(self) -> None:
        state = {
            "spec": self.spec.model_dump_json(),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if state["spec"] != self.spec.model_dump_json():
            raise SpecError(
                f"{self.checkpoint} belongs to another training run",
                f"it was made with {state['spec']}",
                "give the same settings, or another --out",
            )
        self.network.load_state_dict(state["network"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)  # onto the network's device and memory format
        self.step, self.seconds = state["step"], state["seconds"]
        self.optimizer.load_state_dict(state["optimizer"])
