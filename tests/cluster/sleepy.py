"""A user's own model that takes its time without taking a core, so that a fault finds work in flight."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Sleepy(nn.Module):
    """Sharpens; every pass takes SLEEPY_SECONDS.

    Args:
        weights: a text file with the gain.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        gain = 1.5 if weights is None else float(Path(weights).read_text())
        self.gain = nn.Parameter(torch.tensor(gain))
        self.blur = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.seconds = float(os.environ.get("SLEEPY_SECONDS", "0"))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        sharper: Tensor = x + self.gain * (x - self.blur(x))
        return torch.tanh(sharper)
