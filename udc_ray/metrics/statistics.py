"""From records to numbers: per-image values, bootstrap intervals, paired differences, rates.

Per image: mean over the purification samples, then the worst over restarts. A cell is the mean of
its images' values; the interval is a percentile bootstrap over images (Efron 1979).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_ray import rng
from udc_ray.records import Record

RESAMPLES = 10_000
LEVEL = 0.95
CLAIM_SIZE = 8
"""Images below which no claim is made."""

_WORST_IS_LOW = frozenset({"psnr_adv", "psnr_mean_output_adv", "psnr_median_output_adv", "ssim_adv", "score_adv"})
_WORST_IS_HIGH = frozenset({"lpips_adv", "linf", "l2", "success"})
_SPENT = frozenset({"queries", "queries_harness", "queries_reexecuted", "grad_evals", "seconds"})

WORST_OF_N = {"worst_psnr_clean": "psnr_clean", "worst_psnr_adv": "psnr_adv"}
"""Metrics that take the worst of the N fresh purifications of an image, and the columns that they read."""

PerImage = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over images, with its 95 % interval where there are at least two."""

    mean: float
    ci_low: float | None
    ci_high: float | None
    n: int


@lru_cache(maxsize=4)
def resample_indices(seed: int, n: int) -> NDArray[np.integer[Any]]:
    """Keyed resamples of n images, 10,000 x n.

    The key holds neither cell nor metric: every cell with the same image list is resampled alike,
    which is what makes the intervals of differences paired.
    """
    small = np.uint16 if n <= 2**16 else np.uint32
    indices = rng.generator(seed, "bootstrap", "eval").integers(0, n, size=(RESAMPLES, n), dtype=small)
    indices.flags.writeable = False
    return indices


def bootstrap_mean(values: Sequence[float], seed: int) -> Estimate:
    """Mean of per-image values and its percentile bootstrap interval.

    Args:
        values: one finite value per image, ordered by image id.
        seed: the run's seed.
    """
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n == 0:
        raise ValueError("no values to average")
    if n == 1:
        return Estimate(mean=float(data[0]), ci_low=None, ci_high=None, n=1)
    # In blocks: 10,000 x n doubles at once would be 290 MB at 3,600 images.
    blocks = np.array_split(resample_indices(seed, n), 1 + n // 200)
    means = np.concatenate([data[block].mean(axis=1) for block in blocks])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean=float(data.mean()), ci_low=float(low), ci_high=float(high), n=n)


def estimate(values: Mapping[str, float], seed: int) -> Estimate | None:
    """Mean over images with interval; None where nothing was measured."""
    return bootstrap_mean([values[i] for i in sorted(values)], seed) if values else None


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> PerImage:
    """Paired difference over the images that both have."""
    return {i: first[i] - second[i] for i in sorted(first.keys() & second.keys())}


def mean_of(values: Mapping[str, float]) -> float:
    """Plain mean; NaN where there is nothing."""
    return math.fsum(values.values()) / len(values) if values else math.nan


def wilson(successes: int, n: int) -> Estimate:
    """Rate with the Wilson score interval at 95 % (Wilson 1927, eq. for the roots in p)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} make no rate")
    z = 1.959963984540054
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At 0 and n successes the roots are 0 and 1 exactly; rounding must not push them outside.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(mean=rate, ci_low=low, ci_high=high, n=n)


@dataclass(frozen=True, kw_only=True)
class CellRecords:
    """All records of one cell.

    Attributes:
        head: any of them, for what the cell's records have in common.
        records: all of them, those of failed units included.
    """

    head: Record
    records: tuple[Record, ...]

    @property
    def attack_label(self) -> str:
        """What names the attack, whatever the defence: the label up to its bar."""
        return self.head.label.partition(" | ")[0]

    @property
    def kind(self) -> str:
        """``control``, ``gradient`` or ``query``, read from what the attack spent."""
        if any(r.grad_evals for r in self.records):
            return "gradient"
        return "query" if any(r.queries for r in self.records) else "control"

    @property
    def adaptive(self) -> bool:
        """Whether the attack worked on the very victim that is scored."""
        return self.head.grad_mode != "blind"

    @property
    def images(self) -> tuple[str, ...]:
        """Every image that the cell was asked for."""
        return tuple(sorted({r.image_id for r in self.records}))

    @property
    def measured(self) -> tuple[Record, ...]:
        """Records of units that did not fail."""
        return tuple(r for r in self.records if r.error is None and r.stop_reason != "error")

    @property
    def draws(self) -> int:
        """N: fresh purifications of an image that were evaluated; 1 where there is nothing random."""
        return max((r.sample for r in self.measured), default=0) + 1

    def samples(self, column: str) -> dict[str, dict[int, list[float]]]:
        """Values of a column by image and restart, one a purification sample; unknown ones left out."""
        values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in sorted(self.measured, key=lambda r: r.key):
            value = getattr(record, column)
            if value is not None and math.isfinite(value):
                values[record.image_id][record.restart].append(float(value))
        return {image: dict(restarts) for image, restarts in values.items()}

    def per_image(self, column: str) -> PerImage:
        """One value per image.

        Mean over samples, then over restarts: the worst for what the attack did, the sum for what
        it spent, the mean for what it had no part in. ``drop_psnr`` is psnr_clean - psnr_adv;
        ``worst_psnr_*`` is the worst of all samples and restarts, and nothing where there is one sample.
        """
        if column == "drop_psnr":
            return difference(self.per_image("psnr_clean"), self.per_image("psnr_adv"))
        if column in WORST_OF_N:
            found = self.samples(WORST_OF_N[column]) if self.draws > 1 else {}
            return {image: min(map(min, restarts.values())) for image, restarts in found.items()}
        merged = {}
        for image, restarts in self.samples(column).items():
            means = [math.fsum(v) / len(v) for v in restarts.values()]
            merged[image] = _over_restarts(column, means)
        return merged

    def standard_error(self, column: str) -> PerImage:
        """Standard error of an image's mean over samples (largest over restarts); 0 for one sample."""
        errors = {}
        for image, restarts in self.samples(column).items():
            spread = [float(np.std(v, ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else 0.0 for v in restarts.values()]
            errors[image] = max(spread)
        return errors


def _over_restarts(column: str, means: list[float]) -> float:
    if column in _WORST_IS_LOW:
        return min(means)
    if column in _WORST_IS_HIGH:
        return max(means)
    return math.fsum(means) if column in _SPENT else math.fsum(means) / len(means)


def group_cells(records: Iterable[Record]) -> list[CellRecords]:
    """Records by cell, in order of first appearance."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(record.cell, []).append(record)
    return [CellRecords(head=rows[0], records=tuple(rows)) for rows in cells.values()]
