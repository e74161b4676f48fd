"""A restorer that ends its process when it meets the image that a marker file names."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn


class Deadly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        marker = Path(os.environ.get("UDC_RAY_TEST_DEADLY", "/nonexistent"))
        if marker.exists() and any(abs(float(image.mean()) - float(marker.read_text())) < 1e-6 for image in x):
            os._exit(1)
        return x * torch.ones(1)


def make() -> nn.Module:
    return Deadly()
