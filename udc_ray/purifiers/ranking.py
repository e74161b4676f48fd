"""Which noise level brings attacked images nearest to clean ones; pure functions of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udc_ray import rng
from udc_ray.errors import SpecError
from udc_ray.metrics.frechet import Array, frechet, frechet_draws, gaussian, kid, kid_draws
from udc_ray.metrics.statistics import LEVEL

Metric = Literal["fid", "kid"]
Features = NDArray[np.floating]

FID_ROWS = 2
"""Images a feature below which a covariance, and with it the Frechet distance, says nothing."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One candidate level.

    Attributes:
        distance: of the purified trial images from the clean side.
        ci_low, ci_high: 95 % of the resamples of the trial images, about `distance`.
        share: of the resamples in which this level is the nearest.
    """

    distance: float
    ci_low: float
    ci_high: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Candidate levels, in the order in which they were given.

    Attributes:
        metric: ``fid`` or ``kid``.
        rows: one a level.
        chosen: index of the nearest level.
    """

    metric: Metric
    rows: tuple[Ranked, ...]
    chosen: int

    @property
    def agreement(self) -> float:
        """Share of the resamples that choose the same level."""
        return self.rows[self.chosen].share


def require_rows(metric: Metric, clean: int, trials: int, width: int) -> None:
    """Refuse a distance for which there are too few images.

    Args:
        metric: ``fid`` needs twice as many images as features on either side; ``kid`` two.
        clean: images of the clean side.
        trials: trial images.
        width: features an image.

    Raises:
        SpecError: with what is needed.
    """
    if min(clean, trials) < 2:
        raise SpecError(
            f"{min(clean, trials)} image{'s make' if min(clean, trials) != 1 else ' makes'} no distribution: "
            f"{clean} clean, {trials} trial images",
            change="give more trial or clean images",
        )
    needed = FID_ROWS * width
    if metric == "fid" and min(clean, trials) < needed:
        short, count = ("trial", trials) if trials < needed else ("clean", clean)
        raise SpecError(
            f"metric fid needs {needed} {short} images for {width} features; there are {count}",
            "with fewer, the covariance says more about the sample than about the images",
            f"use metric: kid, which is unbiased at any number; or give {needed} or more",
        )


def rank(metric: Metric, clean_MD: Features, levels: Sequence[Features], seed: int, draws: int) -> Ranking:
    """Rank levels by the distance of purified trial images from clean ones (Yu et al. 2024, ANLS).

    The trial images are resampled, the same ones at every level, so that levels are compared on equal draws. The
    interval is that of the resamples, moved to lie about the distance: the Frechet distance of a resample is larger
    throughout, as a resample holds fewer different images.

    Args:
        metric: ``fid`` (Frechet) or ``kid`` (kernel).
        clean_MD: features of unattacked images.
        levels: features N x D of the same N trial images, purified at every level.
        seed: the run's.
        draws: resamples.
    """
    count = len(levels[0])
    require_rows(metric, len(clean_MD), count, clean_MD.shape[1])
    weights_KN = _resamples(seed, count, draws)
    found = [
        (distance(metric, clean_MD, features_ND), _resampled(metric, clean_MD, features_ND, weights_KN))
        for features_ND in levels
    ]
    nearest = np.argmin([drawn for _, drawn in found], axis=0)
    rows = [_row(value, drawn, float((nearest == index).mean())) for index, (value, drawn) in enumerate(found)]
    chosen = min(range(len(rows)), key=lambda index: rows[index].distance)
    return Ranking(metric=metric, rows=tuple(rows), chosen=chosen)


def distance(metric: Metric, clean_MD: Features, features_ND: Features) -> float:
    """Distance of images from clean ones, by their features."""
    return kid(clean_MD, features_ND) if metric == "kid" else frechet(gaussian(clean_MD), gaussian(features_ND))


def _resampled(metric: Metric, clean_MD: Features, features_ND: Features, weights_KN: Array) -> Array:
    if metric == "kid":
        return kid_draws(clean_MD, features_ND, weights_KN)
    return frechet_draws(gaussian(clean_MD), features_ND, weights_KN)


def _row(value: float, drawn_K: Array, share: float) -> Ranked:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn_K - drawn_K.mean(), [tail, 1 - tail])
    return Ranked(distance=value, ci_low=float(value + low), ci_high=float(value + high), share=share)


def _resamples(seed: int, count: int, draws: int) -> Array:
    """How often each of `count` images is in each resample; a resample holds two different images at least."""
    generator = rng.generator(seed, "bootstrap", "select")
    rows = [np.bincount(generator.integers(0, count, count), minlength=count) for _ in range(draws)]
    return np.array([row if row.max() < count else np.ones(count) for row in rows], dtype=np.float64)
