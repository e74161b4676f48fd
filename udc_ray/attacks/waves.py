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

LOWEST, HIGHEST = 0.02, 0.35
"""Frequencies that are drawn, in cycles a pixel."""
GREY = 0.75
"""Share of grey waves: where channels agree, restorers amplify most."""
BANDWIDTH = 0.035
"""Cycles a pixel within which waves are taken to do alike."""
DOUBT = 0.3
"""Weight of the assumption that a wave does what the average does; those measured in one tile weigh 1."""


def colours(channels: int) -> Array:
    """Signs of the channels, K x C, no two opposite to one another; the first is grey (all alike)."""
    return np.array([(1.0, *rest) for rest in itertools.product((1.0, -1.0), repeat=channels - 1)])


def draw(rng: np.random.Generator, count: int, channels: int) -> Array:
    """Waves, count x 3: frequency and direction uniform, `GREY` of them grey, the rest of any other colour."""
    angle, cycles = rng.uniform(0, np.pi, count), rng.uniform(LOWEST, HIGHEST, count)
    others = len(colours(channels)) - 1
    colour = np.where(rng.random(count) < GREY, 0, 1 + rng.integers(0, max(others, 1), count)) % (others + 1)
    return np.stack([cycles * np.sin(angle), cycles * np.cos(angle), colour], axis=1)


def crest(wave: Array, phase: float, height: int, width: int) -> Array:
    """The cosine of a wave, H x W; its sign is the square wave."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    cosine: Array = np.cos(2 * np.pi * (wave[0] * rows + wave[1] * columns) + phase)
    return cosine


def expected(tried: Array, gains: Array, trust: Array, waves: Array) -> Array:
    """Gain that tried waves let expect of others.

    A Gaussian-weighted mean over waves of the same colour (Nadaraya 1964, Watson 1964), drawn
    towards 0, the average, where few were tried nearby. A wave and its reverse are the same.

    Args:
        tried: waves, n x 3.
        gains: their gains, n.
        trust: weight of each, n.
        waves: waves to judge, m x 3.
    """
    weights = np.exp(-np.square(distances(waves, tried)) / (2 * BANDWIDTH**2)) * trust
    mean: Array = (weights @ gains) / (weights.sum(axis=1) + DOUBT)
    return mean


def distances(waves: Array, others: Array) -> Array:
    """Cycles a pixel from each wave (m x 3) to each of the others (n x 3), infinite to those of another colour."""
    ahead = np.linalg.norm(waves[:, None, :2] - others[None, :, :2], axis=2)
    behind = np.linalg.norm(waves[:, None, :2] + others[None, :, :2], axis=2)
    return np.where(waves[:, None, 2] == others[None, :, 2], np.minimum(ahead, behind), np.inf)
