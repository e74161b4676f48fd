"""Distances between two sets of features: the Frechet distance of their Gaussians, and the kernel distance.

Both ask whether purified images look to a network like the images that it knows. The Frechet distance (Dowson and
Landau 1982; FID: Heusel et al. 2017) is biased by the number of samples, and its covariances are singular below as
many samples as features; the kernel distance (KID: Binkowski et al. 2018) is unbiased at any number. All is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mean (D) and covariance (D x D) of features."""

    mean: Array
    covariance: Array


def gaussian(features_ND: NDArray[np.floating]) -> Gaussian:
    """Mean and unbiased covariance of N >= 2 feature vectors."""
    values = np.asarray(features_ND, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"a covariance needs a matrix of at least two rows, not one of shape {values.shape}")
    mean = values.mean(axis=0)
    centred = values - mean
    return Gaussian(mean=mean, covariance=centred.T @ centred / (len(values) - 1))


def root_of(covariance_DD: Array) -> Array:
    """The symmetric square root of a positive semi-definite matrix; rounding below zero counts as zero."""
    values, vectors = linalg.eigh(covariance_DD)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet (2-Wasserstein) distance: ||m_a - m_b||^2 + tr(A + B - 2 (A B)^(1/2)); at least 0.

    The trace of (A B)^(1/2) is the nuclear norm of A^(1/2) B^(1/2), which squares nothing and needs no inverse, so
    that singular covariances do no harm.
    """
    shift = a.mean - b.mean
    common = linalg.svdvals(root_of(a.covariance) @ root_of(b.covariance)).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * common
    return max(0.0, float(shift @ shift + spread))


def frechet_draws(reference: Gaussian, features_ND: NDArray[np.floating], weights_KN: Array) -> Array:
    """Frechet distances (K) of a reference from resamples of features.

    Args:
        reference: the fixed side.
        features_ND: the side that is resampled.
        weights_KN: how often each row is in each resample; every row of the matrix sums to N.
    """
    values, root = np.asarray(features_ND, dtype=np.float64), root_of(reference.covariance)
    count, trace, found = len(values), np.trace(reference.covariance), []
    for weights_N in np.asarray(weights_KN, dtype=np.float64):
        mean = weights_N @ values / count
        centred = np.sqrt(weights_N)[:, None] * (values - mean)
        turned = centred @ root
        # A^(1/2) B A^(1/2) has the roots of the same singular values as A^(1/2) B^(1/2); its rounding is far below
        # the spread of resamples, and it is several times faster.
        common = np.sqrt(linalg.eigvalsh(turned.T @ turned / (count - 1)).clip(min=0)).sum()
        shift = reference.mean - mean
        spread = trace + np.square(centred).sum() / (count - 1) - 2 * common
        found.append(max(0.0, float(shift @ shift + spread)))
    return np.array(found)


def cubic_kernel(x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]) -> Array:
    """(x . y / D + 1)^3 of every pair, N x M (Binkowski et al. 2018, eq. 3)."""
    x, y = np.asarray(x_ND, dtype=np.float64), np.asarray(y_MD, dtype=np.float64)
    kernel: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def kid(x_ND: NDArray[np.floating], y_MD: NDArray[np.floating]) -> float:
    """Unbiased squared maximum mean discrepancy under the cubic kernel (Gretton et al. 2012, lemma 6).

    Being unbiased it may be negative where the sets are of one distribution. Both need at least two rows.
    """
    ones = np.ones((1, len(y_MD)))
    return float(kid_draws(x_ND, y_MD, ones)[0])


def kid_draws(reference_MD: NDArray[np.floating], features_ND: NDArray[np.floating], weights_KN: Array) -> Array:
    """Kernel distances (K) of a reference from resamples of features.

    A row that a resample holds twice is not compared with itself, as the pair would be nearer than any two
    independent rows; the mean goes over the pairs of different rows, by their weights.

    Args:
        reference_MD: the fixed side.
        features_ND: the side that is resampled.
        weights_KN: how often each row is in each resample.
    """
    if min(len(reference_MD), len(features_ND)) < 2:
        raise ValueError("a kernel distance needs at least two rows on either side")
    weights = np.asarray(weights_KN, dtype=np.float64)
    within = _without_diagonal(cubic_kernel(features_ND, features_ND))
    pairs = weights.sum(axis=1) ** 2 - np.square(weights).sum(axis=1)
    own = ((weights @ within) * weights).sum(axis=1) / pairs
    count = len(reference_MD)
    fixed = _without_diagonal(cubic_kernel(reference_MD, reference_MD)).sum() / (count * (count - 1))
    across = weights @ cubic_kernel(features_ND, reference_MD).mean(axis=1) / weights.sum(axis=1)
    draws: Array = own + fixed - 2 * across
    return draws


def _without_diagonal(kernel_NN: Array) -> Array:
    np.fill_diagonal(kernel_NN, 0)
    return kernel_NN
