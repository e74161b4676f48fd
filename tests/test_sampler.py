"""The schedule and the reverse process, against diffusers' schedulers and closed forms."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from hypothesis import given, settings
from hypothesis import strategies as st
from purifier_doubles import LINEAR, tiny_denoiser
from scipy import stats

from udc_ray.errors import SpecError
from udc_ray.purifiers.chain import Noise, make_segments, run_chain
from udc_ray.purifiers.plan import Plan, Round
from udc_ray.purifiers.sampler import (
    NoisePredictor,
    add_noise,
    clip_eps,
    ddim_step,
    eps_of_x0,
    euler_step,
    x0_estimate,
)
from udc_ray.purifiers.schedule import Schedule
from udc_ray.tape import Tape

# Published noise levels: sigma in /255 units by t, for T = 800, 1000 and 1200 with betas 1e-4 .. 0.02
SIGMAS = {
    10: (5.9, 5.6, 5.3),
    30: (15.1, 13.8, 12.9),
    50: (24.2, 22.0, 20.4),
    70: (33.6, 30.4, 28.0),
    100: (48.2, 43.2, 39.6),
    120: (58.3, 52.1, 47.6),
    150: (74.5, 66.1, 60.1),
    200: (104.8, 91.7, 82.6),
}


def noise(count: int) -> Noise:
    ids = tuple(f"image {b}" for b in range(count))
    return Noise(tape=Tape(seed=0, image_ids=ids, stream="eval"), name="test")


def purify(denoiser: NoisePredictor, x: torch.Tensor, *rounds: Round) -> torch.Tensor:
    return run_chain(make_segments(Plan(rounds=rounds), denoiser, LINEAR, noise(len(x))), x)


def in_float64(scheduler: DDIMScheduler | DDPMScheduler) -> DDIMScheduler | DDPMScheduler:
    """diffusers' scheduler with its table in float64: in float32, 1 - abar near t = 0 is wrong by 6e-4 of itself."""
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return scheduler


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("column, length", [(0, 800), (1, 1000), (2, 1200)])
def test_sigma_is_that_of_the_table(column: int, length: int) -> None:
    schedule = LINEAR.model_copy(update={"num_train_timesteps": length})
    for t, row in SIGMAS.items():
        # the table counts noising steps from 1, the network's times start at 0
        assert schedule.sigma(t - 1) == pytest.approx(row[column], abs=0.051)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alpha_bar_is_that_of_diffusers(kind: str) -> None:
    config = {"num_train_timesteps": 400, "beta_start": 1e-3, "beta_end": 0.03, "beta_schedule": kind}
    ours = Schedule.model_validate(config)
    theirs = DDPMScheduler(**config).alphas_cumprod.double().numpy()
    assert ours.alpha_bar.dtype == np.float64
    np.testing.assert_allclose(ours.alpha_bar, theirs, rtol=2e-4, atol=1e-9)  # theirs is float32
    assert (np.diff(ours.sigmas) > 0).all()


def test_a_whole_scheduler_config_is_read_and_written() -> None:
    theirs = DDIMScheduler(beta_schedule="scaled_linear", beta_start=2e-4)
    ours = Schedule.model_validate(dict(theirs.config))
    again = DDPMScheduler.from_config(ours.scheduler_config())
    np.testing.assert_array_equal(again.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize(
    "change",
    [
        {"trained_betas": [0.1]},
        {"rescale_betas_zero_snr": True},
        {"beta_schedule": "sigmoid"},
        {"beta_start": 0.0},
        {"num_train_timesteps": 0},
    ],
)
def test_schedules_that_mean_something_else_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Schedule.model_validate({**LINEAR.scheduler_config(), **change})


@given(sigma=st.floats(1.28, 2000))
def test_nearest_time_is_nearest(sigma: float) -> None:
    t = LINEAR.nearest(sigma)
    assert all(abs(LINEAR.sigma(t) - sigma) <= abs(LINEAR.sigma(s) - sigma) for s in (max(t - 1, 0), min(t + 1, 999)))


@pytest.mark.parametrize("sigma", [25 / 255, 1e6])
def test_sigma_outside_the_schedule_is_refused(sigma: float) -> None:
    with pytest.raises(SpecError, match="outside the schedule"):
        LINEAR.nearest(sigma)


@given(first=st.integers(0, 999), share=st.floats(0, 1))
def test_timesteps_start_at_the_noise_and_are_even(first: int, share: float) -> None:
    steps = 1 + int(share * first)
    times = LINEAR.timesteps(first, steps)
    gaps = -np.diff([*times, -1])
    assert times[0] == first and len(times) == steps and times[-1] >= 0
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_all_times_and_too_many() -> None:
    assert LINEAR.timesteps(4) == (4, 3, 2, 1, 0)
    assert LINEAR.timesteps(119, 3) == (119, 79, 39)
    with pytest.raises(SpecError, match="6 steps do not fit"):
        LINEAR.timesteps(4, 6)
    with pytest.raises(SpecError, match="outside the schedule"):
        LINEAR.timesteps(1000, 2)


@pytest.mark.parametrize("times", [(), (3, 3), (1, 2), (2, -1)])
def test_a_process_goes_down(times: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="descend"):
        Round(timesteps=times)


@pytest.mark.parametrize("clip_x0", [False, True])
def test_ddim_chain_equals_diffusers(clip_x0: bool) -> None:
    """Times 119, 79, 39 are a stride of 40, which is diffusers' spacing for 25 of 1000 steps."""
    x, denoiser = images(2), tiny_denoiser()
    process = Round(timesteps=(119, 79, 39), clip_x0=clip_x0)
    ours = purify(denoiser, x, process)

    scheduler = in_float64(DDIMScheduler(clip_sample=clip_x0))
    scheduler.num_inference_steps = 25
    theirs = scheduler.add_noise(x * 2 - 1, noise(2)("0/0/start", x), torch.tensor([119, 119]))
    for t in (119, 79, 39):
        eps = denoiser.network(theirs, t).sample
        theirs = scheduler.step(eps, t, theirs, use_clipped_model_output=clip_x0).prev_sample
    torch.testing.assert_close(ours, (theirs / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip_x0", [False, True])
@pytest.mark.parametrize("steps", [None, 4])
def test_ancestral_chain_equals_diffusers(
    monkeypatch: pytest.MonkeyPatch, variance: str, clip_x0: bool, steps: int | None
) -> None:
    x, denoiser = images(2), tiny_denoiser()
    times = LINEAR.timesteps(19, steps)
    times = times if steps is None else (*times[:-1], 0)  # theirs adds fixed_large noise to a last t above 0
    process = Round(timesteps=times, eta=1.0, variance=variance, clip_x0=clip_x0)  # type: ignore[arg-type]  # drawn
    ours = purify(denoiser, x, process)

    scheduler = in_float64(DDPMScheduler(variance_type=variance, clip_sample=clip_x0))
    scheduler.set_timesteps(timesteps=list(times))
    drawn = (noise(2)(f"0/{step}/step", x) for step in range(len(times)))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(drawn))
    theirs = scheduler.add_noise(x * 2 - 1, noise(2)("0/0/start", x), torch.tensor([19, 19]))
    for t in times:
        theirs = scheduler.step(denoiser.network(theirs, t).sample, t, theirs).prev_sample
    torch.testing.assert_close(ours, (theirs / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_partial_eta_equals_diffusers() -> None:
    x, eps, noise = (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    scheduler = in_float64(DDIMScheduler(clip_sample=False))
    scheduler.num_inference_steps = 20
    theirs = scheduler.step(eps, 300, x, eta=0.4, variance_noise=noise).prev_sample
    ours = ddim_step(x, eps, LINEAR.alpha_bar[300], LINEAR.alpha_bar[250], 0.4, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@given(t=st.integers(1, 999), gap=st.integers(1, 300))
@settings(max_examples=30)
def test_ancestral_step_is_the_posterior(t: int, gap: int) -> None:
    """Mean and variance of q(x_prev | x_t, x_0), from the product of two Gaussians in float64."""
    a, p = LINEAR.alpha_bar[t], LINEAR.alpha_bar[max(0, t - gap)]
    x_t, eps = torch.tensor([0.7], dtype=torch.float64), torch.tensor([-0.3], dtype=torch.float64)
    x0, step = (0.7 + 0.3 * math.sqrt(1 - a)) / math.sqrt(a), a / p
    precision = 1 / (1 - p) + step / (1 - step)
    mean = (math.sqrt(p) * x0 / (1 - p) + math.sqrt(step) * 0.7 / (1 - step)) / precision
    zero, one = torch.zeros_like(x_t), torch.ones_like(x_t)
    ours = ddim_step(x_t, eps, a, p, 1.0, zero)
    assert ours.item() == pytest.approx(mean, rel=1e-7, abs=1e-9)
    small = ddim_step(x_t, eps, a, p, 1.0, one) - ours
    large = ddim_step(x_t, eps, a, p, 1.0, one, "fixed_large") - ours
    assert small.item() ** 2 == pytest.approx(1 / precision, rel=1e-6)
    assert large.item() ** 2 == pytest.approx(1 - step, rel=1e-6)


def test_last_step_is_the_clean_estimate_without_noise() -> None:
    x_t, eps = images(1) * 2 - 1, images(1)
    for eta, variance in ((0.0, "fixed_small"), (1.0, "fixed_small"), (1.0, "fixed_large")):
        ours = ddim_step(x_t, eps, 0.8, 1.0, eta, None, variance)  # type: ignore[arg-type]  # drawn
        assert torch.equal(ours, x0_estimate(x_t, eps, 0.8))


def test_noise_that_is_needed_and_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs noise"):
        ddim_step(images(1), images(1), 0.5, 0.9, 1.0)


def test_clipped_noise_implies_the_clipped_image() -> None:
    x_t, eps = images(1) * 4 - 2, images(1) * 2 - 1
    free = x0_estimate(x_t, eps, 0.6)
    assert free.abs().max() > 1.2
    torch.testing.assert_close(x0_estimate(x_t, clip_eps(x_t, eps, 0.6), 0.6), free.clamp(-1, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(eps_of_x0(x_t, free, 0.6), eps, atol=1e-6, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("first, steps", [(57, 3), (30, None)])
def test_a_perfect_denoiser_returns_the_image(eta: float, first: int, steps: int | None) -> None:
    x = images(2)

    def perfect(x_t: torch.Tensor, t: int) -> torch.Tensor:
        return eps_of_x0(x_t, x * 2 - 1, LINEAR.alpha_bar[t])

    process = Round(timesteps=LINEAR.timesteps(first, steps), eta=eta)
    torch.testing.assert_close(purify(perfect, x, process), x, atol=2e-6, rtol=0)


def test_forward_noise_is_normal_at_exactly_the_first_time() -> None:
    x, seen = images(2, 64), []

    def spy(x_t: torch.Tensor, t: int) -> torch.Tensor:
        seen.append((t, x_t))
        return torch.zeros_like(x_t)

    purify(spy, x, Round(timesteps=(57, 20)))
    (first, x_t), (second, _) = seen
    abar = LINEAR.alpha_bar[57]
    added = (x_t - math.sqrt(abar) * (x * 2 - 1)) / math.sqrt(1 - abar)
    assert (first, second) == (57, 20)
    for row in added:
        assert stats.kstest(row.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(added.flatten(1).numpy())[0, 1]) < 0.04
    # in the image's own units the noise has the level that sigma(t) names
    in_levels = (x_t / math.sqrt(abar) - (x * 2 - 1)).std().item() * 127.5
    assert in_levels == pytest.approx(LINEAR.sigma(57), rel=0.02)
    torch.testing.assert_close(x_t, add_noise(x * 2 - 1, noise(2)("0/0/start", x), abar))


def test_every_step_has_noise_of_its_own_and_the_last_has_none() -> None:
    """With a network that predicts no noise, the path is known but for the draws."""
    x, seen = images(1), []

    def spy(x_t: torch.Tensor, t: int) -> torch.Tensor:
        seen.append(x_t)
        return torch.zeros_like(x_t)

    ours = purify(spy, x, Round(timesteps=(9, 6, 3), eta=1.0, clip_x0=False))
    x_t = add_noise(x * 2 - 1, noise(1)("0/0/start", x), LINEAR.alpha_bar[9])
    for step, (t, before) in enumerate(((9, 6), (6, 3))):
        assert torch.equal(seen[step], x_t)
        drawn = noise(1)(f"0/{step}/step", x)
        zero, abars = torch.zeros_like(x), (float(LINEAR.alpha_bar[t]), float(LINEAR.alpha_bar[before]))
        x_t = ddim_step(x_t, zero, *abars, 1.0, drawn)
    last = x0_estimate(x_t, torch.zeros_like(x), float(LINEAR.alpha_bar[3]))
    assert torch.equal(ours, ((last + 1) / 2).clamp(0, 1))


def test_euler_maruyama_solves_the_reverse_sde_of_a_gaussian() -> None:
    """Data N(0, s^2): the exact score is known, and the solution is N(0, s^2) again (float64, 20,000 paths)."""
    generator, spread = torch.Generator().manual_seed(0), 0.8
    x0 = torch.randn(20_000, generator=generator, dtype=torch.float64) * spread
    times = LINEAR.timesteps(299)
    abars = [float(LINEAR.alpha_bar[t]) for t in times]
    x_t = add_noise(x0, torch.randn(20_000, generator=generator, dtype=torch.float64), abars[0])
    for abar, previous in zip(abars, [*abars[1:], 1.0], strict=True):
        eps = x_t * math.sqrt(1 - abar) / (abar * spread**2 + 1 - abar)
        x_t = euler_step(x_t, eps, abar, previous, torch.randn(20_000, generator=generator, dtype=torch.float64))
    assert x_t.std().item() == pytest.approx(spread, rel=0.03)
    assert x_t.mean().item() == pytest.approx(0, abs=0.01)
    # a path ends on a draw of the posterior of x_0 given x_t, whose correlation with x_0 is known
    expected = abars[0] * spread**2 / (abars[0] * spread**2 + 1 - abars[0])
    assert np.corrcoef(x_t.numpy(), x0.numpy())[0, 1] == pytest.approx(expected, abs=0.025)


def test_kernels_agree_on_levels_given_per_image() -> None:
    x_t, eps, drawn = (images(2) for _ in range(3))
    now, before = (torch.full((2, 1, 1, 1), level, dtype=torch.float64) for level in (0.6, 0.8))
    for kernel in (lambda *a: ddim_step(x_t, eps, *a, 0.7, drawn), lambda *a: euler_step(x_t, eps, *a, drawn)):
        torch.testing.assert_close(kernel(now, before).float(), kernel(0.6, 0.8), atol=1e-6, rtol=0)


def test_output_stays_in_range() -> None:
    for value in (-50.0, 50.0):
        process = Round(timesteps=(57, 20), clip_x0=False)
        wild = purify(lambda x_t, t, v=value: torch.full_like(x_t, v), images(1), process)
        assert wild.min() >= 0 and wild.max() <= 1
