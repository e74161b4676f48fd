"""What gradient attacks notice on their way, against plain lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from doubles import Constant, images, make_target, restorer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from udc_ray.attacks.apgd import APGD
from udc_ray.attacks.diagnostics import Diagnostics, Observer

NAN, INF = math.nan, math.inf


def observed(losses: list[float], scores: list[float] | None = None) -> Observer:
    """One image, with a gradient that is alive."""
    observer = Observer()
    for step, (loss, score) in enumerate(zip(losses, scores or losses, strict=True)):
        observer.observe(step, torch.tensor([loss]), torch.tensor([score]), torch.ones(1, 1, 2, 2))
    return observer


@settings(max_examples=60)
@given(st.data())
def test_it_is_what_a_list_of_everything_would_tell(data: st.DataObject) -> None:
    steps, count = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    loss, score = rng.normal(size=(steps, count)), rng.normal(size=(steps, count))
    gradient = rng.normal(size=(steps, count, 2, 3, 3)) * (rng.random((steps, count, 2, 3, 3)) < rng.random())
    gradient[rng.random(gradient.shape) < 0.01] = NAN
    kept, last = rng.normal(size=count), rng.normal(size=count)
    observer = Observer()
    for step in range(steps):
        row = (torch.from_numpy(v[step]) for v in (loss, score, gradient))
        observer.observe(step, *row)
    for b, found in enumerate(observer.finish(torch.from_numpy(kept), torch.from_numpy(last))):
        best = np.maximum.accumulate(loss[:, b])
        after = [1, *(max(1, math.ceil(steps * part)) for part in (0.25, 0.5, 0.75)), max(1, steps - 10), steps]
        assert found.losses == tuple(best[count - 1] for count in after)
        idle = (gradient[:, b] == 0) | ~np.isfinite(gradient[:, b])
        assert found.zero_share == pytest.approx(idle.reshape(steps, -1).mean(axis=1).max())
        dead = [bool(g.all()) or not np.isfinite(raw).all() for g, raw in zip(idle, gradient[:, b], strict=True)]
        assert (found.steps, found.dead_steps) == (steps, sum(dead))
        assert found.best_score == max(score[:, b].max(), last[b])
        assert (found.last_score, found.kept_score) == (last[b], kept[b])
        assert 0 <= found.moved_last <= 1
        assert found.last_is_worse == (last[b] < found.best_score) and found.lost == (kept[b] < found.best_score)


def test_a_loss_that_still_rises_has_not_converged_and_one_that_rests_has() -> None:
    def share(losses: list[float]) -> float:
        return observed(losses).finish(torch.zeros(1))[0].moved_last

    assert share([float(k) for k in range(41)]) == pytest.approx(10 / 40)
    assert share([0.0, 1.0] + [0.5] * 30) == 0
    assert share([0.0] * 20) == 0
    assert share([float(k) for k in range(10)]) == 1  # too few to tell
    assert share([-INF, *range(30)]) == 1  # whoever starts from nothing has to show more
    assert share([NAN] * 12) == 0


def test_without_a_last_score_the_last_step_is_the_end() -> None:
    (found,) = observed([1.0, 3.0, 2.0], [5.0, 7.0, 6.0]).finish(torch.tensor([7.0]))
    assert (found.best_score, found.last_score) == (7, 6)
    assert found.last_is_worse and not found.lost
    (returned,) = observed([1.0, 3.0, 2.0], [5.0, 7.0, 6.0]).finish(torch.tensor([6.0]))
    assert returned.lost


def test_a_number_that_is_none_is_never_the_best() -> None:
    (found,) = observed([1.0, NAN, 2.0], [1.0, NAN, 0.5]).finish(torch.tensor([1.0]), torch.tensor([NAN]))
    assert found.losses[0] == 1 and found.losses[-1] == 2
    assert (found.best_score, found.last_score) == (1, -INF) and found.last_is_worse


def test_steps_come_in_order_and_there_is_one() -> None:
    with pytest.raises(ValueError, match="no step"):
        Observer().finish(torch.zeros(1))
    with pytest.raises(ValueError, match="step 2 was observed after 1"):
        observed([1.0]).observe(2, torch.zeros(1), torch.zeros(1), torch.zeros(1, 1, 2, 2))


class HalfDead(nn.Module):
    """The gradient of the left half is lost, as rounding loses it."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        half = x_BCHW.shape[-1] // 2
        return torch.cat([x_BCHW[..., :half].detach(), 1.2 * x_BCHW[..., half:]], dim=-1)


def test_an_attack_tells_a_gradient_that_is_cut_from_one_that_is_not() -> None:
    def noticed(module: nn.Module | None) -> list[Diagnostics]:
        attack = APGD(steps=12)
        target, problem = make_target(attack, images(2, 3, 12, 12), model=restorer(module))
        return attack.perturb(target, problem).diagnostics

    whole, half, dead = noticed(None), noticed(HalfDead()), noticed(Constant())
    assert all(d.zero_share < 0.05 and d.dead_steps == 0 for d in whole)
    assert all(0.5 <= d.zero_share < 0.7 and d.dead_steps == 0 for d in half)
    assert all(d.zero_share == 1 and d.dead_steps == d.steps == 12 for d in dead)
    assert not any(d.lost for d in whole + half + dead)
