"""A restorer that ends its process when it meets the image whose mean its weights file names."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn


class Deadly(nn.Module):
    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        if any(abs(float(image.mean()) - self.mean) < 1e-6 for image in x):
            os._exit(1)
        return x * torch.ones(1)


def make(weights: str) -> nn.Module:
    return Deadly(float(Path(weights).read_text()))
