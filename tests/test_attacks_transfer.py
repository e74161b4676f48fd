"""Transfer: its four parts against closed forms and SciPy, and the Square that starts from its image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from doubles import Blur, Conv, image_tape, images, judge_against, query_problem, restorer, run_machine, score_against
from scipy.ndimage import convolve
from scipy.stats import norm as gaussian
from torch import Tensor, nn

from udc_ray.attacks.noise import draw_noise
from udc_ray.attacks.threat import linf_norm
from udc_ray.attacks.transfer import LARGEST, Transfer, View, _Loss, craft, smoothed
from udc_ray.errors import SpecError
from udc_ray.models.base import Descriptor, ModuleRestorer
from udc_ray.states import decode_state, encode_state

PLAIN = View(scale=1.0, size=None, corner=(0, 0), canvas=(8, 8))
CONV = {"surrogate": "doubles:restorer"}


class ChannelSums(nn.Module):
    """Two classes whose logits are opposite sums of the channels, the second one negated."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        sums = x_BCHW[:, 0].mean(dim=(1, 2)) - x_BCHW[:, 1].mean(dim=(1, 2))
        return torch.stack([sums, -sums], dim=1)


def classifier() -> ModuleRestorer:
    return ModuleRestorer(ChannelSums(), Descriptor(name="sums", parameters=0, task="classification", classes=2))


def test_a_linear_classifier_is_moved_as_far_as_the_ball_allows() -> None:
    x = 0.3 + 0.2 * images(1, 3, 9, 9)[0]
    x[0] += 0.2  # the first class
    made = craft(classifier(), Transfer(eps=0.05), x, image_tape())
    assert torch.allclose(made[0] - x[0], torch.tensor(-0.05), atol=1e-6)
    assert torch.allclose(made[1] - x[1], torch.tensor(0.05), atol=1e-6)
    assert made[2].equal(x[2])  # it does not matter to the surrogate


def test_momentum_keeps_earlier_directions() -> None:
    """A gradient that turns round: the sign of the sum of normalised gradients decides, not of the last one."""

    class Turning(nn.Module):
        calls = 0

        def forward(self, x_BCHW: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                Turning.calls += 1
            factor = 1.0 if Turning.calls in (0, 1, 2) else -0.1
            return torch.stack([-factor * x_BCHW.sum(dim=(1, 2, 3)), 0 * x_BCHW.sum(dim=(1, 2, 3))], dim=1)

    def moved(decay: float) -> float:
        Turning.calls = 0
        surrogate = ModuleRestorer(Turning(), Descriptor(name="t", parameters=0, task="classification", classes=2))
        attack = Transfer(eps=0.03, steps=3, scales=1, decay=decay)
        made = craft(surrogate, attack, torch.full((1, 4, 4), 0.5), image_tape())
        return float((made - 0.5).mean())

    steps = {decay: round(moved(decay) / 0.01) for decay in (0.0, 1.0)}
    assert abs(steps[0.0]) == 1 and abs(steps[1.0]) == 3  # two steps there and one back; 1 + 1 - 1 still points there


def test_smoothing_is_convolution_with_the_papers_kernel() -> None:
    gradient = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 100, 110)))
    window = gaussian.pdf(np.linspace(-3, 3, 15))
    kernel = np.outer(window, window) / np.outer(window, window).sum()
    for channel in range(2):
        wanted = convolve(gradient[0, channel].numpy(), kernel, mode="constant")
        assert np.abs(smoothed(gradient, 15)[0, channel].numpy() - wanted).max() < 1e-12
    point = torch.zeros(1, 1, 50, 60)
    point[0, 0, 25, 30] = 1
    assert int((smoothed(point, 15)[0, 0, 25] > 0).sum()) == 7  # 15 * 50 / 100, made odd
    small = gradient[:, :, :8, :8]
    assert smoothed(small, 15).equal(small) and smoothed(gradient, 1).equal(gradient)


def test_views_darken_and_resize_inside_a_black_margin() -> None:
    x = images(1, 3, 20, 30)
    assert View(scale=0.25, size=None, corner=(0, 0), canvas=(22, 33))(x).equal(x / 4)
    white = torch.ones(1, 3, 20, 30)
    shown = View(scale=1.0, size=(20, 30), corner=(1, 2), canvas=(22, 33))(white)
    assert shown.shape == white.shape
    assert float(shown.mean()) == pytest.approx(20 * 30 / (22 * 33), abs=0.02)
    assert shown[..., 10, 15].min() == 1 and shown[..., -1].max() < 0.5
    rng = np.random.default_rng(0)
    views = [View.draw(rng, (20, 30), 1.0, 0.5) for _ in range(400)]
    resized = [view for view in views if view.size is not None]
    assert 160 < len(resized) < 240
    for view in resized:
        assert view.size is not None and view.canvas == (int(20 * LARGEST), int(30 * LARGEST))
        for side, size, corner, canvas in zip((20, 30), view.size, view.corner, view.canvas, strict=True):
            assert side <= size <= canvas and 0 <= corner <= canvas - size
    assert len({view.size for view in resized}) > 3 and len({view.corner for view in resized}) > 3
    for shape in ((1, 1), (2, 9)):
        assert View.draw(rng, shape, 1.0, 1.0)(torch.ones(1, 1, *shape)).shape == (1, 1, *shape)


@pytest.mark.parametrize("view", [PLAIN, View(scale=0.5, size=(8, 8), corner=(0, 0), canvas=(8, 9))])
def test_the_loss_is_the_distance_from_the_surrogates_own_output(view: View) -> None:
    surrogate = ModuleRestorer(Conv().double(), Descriptor(name="conv", parameters=0))
    x, rng = images(1, 3, 8, 8).double(), np.random.default_rng(0)
    moved = x + 0.02 * torch.from_numpy(rng.standard_normal(tuple(x.shape)))

    def distance(candidate: Tensor) -> float:
        with torch.no_grad():
            return float((surrogate(view(candidate)) - surrogate(view(x))).square().mean())

    gradient = _Loss(surrogate, x).gradient(moved, view)
    for _ in range(5):
        way = torch.from_numpy(rng.standard_normal(tuple(x.shape)))
        slope = (distance(moved + 1e-5 * way) - distance(moved - 1e-5 * way)) / 2e-5
        assert slope == pytest.approx(float((gradient * way).sum()), rel=1e-4, abs=1e-9)
    assert _Loss(surrogate, x).gradient(x, view).abs().max() == 0


def transfer(**params: Any) -> Transfer:
    made: Transfer = Transfer.build("attack", CONV | params)
    return made


@pytest.mark.parametrize("depth", ["float", 8])
def test_one_query_of_its_own_model_beats_noise(depth: Any) -> None:
    x = (Blur()(images(1, 3, 16, 16))[0] * 255).round() / 255
    model = restorer(Blur())
    attack, score = transfer(surrogate="doubles:Blur", budget=1, depth=depth), score_against(model, model(x[None])[0])
    machine = attack.start(query_problem(x))
    assert run_machine(machine, judge_against(model, model(x[None])[0])) == 1 and machine.stop_reason == "budget"
    noises = [draw_noise(x[None], attack.threat, image_tape(seed=s).generators("noise")) for s in range(20)]
    best, value = machine.best()
    assert value > 2 * max(score(n)[0] for n in noises) and value == score(best[None])[0]
    assert float(linf_norm((best - x)[None])) <= 8 / 255 + 1e-6
    assert depth == "float" or ((best * 255).round() - best * 255).abs().max() < 1e-4


def test_square_goes_on_from_the_transferred_image() -> None:
    x = images(1, 3, 16, 16)[0] * 0.5 + 0.25
    attack = transfer(budget=12, p=0.1, steps=2, scales=2)
    machine = attack.start(query_problem(x))
    seen: list[Tensor] = []
    while not machine.done:
        ask = machine.ask()
        seen.append(ask.x_KCHW[0])
        machine.tell([float(len(seen) == 1)])  # nothing after the start is accepted
    made = craft(attack.load_surrogate(), attack, x, image_tape())
    assert seen[0].equal(attack.threat.project(made[None], x[None])[0]) and len(seen) == 12
    for n, candidate in enumerate(seen[1:]):
        change = (candidate != seen[0]).any(dim=0)
        rows, columns = (change.any(dim=d).nonzero().flatten() for d in (1, 0))
        side = attack.window(n, 16, 16)
        assert int(rows[-1] - rows[0]) < side and int(columns[-1] - columns[0]) < side
        inside = (candidate - x)[:, change]
        assert (inside.abs() - 8 / 255).abs().max() < 1e-6


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_a_raised_budget_goes_on_exactly(cut: int) -> None:
    x = images(1, 3, 12, 12)[0]
    judge, short = judge_against(restorer(), x), {"steps": 2, "scales": 2}
    whole, first = (transfer(budget=b, **short).start(query_problem(x)) for b in (20, cut))
    run_machine(whole, judge)
    run_machine(first, judge)
    resumed = transfer(budget=20, **short).start(query_problem(x))
    resumed.load(decode_state(encode_state(first.state())))
    run_machine(resumed, judge)
    assert resumed.best()[0].equal(whole.best()[0]) and resumed.curve == whole.curve and resumed.asked == 20


def test_draws_are_keyed_by_the_tape() -> None:
    x, attack = images(1, 3, 12, 12)[0], transfer(steps=2, scales=2)
    made = craft(restorer(), attack, x, image_tape())
    assert made.equal(craft(restorer(), attack, x, image_tape()))
    for tape in (image_tape("other"), image_tape(seed=8), image_tape(restart=1)):
        assert not made.equal(craft(restorer(), attack, x, tape))


def test_a_surrogate_that_cannot_take_the_image_is_a_user_error() -> None:
    machine = transfer().start(query_problem(torch.full((4, 12, 12), 0.5)))
    with pytest.raises(SpecError, match="the surrogate fails on an image of"):
        machine.ask()
    with pytest.raises(SpecError, match="unknown model"):
        Transfer(surrogate="defualt").load_surrogate()


def test_weights_are_known_by_their_content(tmp_path: Any) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"abc")
    attack = Transfer(weights=str(file))
    assert attack.identity() == Transfer().identity()
    assert attack.weight_hashes() == {"weights": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert Transfer().weight_hashes() == {} and Transfer(budget=7, steps=2, scales=3).passes == 7 + 18
