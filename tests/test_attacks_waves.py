"""Waves: what is drawn, and what a few that were tried let expect of others."""

from __future__ import annotations

import numpy as np
import pytest

from udc_ray.attacks.waves import BANDWIDTH, DOUBT, GREY, HIGHEST, LOWEST, colours, crest, distances, draw, expected


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_are_all_sign_patterns_up_to_a_reversal(channels: int) -> None:
    found = colours(channels)
    assert found[0].tolist() == [1.0] * channels and len(found) == 2 ** (channels - 1)
    both = {tuple(row) for row in found} | {tuple(-row) for row in found}
    assert len(both) == 2**channels


def test_waves_are_drawn_in_all_directions_and_colours() -> None:
    waves = draw(np.random.default_rng(0), 4000, 3)
    cycles = np.hypot(waves[:, 0], waves[:, 1])
    assert cycles.min() >= LOWEST and cycles.max() <= HIGHEST
    assert (waves[:, 2] == 0).mean() == pytest.approx(GREY, abs=0.03)
    assert set(waves[:, 2]) == {0, 1, 2, 3} and (waves[:, 1] < 0).mean() == pytest.approx(0.5, abs=0.03)
    assert set(draw(np.random.default_rng(0), 50, 1)[:, 2]) == {0}


def test_a_crest_has_its_period() -> None:
    plane = crest(np.array([0.0, 0.25, 0.0]), 0.0, 3, 8)
    assert np.allclose(plane, np.tile([1, 0, -1, 0, 1, 0, -1, 0], (3, 1)))


def test_expectation_is_that_of_the_like() -> None:
    tried, gains = np.array([[0.1, 0.2, 0], [0.3, 0.0, 0]]), np.array([1.0, -2.0])
    others = np.array([[0.1, 0.2, 0], [-0.1, -0.2, 0], [0.1, 0.2, 1], [0.1, -0.35, 0], [0.1 + BANDWIDTH, 0.2, 0]])
    same, reverse, tinted, far, between = expected(tried, gains, np.ones(2), others)
    assert same == reverse == pytest.approx(1 / (1 + DOUBT), rel=1e-4)
    assert tinted == 0 and abs(far) < 1e-6
    weight = np.exp(-0.5)
    assert between == pytest.approx(weight / (weight + DOUBT), rel=1e-2)
    assert expected(tried, gains, np.array([9.0, 1.0]), others)[0] == pytest.approx(9 / (9 + DOUBT), rel=1e-4)
    assert expected(tried[:0], gains[:0], gains[:0], others).tolist() == [0] * 5


def test_distances_know_reversals_and_colours() -> None:
    waves = np.array([[0.1, 0.1, 0], [-0.1, -0.1, 0], [0.1, 0.1, 1], [0.3, 0.1, 0]])
    found = distances(waves, waves[:1])[:, 0]
    assert found[:2].tolist() == [0, 0] and found[2] == np.inf and found[3] == pytest.approx(0.2)
