"""Square waves as patterns: restorers that undo a blur amplify some frequencies far more than others.

Which ones is not known beforehand, but the answer to one image that holds another wave in every
tile tells it for many waves at once. A wave is a row (cycles a pixel downwards, cycles a pixel
rightwards, colour).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOWEST, HIGHEST = 0.02, 0.4
"""Frequencies that are drawn, in cycles a pixel."""
BANDWIDTH = 0.035
"""Cycles a pixel within which waves are taken to do alike."""
DOUBT = 0.3
"""Weight of the assumption that a wave does what the average does; measured ones weigh 1 each."""


def colours(channels: int) -> Array:
    """Signs of the channels, K x C, no two opposite to one another; the first is grey (all alike)."""
    return np.array([(1.0, *rest) for rest in itertools.product((1.0, -1.0), repeat=channels - 1)])


def draw(rng: np.random.Generator, count: int, channels: int) -> Array:
    """Waves, count x 3: frequency and direction uniform, half of them grey, the rest of any other colour."""
    angle, cycles = rng.uniform(0, np.pi, count), rng.uniform(LOWEST, HIGHEST, count)
    others = len(colours(channels)) - 1
    colour = np.where(rng.random(count) < 0.5, 0, 1 + rng.integers(0, max(others, 1), count)) % (others + 1)
    return np.stack([cycles * np.sin(angle), cycles * np.cos(angle), colour], axis=1)


def crest(wave: Array, phase: float, height: int, width: int) -> Array:
    """The cosine of a wave, H x W; its sign is the square wave."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    cosine: Array = np.cos(2 * np.pi * (wave[0] * rows + wave[1] * columns) + phase)
    return cosine


def expected(tried: Array, gains: Array, waves: Array) -> Array:
    """Gain that the tried waves (n x 3) with their gains (n) let expect of others (m x 3).

    A Gaussian-weighted mean over waves of the same colour (Nadaraya 1964, Watson 1964), drawn
    towards 0, the average, where few were tried nearby. A wave and its reverse are the same.
    """
    ahead = np.square(waves[:, None, :2] - tried[None, :, :2]).sum(axis=2)
    behind = np.square(waves[:, None, :2] + tried[None, :, :2]).sum(axis=2)
    weights = np.exp(-np.minimum(ahead, behind) / (2 * BANDWIDTH**2)) * (waves[:, None, 2] == tried[None, :, 2])
    mean: Array = (weights @ gains) / (weights.sum(axis=1) + DOUBT)
    return mean


def distinct(waves: Array, count: int) -> Array:
    """The first `count` rows (fewer if there are not so many) of which no two are nearly alike."""
    picked: list[Array] = []
    for wave in waves:
        if len(picked) == count:
            break
        if all(_apart(wave, other) for other in picked):
            picked.append(wave)
    return np.array(picked).reshape(-1, waves.shape[1])


def _apart(wave: Array, other: Array) -> bool:
    near = min(np.hypot(*(wave - other)[:2]), np.hypot(*(wave + other)[:2]))
    return bool(near > BANDWIDTH or wave[2] != other[2])
