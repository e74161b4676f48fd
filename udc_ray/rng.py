"""Keyed randomness: every draw is a function of what it is for, never of when it is made.

The key is SHA-256 over (seed, image id, stream, restart, sample, step) and feeds a Philox
counter generator on the CPU, so that a draw does not depend on batch companions, workers or
order, and a retried unit draws the same numbers.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from torch import Tensor


def generator(
    seed: int, image_id: str, stream: str, *, restart: int = 0, sample: int = 0, step: int = 0
) -> np.random.Generator:
    """Make the generator of one draw.

    Args:
        seed: the run's seed.
        image_id: stable id of the image.
        stream: what the draw is for, such as ``attack/pgd(...)`` or ``eval/ddim(...)``.
        restart: restart of the attack.
        sample: purification sample.
        step: step within the attack or the sampler.
    """
    key = json.dumps([seed, image_id, stream, restart, sample, step], separators=(",", ":"))
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """Standard normal noise, float32."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform noise in [low, high), float32."""
    return torch.from_numpy(rng.random(shape, dtype=np.float32)) * (high - low) + low


def signs(rng: np.random.Generator, *shape: int) -> Tensor:
    """Independent signs, -1 or +1, float32."""
    return torch.from_numpy(rng.integers(0, 2, shape).astype(np.float32)) * 2 - 1
