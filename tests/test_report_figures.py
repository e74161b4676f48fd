from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image

from udc_ray.report.figures import Panel, damage_curves, perturbation_panel, strip, worst_median_best


def test_the_perturbation_is_around_grey_with_its_gain_in_the_title() -> None:
    x = np.full((3, 4, 4), 0.5)
    delta = np.zeros_like(x)
    delta[0, 0, 0], delta[1, 1, 1] = 8 / 255, -8 / 255
    panel = perturbation_panel(x, x + delta)
    assert panel.title == "perturbation x 8"
    np.testing.assert_allclose(panel.image_CHW - 0.5, 8 * delta, atol=1e-12)
    assert perturbation_panel(x, x).title == "perturbation x 1"


@given(st.floats(1e-6, 1.0))
def test_the_gain_fills_at_least_half_of_the_range_and_clips_nothing(size: float) -> None:
    x = np.zeros((1, 2, 2))
    shown = np.abs(perturbation_panel(x, x + size).image_CHW - 0.5).max()
    assert 0.25 <= shown <= 0.5 or size > 0.5


def test_worst_median_best_are_different_images() -> None:
    values = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 9.0, "e": 5.0}
    assert worst_median_best(values) == {"worst": "b", "median": "a", "best": "d"}
    assert worst_median_best({"a": 1.0}) == {"worst": "a"}
    assert worst_median_best({"a": 1.0, "b": 2.0}) == {"worst": "a", "best": "b"}
    assert worst_median_best({}) == {}


def test_a_strip_shows_the_pixels_of_every_kind_of_image(tmp_path: Path) -> None:
    red = np.zeros((3, 8, 8))
    red[0] = 1.0
    raw = np.stack([np.zeros((8, 8)), np.ones((8, 8)), np.zeros((8, 8)), np.zeros((8, 8))])
    strip(tmp_path / "s.png", [Panel(title="a", image_CHW=red), Panel(title="b", image_CHW=raw)], "two reds")
    with Image.open(tmp_path / "s.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    share = np.mean((pixels == [255, 0, 0]).all(axis=-1))
    assert 0.5 < share < 0.8


def test_a_strip_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        strip(tmp_path / "s.png", [], "none")
    assert not (tmp_path / "s.png").exists()


def test_curves_are_psnr_steps_cut_at_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    plot = Axes.plot

    def spy(self: Axes, *args: Any, **kwargs: Any) -> Any:
        drawn.append((kwargs.get("label"), args))
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy)
    curves = {"square": [[(1, 0.01), (3, 0.1)], [(2, 0.001), (9, 1.0)]], "empty": [[]]}
    damage_curves(tmp_path / "c.png", curves, budget=5)
    lines = [args for _, args in drawn]
    np.testing.assert_array_equal(lines[0][0], [1, 2, 3, 4, 5])
    np.testing.assert_allclose(lines[0][1], [20, 20, 10, 10, 10])
    np.testing.assert_allclose(lines[1][1], [30, 30, 30, 30, 30])
    np.testing.assert_allclose(lines[2][1], [25, 25, 20, 20, 20])
    assert [label for label, _ in drawn if label] == ["square"]
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 600


def test_perfect_scores_and_no_curves_are_drawn(tmp_path: Path) -> None:
    damage_curves(tmp_path / "a.png", {"x": [[(1, 0.0)]]}, budget=1)
    damage_curves(tmp_path / "b.png", {}, budget=10)
    assert (tmp_path / "a.png").stat().st_size > 1000 and (tmp_path / "b.png").stat().st_size > 1000
