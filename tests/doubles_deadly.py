"""Restorers that end their process, or never return, when they meet the image whose mean their weights file names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch
from torch import Tensor, nn


class Deadly(nn.Module):
    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        if any(abs(float(image.detach().mean()) - self.mean) < 1e-6 for image in x):
            os._exit(1)
        return x * torch.ones(1)


def make(weights: str) -> nn.Module:
    return Deadly(float(Path(weights).read_text()))


class Stuck(nn.Module):
    """Never returns when it meets a certain image, once; a file beside the weights file remembers it."""

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.mean, self.met = float(Path(weights).read_text()), Path(f"{weights}.met")

    def forward(self, x: Tensor) -> Tensor:
        if any(abs(float(image.detach().mean()) - self.mean) < 1e-6 for image in x) and not self.met.exists():
            self.met.touch()
            threading.Event().wait()
        return x * torch.ones(1)


def make_stuck(weights: str) -> nn.Module:
    return Stuck(weights)
