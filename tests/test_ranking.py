"""Ranking of noise levels by features: the planted level wins, intervals cover, too few images are refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from udc_ray.errors import SpecError
from udc_ray.metrics.frechet import frechet, gaussian, kid
from udc_ray.purifiers.ranking import Metric, rank, require_rows

WIDTH = 4


def features(count: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, scale, (count, WIDTH))


def levels(count: int) -> list[NDArray[np.float64]]:
    """The same trial images moved away from the clean mean by 1, 0.1 and 0.6."""
    base = features(count, 1)
    return [base + shift for shift in (1.0, 0.1, 0.6)]


@pytest.mark.parametrize("metric", ["fid", "kid"])
def test_the_nearest_level_wins_with_its_own_distance(metric: Metric) -> None:
    clean = features(60, 0)
    ranking = rank(metric, clean, levels(40), seed=0, draws=200)
    expected = [kid(clean, x) if metric == "kid" else frechet(gaussian(clean), gaussian(x)) for x in levels(40)]
    assert [row.distance for row in ranking.rows] == pytest.approx(expected, rel=1e-9)
    assert ranking.chosen == 1 == int(np.argmin(expected))
    assert sum(row.share for row in ranking.rows) == pytest.approx(1)
    assert ranking.agreement > 0.95
    assert all(row.ci_low < row.distance < row.ci_high for row in ranking.rows)


def test_levels_that_hardly_differ_share_the_draws() -> None:
    base = features(40, 1)
    same = [base, base + np.random.default_rng(2).normal(0, 0.02, base.shape)]
    ranking = rank("kid", features(60, 0), same, seed=0, draws=400)
    assert 0.05 < ranking.rows[0].share < 0.95


def test_the_interval_of_kid_has_the_spread_of_fresh_trial_sets() -> None:
    clean, draws = features(200, 0), 400
    fresh = [kid(clean, features(30, seed, 0.4)) for seed in range(300)]
    widths = []
    for seed in range(10):
        row = rank("kid", clean, [features(30, 1000 + seed, 0.4)], seed=seed, draws=draws).rows[0]
        widths.append(row.ci_high - row.ci_low)
    spread = float(np.quantile(fresh, 0.975) - np.quantile(fresh, 0.025))
    assert 0.6 < float(np.mean(widths)) / spread < 1.6


def test_a_ranking_is_keyed_by_the_seed_only() -> None:
    clean = features(60, 0)
    assert rank("kid", clean, levels(9), seed=3, draws=50) == rank("kid", clean, levels(9), seed=3, draws=50)
    assert rank("kid", clean, levels(9), seed=3, draws=50) != rank("kid", clean, levels(9), seed=4, draws=50)


def test_two_trial_images_are_enough_for_kid() -> None:
    ranking = rank("kid", features(2, 0), [features(2, 1), features(2, 1, 3.0)], seed=0, draws=20)
    assert ranking.chosen == 0
    assert all(np.isfinite([row.ci_low, row.ci_high]).all() for row in ranking.rows)


@pytest.mark.parametrize(
    ("clean", "trials", "said"), [(8, 7, "8 trial images"), (7, 8, "8 clean images"), (3, 3, "8 trial images")]
)
def test_fid_is_offered_only_where_both_sides_have_twice_the_width(clean: int, trials: int, said: str) -> None:
    require_rows("fid", 8, 8, WIDTH)
    require_rows("kid", clean, trials, WIDTH)
    with pytest.raises(SpecError, match=said) as told:
        rank("fid", features(clean, 0), [features(trials, 1)], seed=0, draws=5)
    assert "metric: kid" in str(told.value)


@pytest.mark.parametrize("metric", ["fid", "kid"])
@pytest.mark.parametrize(("clean", "trials"), [(1, 9), (9, 1), (9, 0)])
def test_one_image_is_no_distribution(metric: Metric, clean: int, trials: int) -> None:
    with pytest.raises(SpecError, match="no distribution"):
        require_rows(metric, clean, trials, WIDTH)
