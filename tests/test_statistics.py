from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_cell, make_record
from scipy import stats

from udc_ray import rng
from udc_ray.metrics.statistics import (
    RESAMPLES,
    bootstrap_mean,
    difference,
    estimate,
    group_cells,
    resample_indices,
    wilson,
)


class _Replay(np.random.Generator):
    """Hands SciPy the resamples that we use."""

    indices: Any

    def integers(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]  # one use, one signature
        return self.indices.astype(np.int64)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_interval_equals_scipys_percentile_bootstrap_on_the_same_resamples(n: int) -> None:
    values = np.random.default_rng(n).normal(20, 4, n)
    replay = _Replay(np.random.PCG64(0))
    replay.indices = resample_indices(3, n)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=0.95, method="percentile", rng=replay
    ).confidence_interval
    found = bootstrap_mean(list(values), seed=3)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.mean == pytest.approx(values.mean())


def test_interval_agrees_with_scipys_own_resamples() -> None:
    values = np.random.default_rng(0).gamma(2.0, 3.0, 40)
    own = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(1))
    found = bootstrap_mean(list(values), seed=0)
    width = own.confidence_interval.high - own.confidence_interval.low
    assert found.ci_low == pytest.approx(own.confidence_interval.low, abs=0.03 * width)
    assert found.ci_high == pytest.approx(own.confidence_interval.high, abs=0.03 * width)


def test_resamples_are_keyed_uniform_and_shared() -> None:
    indices = resample_indices(0, 7)
    assert indices.shape == (RESAMPLES, 7)
    expected = rng.generator(0, "bootstrap", "eval").integers(0, 7, size=(RESAMPLES, 7), dtype=np.uint16)
    assert np.array_equal(indices, expected)
    assert not np.array_equal(indices, resample_indices(1, 7))
    counts = np.bincount(indices.ravel().astype(int), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-4
    with pytest.raises(ValueError, match="read-only"):
        indices[0, 0] = 1


def test_difference_is_paired() -> None:
    level = {f"{i:02d}": 10.0 * i for i in range(9)}
    shifted = {i: v + 1.0 for i, v in level.items()}
    gap = estimate(difference(shifted, level), seed=0)
    assert gap is not None
    # Unpaired, the spread of 10 dB between images would dwarf a shift of 1 dB.
    assert (gap.mean, gap.ci_low, gap.ci_high) == pytest.approx((1.0, 1.0, 1.0))
    assert difference({"a": 1.0, "b": 2.0}, {"b": 0.5}) == {"b": 1.5}


def test_one_image_has_no_interval_and_none_has_no_estimate() -> None:
    one = bootstrap_mean([3.0], seed=0)
    assert (one.mean, one.ci_low, one.ci_high, one.n) == (3.0, None, None, 1)
    assert estimate({}, seed=0) is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
@settings(max_examples=25, deadline=None)
def test_interval_lies_within_the_values(values: list[float]) -> None:
    found = bootstrap_mean(values, seed=0)
    assert found.ci_low is not None and found.ci_high is not None
    assert min(values) - 1e-9 <= found.ci_low <= found.ci_high <= max(values) + 1e-9


@given(n=st.integers(1, 400), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_wilson_equals_scipy(n: int, share: float) -> None:
    successes = round(share * n)
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = wilson(successes, n)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_refuses_what_is_no_rate() -> None:
    for successes, n in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="no rate"):
            wilson(successes, n)


def test_mean_over_samples_comes_before_the_worst_over_restarts() -> None:
    # Restart 0 holds the single worst sample, restart 1 the worse mean.
    table = {(0, 0): 10.0, (0, 1): 30.0, (1, 0): 18.0, (1, 1): 19.0}
    records = [make_record(restart=r, sample=s, psnr_adv=v) for (r, s), v in table.items()]
    (cell,) = group_cells(records)
    assert cell.per_image("psnr_adv") == {"0000": 18.5}
    assert cell.per_image("drop_psnr") == {"0000": 28.0 - 18.5}


def test_the_worst_of_all_samples_and_restarts_is_apart_from_their_means() -> None:
    adv = {(0, 0): 10.0, (0, 1): 30.0, (1, 0): 18.0, (1, 1): 19.0}
    clean = {0: 27.0, 1: 24.0}
    records = [make_record(restart=r, sample=s, psnr_adv=v, psnr_clean=clean[s]) for (r, s), v in adv.items()]
    (cell,) = group_cells(records)
    assert cell.draws == 2
    assert cell.per_image("worst_psnr_adv") == {"0000": 10.0}
    assert cell.per_image("worst_psnr_clean") == {"0000": 24.0}
    (single,) = group_cells([make_record(restart=r) for r in range(3)])
    assert single.draws == 1
    assert single.per_image("worst_psnr_adv") == single.per_image("worst_psnr_clean") == {}


def test_fused_outputs_take_the_worst_restart_where_they_are_attacked() -> None:
    records = [
        make_record(restart=r, sample=s, psnr_mean_output_adv=20.0 - r, psnr_mean_output_clean=29.0)
        for r in range(2)
        for s in range(3)
    ]
    (cell,) = group_cells(records)
    assert cell.per_image("psnr_mean_output_adv") == {"0000": 19.0}
    assert cell.per_image("psnr_mean_output_clean") == {"0000": 29.0}
    assert cell.per_image("psnr_median_output_adv") == {}


def test_costs_are_summed_over_restarts_and_counted_once_over_samples() -> None:
    records = [make_record(restart=r, sample=s, queries=100 + r) for r in range(2) for s in range(3)]
    (cell,) = group_cells(records)
    assert cell.per_image("queries") == {"0000": 201.0}


def test_failed_and_unknown_values_are_left_out() -> None:
    records = [
        *make_cell({"a": 10.0}),
        make_record(image_id="b", psnr_adv=None, error="out of memory", stop_reason="error"),
        make_record(image_id="c", psnr_adv=None),
        make_record(image_id="d", psnr_adv=float("nan")),
    ]
    (cell,) = group_cells(records)
    assert cell.per_image("psnr_adv") == {"a": 10.0}
    assert cell.images == ("a", "b", "c", "d")


def test_standard_error_of_the_sample_mean() -> None:
    records = [make_record(sample=s, psnr_adv=v) for s, v in enumerate((10.0, 12.0, 17.0))]
    (cell,) = group_cells(records)
    assert cell.standard_error("psnr_adv")["0000"] == pytest.approx(stats.sem([10.0, 12.0, 17.0]))


def test_kinds_are_read_from_what_was_spent() -> None:
    spent = {"control": (0, 0), "query": (200, 0), "gradient": (11, 10)}
    for kind, (queries, grads) in spent.items():
        (cell,) = group_cells([make_record(queries=queries, grad_evals=grads)])
        assert cell.kind == kind
