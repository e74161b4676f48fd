"""Square and SimBA against their papers' definitions, SciPy's cosine transform, and plain noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import Blur, Conv, Scale, image_tape, images, judge_by, query_problem, restorer, run_machine, score_against
from scipy.fft import idctn
from torch import Tensor

from udc_ray.attacks.noise import draw_noise
from udc_ray.attacks.query import Machine
from udc_ray.attacks.simba import SimBA, SimBAMachine
from udc_ray.attacks.square import Square, bump, bumps
from udc_ray.attacks.threat import l2_norm

GREY = torch.full((3, 16, 16), 0.5)


def run(attack: Square | SimBA, x: Tensor = GREY, score: object = None) -> tuple[list[Tensor], Machine]:
    """All candidates of a run, and the machine."""
    machine = attack.start(query_problem(x))
    seen: list[Tensor] = []
    model = score_against(restorer(Conv()), Blur()(x[None])[0])

    def answer(batch: Tensor) -> list[float]:
        seen.append(batch[0].clone())
        return model(batch) if score is None else [float(score(len(seen)))]  # type: ignore[operator]  # a function

    run_machine(machine, judge_by(answer))
    return seen, machine


def test_square_starts_from_stripes_and_signs() -> None:
    seen, machine = run(Square(budget=2))
    stripes, signs = ((c - GREY).double() for c in seen)
    assert stripes.abs().numpy() == pytest.approx(8 / 255, abs=1e-6)
    assert signs.abs().numpy() == pytest.approx(8 / 255, abs=1e-6)
    assert stripes.std(dim=1).max() < 1e-6 < stripes.std(dim=2).min() and signs.std(dim=1).min() > 0.01
    for winner in (1, 2):
        seen, machine = run(Square(budget=2), score=lambda n, w=winner: n == w)
        assert machine.best()[0].equal(seen[winner - 1])


def test_square_changes_one_window_of_one_sign_a_channel() -> None:
    seen, _ = run(Square(budget=40, p=0.1), score=lambda n: n == 1)  # nothing after the start is accepted
    for n, candidate in enumerate(seen[2:]):
        change = (candidate - seen[0]).abs() > 1e-6
        rows, columns = (change.any(dim=0).any(dim=d).nonzero().flatten() for d in (1, 0))
        side = Square(p=0.1).window(n, 16, 16)
        assert change.any() and int(rows[-1] - rows[0]) < side and int(columns[-1] - columns[0]) < side
        inside = candidate[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] - 0.5
        assert (inside.abs() - 8 / 255).abs().max() < 1e-6


@pytest.mark.parametrize("horizon", [10_000, 1_000])
def test_the_window_halves_where_the_paper_says(horizon: int) -> None:
    attack = Square(horizon=horizon, p=0.8)
    areas = {10: 1, 11: 2, 50: 2, 51: 4, 200: 4, 500: 8, 1000: 16, 2000: 32, 4000: 64, 6000: 128, 8000: 256, 9999: 512}
    scale = 10_000 // horizon
    for iteration, divisor in areas.items():
        if iteration % scale == 0:
            side = attack.window(iteration // scale, 1000, 1000)
            assert side == round((0.8 / divisor * 1_000_000) ** 0.5)
    assert attack.window(10 * horizon, 1000, 1000) == attack.window(horizon - 1, 1000, 1000)
    assert Square().window(0, 100, 100) == 22 and Square(norm="l2").window(0, 100, 100) == 32


def test_the_bump_is_the_papers_sum() -> None:
    for height, width in ((5, 5), (6, 3), (7, 4)):
        found, n = bump(height, width), height // 2
        for r in range(1, height + 1):
            for s in range(1, width + 1):
                last = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
                wanted = sum(1 / (n + 1 - k) ** 2 for k in range(last + 1))
                assert found[r - 1, s - 1] == pytest.approx(wanted)
    pair = bumps(np.random.default_rng(0), 6)
    assert pair.shape == (6, 6) and (pair > 0).sum() == (pair < 0).sum() == 18


def test_square_l2_uses_the_whole_ball_and_moves_mass() -> None:
    seen, _ = run(Square(norm="l2", eps=1.0, budget=30), score=lambda n: n == 1)
    sizes = l2_norm(torch.stack(seen) - GREY)
    assert sizes.tolist() == pytest.approx([1.0] * 30, abs=1e-5)
    side = Square(norm="l2").window(0, 16, 16)
    changed = [int(((c - seen[0]).abs() > 1e-6).any(dim=0).sum()) for c in seen[1:]]
    assert all(0 < pixels <= 2 * side**2 for pixels in changed)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_does_more_than_noise(norm: str) -> None:
    x = Blur()(images(1, 3, 16, 16))[0]
    eps = 8 / 255 if norm == "linf" else 0.5
    attack = Square(norm=norm, eps=eps, budget=200)
    score = score_against(restorer(), Blur()(x[None])[0])
    machine = attack.start(query_problem(x))
    run_machine(machine, judge_by(score))
    noise = [score(draw_noise(x[None], attack.threat, image_tape(seed=s).generators("noise")))[0] for s in range(20)]
    assert machine.best()[1] > max(noise)
    assert machine.curve[-1][0] > 50


def simba_candidates(attack: SimBA, accept: bool) -> tuple[list[Tensor], SimBAMachine]:
    seen, machine = run(attack, score=(lambda n: n) if accept else (lambda n: -n))
    assert isinstance(machine, SimBAMachine)
    return seen, machine


def test_simba_tries_plus_then_minus_of_cosine_images() -> None:
    attack = SimBA(budget=25, freq_dims=2, eps=0.05)
    seen, machine = simba_candidates(attack, accept=False)
    assert seen[0].equal(GREY) and machine.best()[0].equal(GREY)
    assert machine.stop_reason == "converged" and machine.asked == 25  # 12 coordinates, two signs each
    found = []
    for plus, minus in zip(seen[1::2], seen[2::2], strict=True):
        assert torch.allclose(plus - GREY, GREY - minus, atol=1e-6)
        assert float((plus - GREY).abs().max()) == pytest.approx(0.05, abs=1e-6)
        found.append((plus - GREY).numpy())
    wanted = []
    for channel, row, column in np.ndindex(3, 2, 2):
        spectrum = np.zeros((3, 16, 16))
        spectrum[channel, row, column] = 1
        image = idctn(spectrum, axes=(1, 2), norm="ortho")
        wanted.append(image * 0.05 / np.abs(image).max())
    for image in wanted:
        assert min(np.abs(image - other).max() for other in found) < 1e-6


def test_simba_keeps_what_helps_and_skips_the_other_sign() -> None:
    seen, machine = simba_candidates(SimBA(budget=13, freq_dims=2, eps=0.05, step=0.01), accept=True)
    assert machine.turn == 12 and machine.curve == [(n, float(n)) for n in range(1, 14)]
    assert machine.best()[0].equal(seen[-1])
    assert float((seen[-1] - GREY).abs().max()) <= 0.05 + 1e-7


def test_simba_with_pixels_moves_one_value() -> None:
    seen, machine = simba_candidates(SimBA(basis="pixel", budget=20, eps=0.05), accept=False)
    assert machine.count == GREY.numel()
    for candidate in seen[1:]:
        change = candidate - GREY
        assert int((change != 0).sum()) == 1 and float(change.abs().max()) == pytest.approx(0.05, abs=1e-6)


def test_simba_default_frequencies_and_steps() -> None:
    assert SimBA().basis_size((3, 224, 224)) == (3, 28, 28)
    assert SimBA().basis_size((3, 20, 8)) == (3, 3, 1)
    assert SimBA(freq_dims=50).basis_size((3, 20, 8)) == (3, 20, 8)
    assert SimBA().stride == pytest.approx(8 / 255) and SimBA(step="4/256").stride == pytest.approx(1 / 64)
    assert SimBA(norm="l2").stride == pytest.approx(0.2)
    seen, _ = simba_candidates(SimBA(norm="l2", budget=9), accept=False)
    assert l2_norm(torch.stack(seen[1:]) - GREY).tolist() == pytest.approx([0.2] * 8, abs=1e-5)


def test_simba_finds_the_optimum_of_a_separable_problem() -> None:
    """For f(x) = x every value is attacked on its own: the worst is a step of eps away from the truth."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(0.3, 0.7, (1, 4, 4)).astype(np.float32))
    truth = x + torch.from_numpy(rng.choice([-0.1, 0.1], (1, 4, 4)).astype(np.float32))
    attack = SimBA(basis="pixel", eps=0.05, budget=200)
    machine = attack.start(query_problem(x))
    run_machine(machine, judge_by(score_against(restorer(Scale()), truth)))
    best, score = machine.best()
    assert machine.stop_reason == "converged" and score == pytest.approx(0.15**2, rel=1e-5)
    assert torch.allclose(best - x, -0.05 * (truth - x).sign(), atol=1e-6)
