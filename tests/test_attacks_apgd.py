"""Auto-PGD against its paper's pseudo code, written again in NumPy, and against PGD."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from doubles import Blur, Conv, GlobalMean, Jitter, images, make_problem, make_target, restorer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from udc_ray.attacks.apgd import APGD, checkpoints
from udc_ray.attacks.base import Gradient, GradientTarget
from udc_ray.attacks.pgd import PGD
from udc_ray.attacks.threat import Norm, l2_norm, linf_norm
from udc_ray.errors import SpecError

Floats = NDArray[np.float64]
SHAPE = (3, 5, 5)


class Quadratic(GradientTarget):
    """The loss -sum a (x - c)^2 of its own for every image, in float64; notes what it is asked."""

    def __init__(self, a: Floats, centre: Floats) -> None:
        self.a, self.centre = torch.from_numpy(a), torch.from_numpy(centre)
        self.queries, self.grad_evals = [0] * len(a), [0] * len(a)
        self.seen: list[Tensor] = []

    def loss(self, x_BCHW: Tensor) -> Tensor:
        return -(self.a * (x_BCHW - self.centre).square()).sum(dim=(1, 2, 3))

    def gradient(self, x_BCHW: Tensor, step: int, **_: Any) -> Gradient:
        self.seen.append(x_BCHW.clone())
        slope = -2 * self.a * (x_BCHW - self.centre)
        return Gradient(loss_B=self.loss(x_BCHW), score_B=self.loss(x_BCHW), gradient_BCHW=slope)

    def score(self, x_BCHW: Tensor, **_: Any) -> Tensor:
        self.seen.append(x_BCHW.clone())
        return self.loss(x_BCHW)


def algorithm_1(
    start: Floats, clean: Floats, a: Floats, centre: Floats, norm: str, eps: float, steps: int
) -> tuple[list[Floats], list[float], list[int]]:
    """The paper's algorithm 1 for one image: all points that are evaluated, the step sizes, and the restarts' k."""

    def f(x: Floats) -> float:
        return -float((a * (x - centre) ** 2).sum())

    def project(x: Floats) -> Floats:
        delta = x - clean
        if norm == "linf":
            delta = np.clip(delta, -eps, eps)
        elif np.linalg.norm(delta) > eps * (1 - 1e-7):
            delta = delta * eps * (1 - 1e-7) / np.linalg.norm(delta)
        return np.clip(clean + delta, 0, 1)

    def ascend(x: Floats) -> Floats:
        gradient = -2 * a * (x - centre)
        unit = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        return project(x + eta[-1] * unit)

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(share * steps, 9)) for share in p if share <= 1]

    eta, x = [2 * eps], [start]  # eta[k] is the step size of iteration k, x[k] where it starts
    x.append(ascend(start))
    eta.append(eta[0])
    evaluated = [start, x[1]]
    values = [f(start), f(x[1])]
    top = [values[0], max(values)]
    best = x[int(values[1] > values[0])]
    restarts = []
    for k in range(1, steps):
        z = ascend(x[k])
        new = project(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1]))
        evaluated.append(new)
        value = f(new)
        best = new if value > top[-1] else best
        top.append(max(top[-1], value))
        eta.append(eta[k])
        if k in w:
            j = w.index(k)
            rises = sum(values[i + 1] > values[i] for i in range(w[j - 1], w[j]))
            one = rises < 0.75 * (w[j] - w[j - 1])
            two = eta[w[j - 1]] == eta[w[j]] and top[w[j - 1]] == top[w[j]]
            if one or two:
                eta[-1] = eta[k] / 2
                new, value = best, top[-1]
                restarts.append(k)
        x.append(new)
        values.append(value)
    return evaluated, eta, restarts


def problems(seed: int, count: int = 3) -> tuple[Floats, Floats, Floats]:
    """Clean images, curvatures over four decades, and centres; the steepest image is last."""
    rng = np.random.default_rng(seed)
    clean = rng.random((count, *SHAPE))
    return clean, 10 ** rng.uniform(-2, 2, clean.shape), clean + rng.uniform(-0.06, 0.06, clean.shape)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.3)])
@pytest.mark.parametrize("steps", [7, 20, 57])
def test_it_is_the_papers_algorithm(norm: Norm, eps: float, steps: int) -> None:
    clean, a, centre = problems(steps)
    attack, x = APGD(norm=norm, eps=eps, steps=steps), torch.from_numpy(clean)
    target, problem = Quadratic(a, centre), replace(make_problem(attack, x.float()), x_BCHW=x)
    result = attack.perturb(target, problem)
    start = attack.begin(problem).numpy()
    restarts = 0
    for b in range(len(x)):
        evaluated, _, restarted = algorithm_1(start[b], clean[b], a[b], centre[b], norm, eps, steps)
        assert len(evaluated) == len(target.seen) == steps + 1
        for mine, theirs in zip(target.seen, evaluated, strict=True):
            assert np.allclose(mine[b].numpy(), theirs, rtol=0, atol=1e-9)
        values = [-float((a[b] * (point - centre[b]) ** 2).sum()) for point in evaluated]
        assert float(result.score_B[b]) == pytest.approx(max(values), rel=1e-9)
        restarts += len(restarted)
    assert restarts > 0  # else neither condition was put to the test


def test_both_conditions_and_a_first_step_of_two_eps_are_met_in_that_comparison() -> None:
    """The reference halves the steps of different images at different checkpoints."""
    clean, a, centre = problems(57)
    found = [algorithm_1(clean[b], clean[b], a[b], centre[b], "l2", 0.3, 57) for b in range(len(clean))]
    assert {eta[0] for _, eta, _ in found} == {0.6}
    assert len({tuple(restarts) for _, _, restarts in found}) > 1
    assert min(eta[-1] for _, eta, _ in found) < 0.6 / 4


def test_the_checkpoints_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1] and checkpoints(3) == [1, 2, 3]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]


def attacked(attack: APGD | PGD, module: nn.Module, x: Tensor, **options: Any) -> Tensor:
    target, problem = make_target(attack, x, model=restorer(module), **options)
    return attack.perturb(target, problem).score_B


@pytest.mark.parametrize("module", [Conv(), GlobalMean()], ids=["conv", "global-mean"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.7)])
@pytest.mark.parametrize("objective", ["mse", "mse-clean"])
def test_it_does_at_least_what_pgd_does(module: nn.Module, norm: Norm, eps: float, objective: str) -> None:
    x = Blur()(images(4, 3, 16, 16))
    start = objective == "mse-clean"  # there the untouched image is a stationary point
    ours = attacked(APGD(norm=norm, eps=eps, steps=20, random_start=start), module, x, objective=objective)
    theirs = attacked(PGD(norm=norm, eps=eps, steps=20, random_start=start), module, x, objective=objective)
    assert bool((ours > 0).all())
    if objective == "mse":
        assert bool((ours >= theirs * (1 - 1e-4)).all())
    else:  # every start leads to a maximum of its own, and the two attacks draw other ones
        assert float(ours.mean()) >= float(theirs.mean()) * (1 - 1e-3)


@settings(max_examples=15)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(1e-3, 1.0),
    steps=st.integers(1, 9),
    seed=st.integers(0, 99),
    depth=st.sampled_from(["float", 8]),
)
def test_it_never_asks_about_an_image_outside_ball_and_box(
    norm: Norm, eps: float, steps: int, seed: int, depth: Any
) -> None:
    class Watched(Quadratic):
        def gradient(self, x_BCHW: Tensor, step: int, **_: Any) -> Gradient:
            found = super().gradient(x_BCHW, step)
            return Gradient(loss_B=found.loss_B, score_B=found.score_B, gradient_BCHW=found.gradient_BCHW.float())

    clean, a, centre = problems(seed, 2)
    x = images(2, *SHAPE, seed=seed)
    attack, target = APGD(norm=norm, eps=eps, steps=steps, depth=depth), Watched(a, centre)
    result = attack.perturb(target, make_problem(attack, x))
    for asked in [*target.seen, result.x_adv_BCHW]:
        size_B = linf_norm(asked - x) if norm == "linf" else l2_norm(asked - x)
        assert bool((size_B <= eps + 1e-6).all()) and asked.min() >= 0 and asked.max() <= 1
        assert depth == "float" or bool(((asked * 255).round() - asked * 255).abs().max() < 1e-3)


def test_on_a_random_victim_the_best_is_by_the_select_tape() -> None:
    x = Blur()(images(2, 3, 16, 16))
    attack = APGD(steps=5, eot=3, select_draws=2)
    target, problem = make_target(attack, x, purifier=Jitter())
    result = attack.perturb(target, problem)
    assert result.grad_evals == [15, 15] and result.queries == [12, 12]
    assert target.score(result.x_adv_BCHW).tolist() == pytest.approx(result.score_B.tolist(), rel=1e-6)


def test_a_loss_that_is_no_number_harms_no_other_image() -> None:
    clean, a, centre = problems(3)
    x = torch.from_numpy(clean)
    attack = APGD(norm="l2", eps=0.3, steps=20, random_start=False)
    problem = replace(make_problem(attack, x.float()), x_BCHW=x)
    whole = attack.perturb(Quadratic(a, centre), problem)
    a[0] = np.nan
    broken = attack.perturb(Quadratic(a, centre), problem)
    assert broken.x_adv_BCHW[1:].equal(whole.x_adv_BCHW[1:])
    assert bool(broken.x_adv_BCHW.isfinite().all()) and broken.x_adv_BCHW[0].equal(x[0])


def test_its_parameters() -> None:
    assert (APGD().steps, APGD().random_start, APGD().passes) == (100, True, 301)
    with pytest.raises(SpecError, match="steps"):
        APGD.build("attack", {"steps": 0})
