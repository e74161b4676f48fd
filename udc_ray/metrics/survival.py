"""Success against queries as survival data: every image counts, those that were never harmed too.

An image's time is the number of queries asked when it was first harmed; None says that it was not
harmed within what was asked. A mean over successes alone would reward an attack that gives up on
hard images, so none is computed here: the restricted mean counts a failure as the whole budget
(Royston and Parmar 2013), and the median exists only where at least half succeeded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from udc_ray.metrics.statistics import LEVEL, Estimate, PerImage, estimate, resample_indices

Times = Mapping[str, int | None]
"""Queries asked at the first success, by image id; None where there was none."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median number of queries, failures counted as never.

    Attributes:
        value: None where fewer than half of the images succeeded.
        ci_low, ci_high: percentile bootstrap at 95 %; None where that end is a failure, or n < 2.
        n: images, failures among them.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Band:
    """A mean over images at every place of a grid, with a pointwise 95 % band; all of one length."""

    mean: Doubles
    low: Doubles
    high: Doubles


def clopper_pearson(successes: int, n: int) -> Estimate:
    """Rate with the exact binomial interval at 95 % (Clopper and Pearson 1934), failures in n."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} make no rate")
    tail = (1 - LEVEL) / 2
    # The ends are quantiles of beta distributions; at 0 and n successes one of them is the end itself.
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return Estimate(mean=successes / n, ci_low=low, ci_high=high, n=n)


def success_within(times: Times, queries: int) -> Estimate:
    """Share of the images whose first success came within so many queries, with its exact interval."""
    return clopper_pearson(sum(t is not None and t <= queries for t in times.values()), len(times))


def restricted(times: Times, budget: int) -> PerImage:
    """Queries of every image up to its success or the budget, whichever came first."""
    return {i: float(budget if t is None else min(t, budget)) for i, t in times.items()}


def restricted_mean(times: Times, budget: int, seed: int) -> Estimate | None:
    """Mean of `restricted`, with the bootstrap interval that all cells share; None without images."""
    return estimate(restricted(times, budget), seed)


def median(times: Times) -> float | None:
    """The smallest number of queries within which at least half of the images succeeded."""
    if not times:
        return None
    value = _middle(_ordered(times)[None, :])[0]
    return float(value) if math.isfinite(value) else None


def median_estimate(times: Times, seed: int) -> Median:
    """The median with its percentile bootstrap interval over images.

    Args:
        times: of all images.
        seed: the run's seed.
    """
    n = len(times)
    if n < 2:
        return Median(value=median(times), ci_low=None, ci_high=None, n=n)
    values = _ordered(times)
    blocks = np.array_split(resample_indices(seed, n), 1 + n // 200)
    middles = np.concatenate([_middle(values[block]) for block in blocks])
    tail = (1 - LEVEL) / 2
    # Ends are values that occurred: between a number and never there is nothing to interpolate.
    low, high = np.quantile(middles, [tail, 1 - tail], method="inverted_cdf")
    return Median(value=median(times), ci_low=_finite(low), ci_high=_finite(high), n=n)


def success_band(times: Times, queries: Sequence[int]) -> Band:
    """Success against queries with pointwise exact intervals."""
    points = [success_within(times, q) for q in queries]
    return Band(
        mean=np.array([p.mean for p in points]),
        low=np.array([p.ci_low for p in points]),
        high=np.array([p.ci_high for p in points]),
    )


def bootstrap_band(values_NQ: Doubles, seed: int) -> Band:
    """Mean over images at every place of a grid, with the pointwise percentile bootstrap.

    Args:
        values_NQ: one row an image, ordered by image id; one column a place of the grid.
        seed: the run's seed; resamples are those of every other interval.
    """
    n = len(values_NQ)
    mean = values_NQ.mean(axis=0)
    if n < 2:
        return Band(mean=mean, low=mean, high=mean)
    indices = resample_indices(seed, n)
    means = np.empty((len(indices), values_NQ.shape[1]))
    for rows in np.array_split(np.arange(len(indices)), 20):  # 10,000 x n x grid at once would be gigabytes
        counts = np.zeros((len(rows), n))
        np.add.at(counts, (np.arange(len(rows))[:, None], indices[rows]), 1)
        means[rows] = counts @ values_NQ / n
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return Band(mean=mean, low=low, high=high)


def _ordered(times: Times) -> Doubles:
    """Times in the order of the image ids, infinite where there was no success."""
    return np.array([math.inf if (t := times[i]) is None else float(t) for i in sorted(times)])


def _middle(values_KN: Doubles) -> Doubles:
    """Lower median of every row: at least half of its values are not above it."""
    place = (values_KN.shape[1] + 1) // 2 - 1
    middle: Doubles = np.partition(values_KN, place, axis=1)[:, place]
    return middle


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
