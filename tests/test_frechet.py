"""Feature distances against SciPy, closed forms and double loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg

from udc_ray.metrics.frechet import (
    Gaussian,
    cubic_kernel,
    frechet,
    frechet_draws,
    gaussian,
    kid,
    kid_draws,
    root_of,
)

Array = NDArray[np.float64]


def features(seed: int, count: int, width: int, scale: float = 1.0, shift: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, scale, (count, width)) @ rng.normal(0, 1, (width, width))


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The formula as FID implementations write it."""
    product = linalg.sqrtm(a.covariance @ b.covariance)
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(product).real)


def test_gaussian_is_numpys_mean_and_covariance() -> None:
    x = features(0, 30, 5)
    assert np.allclose(gaussian(x).covariance, np.cov(x.T), rtol=1e-12)
    assert np.allclose(gaussian(x).mean, x.mean(axis=0), rtol=1e-12)
    with pytest.raises(ValueError, match="two rows"):
        gaussian(x[:1])


@pytest.mark.parametrize("width", [1, 4, 24])
def test_frechet_equals_the_formula_with_scipys_matrix_root(width: int) -> None:
    a, b = gaussian(features(1, 200, width)), gaussian(features(2, 150, width, 1.3, 0.4))
    assert frechet(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-9)


def test_frechet_of_covariances_that_commute_is_known_in_closed_form() -> None:
    """In a common basis the axes are independent: sum of (m - n)^2 + (sd - sd')^2."""
    rng = np.random.default_rng(3)
    basis, _ = linalg.qr(rng.normal(size=(9, 9)))
    first, second = rng.uniform(0, 4, 9), rng.uniform(0, 4, 9)
    first[0] = second[1] = 0.0
    m, n = rng.normal(size=9), rng.normal(size=9)
    a = Gaussian(mean=m, covariance=basis @ np.diag(first**2) @ basis.T)
    b = Gaussian(mean=n, covariance=basis @ np.diag(second**2) @ basis.T)
    assert frechet(a, b) == pytest.approx(float(((m - n) ** 2 + (first - second) ** 2).sum()), rel=1e-6)


def test_frechet_survives_singular_covariances() -> None:
    """Fewer rows than features: rank 5 in 40 dimensions; the Gaussians of the same rows are at distance 0."""
    x = features(4, 6, 40)
    a = gaussian(x)
    assert np.linalg.matrix_rank(a.covariance) == 5
    assert frechet(a, a) < 1e-6 * np.trace(a.covariance)
    moved = Gaussian(mean=a.mean + 0.5, covariance=a.covariance)
    assert frechet(a, moved) == pytest.approx(0.25 * 40, rel=1e-6)
    wider = Gaussian(mean=a.mean, covariance=4 * a.covariance)
    assert frechet(a, wider) == pytest.approx(float(np.trace(a.covariance)), rel=1e-6)
    tiny = Gaussian(mean=a.mean, covariance=a.covariance + 1e-14 * np.eye(40))
    assert math.isfinite(frechet(a, tiny))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 6))
def test_frechet_is_symmetric_positive_and_zero_for_the_same(seed: int, count: int, width: int) -> None:
    a, b = gaussian(features(seed, count, width)), gaussian(features(seed + 1, count + 1, width))
    scale = float(np.trace(a.covariance) + np.trace(b.covariance)) + 1e-9
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6, abs=1e-9 * scale)
    assert 0 <= frechet(a, a) < 1e-6 * scale


def test_root_squares_back() -> None:
    covariance = gaussian(features(5, 50, 8)).covariance
    assert np.allclose(root_of(covariance) @ root_of(covariance), covariance, rtol=1e-10)


def test_kid_is_the_double_loop_over_pairs() -> None:
    x, y = features(6, 7, 3) / 3, features(7, 5, 3) / 3 + 0.3

    def k(a: Array, b: Array) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_y = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    across = sum(k(a, b) for a in x for b in y) / 35
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-10)
    assert kid(y, x) == pytest.approx(kid(x, y), rel=1e-9)
    assert cubic_kernel(x, y)[2, 3] == pytest.approx(k(x[2], y[3]), rel=1e-12)
    with pytest.raises(ValueError, match="two rows"):
        kid(x, y[:1])


def test_kid_is_unbiased_and_frechet_is_not() -> None:
    """Over many pairs of small sets of one distribution the mean is 0, within 4 standard errors."""
    rng = np.random.default_rng(8)
    pairs = [(rng.normal(size=(8, 4)), rng.normal(size=(6, 4))) for _ in range(2000)]
    found = np.array([kid(x, y) for x, y in pairs])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(len(found))
    biased = np.array([frechet(gaussian(x), gaussian(y)) for x, y in pairs[:200]])
    assert biased.mean() > 10 * biased.std() / math.sqrt(len(biased))


def test_draws_with_weights_are_the_distances_of_the_rows_repeated() -> None:
    x, y = features(9, 60, 5) / 3, features(10, 12, 5) / 3 + 0.5
    chosen = np.random.default_rng(11).integers(0, 12, (6, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in chosen]).astype(np.float64)
    expected = [frechet(gaussian(x), gaussian(y[row])) for row in chosen]
    assert frechet_draws(gaussian(x), y, weights) == pytest.approx(expected, rel=1e-6)
    for row, drawn in zip(chosen, kid_draws(x, y, weights), strict=True):
        pairs = [(i, j) for i in row for j in row if i != j]
        within = np.mean([cubic_kernel(y[i : i + 1], y[j : j + 1])[0, 0] for i, j in pairs])
        fixed = (cubic_kernel(x, x).sum() - np.trace(cubic_kernel(x, x))) / (60 * 59)
        assert drawn == pytest.approx(within + fixed - 2 * cubic_kernel(x, y[row]).mean(), rel=1e-9)


def test_resamples_of_kid_stay_centred_where_naive_ones_do_not() -> None:
    """The mean over resamples is the estimate; with repeated rows compared with themselves it would be above."""
    x, y = features(12, 80, 6) / 3, features(13, 20, 6) / 3
    chosen = np.random.default_rng(14).integers(0, 20, (4000, 20))
    weights = np.stack([np.bincount(row, minlength=20) for row in chosen]).astype(np.float64)
    draws = kid_draws(x, y, weights)
    assert abs(draws.mean() - kid(x, y)) < 0.1 * draws.std()
    naive = np.array([kid(x, y[row]) for row in chosen[:300]])
    assert naive.mean() - kid(x, y) > 0.3 * draws.std()
