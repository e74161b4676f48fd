"""Success against queries, checked against SciPy, NumPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from udc_ray.metrics.statistics import bootstrap_mean, resample_indices
from udc_ray.metrics.survival import (
    bootstrap_band,
    clopper_pearson,
    median,
    median_estimate,
    restricted,
    restricted_mean,
    success_band,
    success_within,
)

TIMES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.none() | st.integers(1, 500), min_size=1)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 9), (9, 9), (3, 4), (1, 40), (250, 256)])
def test_the_exact_interval_is_scipys(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    found = clopper_pearson(successes, n)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found.mean, found.n) == (successes / n, n)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.97])
def test_the_exact_interval_covers_at_least_95_percent_of_the_draws(rate: float) -> None:
    n = 25
    intervals = [clopper_pearson(k, n) for k in range(n + 1)]
    inside = [k for k, i in enumerate(intervals) if (i.ci_low or 0.0) <= rate <= (i.ci_high or 0.0)]
    assert sum(stats.binom.pmf(k, n, rate) for k in inside) >= 0.95


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 4), (5, 4)])
def test_a_rate_that_is_none_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="make no rate"):
        clopper_pearson(successes, n)


def test_failures_are_in_every_number() -> None:
    times = {"a": 10, "b": None, "c": 40, "d": None, "e": 30}
    assert success_within(times, 10).mean == 0.2
    assert success_within(times, 39).mean == 0.4
    assert success_within(times, 10**9).mean == 0.6
    assert restricted(times, 35) == {"a": 10.0, "b": 35.0, "c": 35.0, "d": 35.0, "e": 30.0}
    mean = restricted_mean(times, 100, seed=0)
    assert mean is not None and mean.mean == (10 + 100 + 40 + 100 + 30) / 5
    assert mean.ci_low is not None and mean.ci_high is not None and mean.ci_low < mean.mean < mean.ci_high
    assert median(times) == 40  # not 30, which is the median of the successes


def test_there_is_no_median_where_fewer_than_half_succeeded() -> None:
    assert median({"a": 3, "b": 5, "c": None, "d": None}) == 5
    assert median({"a": 3, "b": None, "c": None, "d": None}) is None
    assert median({"a": 3, "b": None, "c": None}) is None
    assert median({"a": None}) is None and median({}) is None


@given(TIMES)
def test_the_median_is_where_the_success_curve_reaches_one_half(times: dict[str, int | None]) -> None:
    found = median(times)
    if found is None:
        assert success_within(times, 500).mean < 0.5
    else:
        assert success_within(times, int(found)).mean >= 0.5 > success_within(times, int(found) - 1).mean


@given(TIMES, st.integers(1, 600))
def test_success_grows_with_queries_and_the_restricted_mean_stays_within_the_budget(
    times: dict[str, int | None], budget: int
) -> None:
    grid = sorted({1, budget, 250, 600})
    band = success_band(times, grid)
    assert all(np.diff(band.mean) >= 0) and all(band.low <= band.mean) and all(band.mean <= band.high)
    values = restricted(times, budget)
    assert values.keys() == times.keys() and all(1 <= v <= budget for v in values.values())
    # The restricted mean is the area above the success curve, from 0 to the budget.
    area = sum(1 - success_within(times, q).mean for q in range(budget))
    assert sum(values.values()) / len(values) == pytest.approx(area, rel=1e-9)


def test_the_interval_of_the_median_is_that_of_all_resamples() -> None:
    times = {"a": 10, "b": None, "c": 40, "d": 25, "e": 30, "f": 12}
    found = median_estimate(times, seed=3)
    ordered = np.array([math.inf if times[i] is None else times[i] for i in sorted(times)], dtype=float)
    medians = np.sort([np.sort(row)[2] for row in ordered[resample_indices(3, 6)]])
    assert (found.value, found.n) == (25, 6)
    assert (found.ci_low, found.ci_high) == (medians[249], medians[9749])


def test_an_end_of_the_interval_can_be_never() -> None:
    found = median_estimate({"a": 10, "b": None, "c": 40, "d": None}, seed=0)
    assert found.value == 40 and found.ci_low == 10 and found.ci_high is None
    alone = median_estimate({"a": 7}, seed=0)
    assert (alone.value, alone.ci_low, alone.ci_high, alone.n) == (7, None, None, 1)


def test_the_band_has_at_every_place_the_interval_of_the_tables() -> None:
    values = np.random.default_rng(0).normal(25, 3, (9, 4))
    band = bootstrap_band(values, seed=5)
    for place in range(4):
        single = bootstrap_mean(values[:, place], seed=5)
        assert band.mean[place] == pytest.approx(single.mean, abs=1e-12)
        assert band.low[place] == pytest.approx(single.ci_low, abs=1e-9)
        assert band.high[place] == pytest.approx(single.ci_high, abs=1e-9)
    one = bootstrap_band(values[:1], seed=5)
    assert np.array_equal(one.low, one.mean) and np.array_equal(one.high, one.mean)
