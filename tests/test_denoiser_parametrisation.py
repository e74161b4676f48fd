"""What networks predict, and in which range, as noise in images in [-1, 1]: against diffusers and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm
from hypothesis import given, settings
from hypothesis import strategies as st
from purifier_doubles import LINEAR, tiny_unet
from torch import Tensor, nn

from udc_ray.purifiers.denoiser import Denoiser, to_eps
from udc_ray.purifiers.sampler import add_noise, ddim_step
from udc_ray.purifiers.schedule import LEVELS_PER_UNIT, Prediction, Schedule

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction")
SCHEDULES = [
    LINEAR,
    LINEAR.model_copy(update={"num_train_timesteps": 800}),
    Schedule(num_train_timesteps=1200, beta_start=8e-4, beta_end=0.012, beta_schedule="scaled_linear"),
    Schedule(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="squaredcos_cap_v2"),
    Schedule.model_validate({"trained_betas": np.linspace(1e-4, 0.03, 700).tolist()}),
]


def noisy(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def in_float64(scheduler: Any, schedule: Schedule) -> Any:
    """diffusers' scheduler with its table in float64: in float32, 1 - abar near t = 0 is wrong by 6e-4 of itself."""
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alpha_bar.copy())
    scheduler.num_inference_steps = 20
    return scheduler


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_ddim_step_is_that_of_diffusers(prediction: Prediction, schedule: Schedule) -> None:
    network, x = tiny_unet().double(), noisy()
    denoiser = Denoiser(network, schedule, prediction=prediction)
    config = {**schedule.scheduler_config(prediction), "clip_sample": False}
    scheduler = in_float64(DDIMScheduler.from_config(config), schedule)
    gap = schedule.num_train_timesteps // 20
    for t in (5 * gap, 13 * gap):
        with torch.no_grad():
            theirs = scheduler.step(network(x, t).sample, t, x).prev_sample
            ours = ddim_step(x, denoiser(x, t), schedule.alpha_bar[t], schedule.alpha_bar[t - gap])
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_learned_variance_is_left_out_as_diffusers_does(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(**{**tiny_unet().config, "out_channels": 6}).double().eval()
    assert Denoiser(network, LINEAR).channels == 3
    scheduler = in_float64(
        DDPMScheduler(variance_type="learned_range", prediction_type=prediction, clip_sample=False), LINEAR
    )
    scheduler.set_timesteps(timesteps=[300, 200])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: torch.zeros(shape, dtype=torch.float64))
    x = noisy()
    with torch.no_grad():
        answer = network(x, 300).sample
        theirs = scheduler.step(answer, 300, x).prev_sample  # its mean, as the noise is 0
        eps = Denoiser(network, LINEAR, prediction=prediction)(x, 300)
    ours = ddim_step(x, eps, LINEAR.alpha_bar[300], LINEAR.alpha_bar[200], 1.0, torch.zeros_like(x))
    assert answer.shape[1] == 6
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(-1, 1), st.floats(-4, 4))
def test_all_three_name_the_same_noise(abar: float, y: float, eps: float) -> None:
    clean, noise = (torch.tensor([v], dtype=torch.float64) for v in (y, eps))
    y_t = add_noise(clean, noise, abar)
    answers = {"epsilon": noise, "sample": clean, "v_prediction": math.sqrt(abar) * noise - math.sqrt(1 - abar) * clean}
    for prediction in PREDICTIONS:
        assert to_eps(answers[prediction], y_t, abar, prediction).item() == pytest.approx(eps, rel=1e-9, abs=1e-9)


class GaussianPrior(nn.Module):
    """The best possible network for pixels from N(mean, deviation^2), in the range of those numbers."""

    def __init__(self, mean: float, deviation: float, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.mean, self.deviation, self.schedule, self.prediction = mean, deviation, schedule, prediction

    def forward(self, y_t: Tensor, t: int) -> Tensor:
        share = float(self.schedule.alpha_bar[t])
        spread = share * self.deviation**2 + 1 - share
        away = y_t - math.sqrt(share) * self.mean
        eps = math.sqrt(1 - share) / spread * away
        clean = self.mean + math.sqrt(share) * self.deviation**2 / spread * away
        velocity = math.sqrt(share) * eps - math.sqrt(1 - share) * clean
        return {"epsilon": eps, "sample": clean, "v_prediction": velocity}[self.prediction]


@given(
    st.sampled_from(SCHEDULES),
    st.floats(0.002, 0.9),
    st.sampled_from(PREDICTIONS),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5), (0.0, 255.0)]),
)
@settings(max_examples=40, deadline=None)
def test_any_range_is_one_prior_of_images(
    schedule: Schedule, share: float, prediction: Prediction, input_range: tuple[float, float]
) -> None:
    """The closed form for [0, 1] numbers, wrapped, is the closed form for the same images in [-1, 1]."""
    t, (low, high) = int(share * schedule.num_train_timesteps), input_range
    centre, half, mean, deviation = (low + high) / 2, (high - low) / 2, 0.3, 0.25
    theirs = GaussianPrior(centre + half * mean, half * deviation, schedule, prediction)
    wrapped = Denoiser(theirs, schedule, prediction=prediction, input_range=input_range, channels=3, size_multiple=1)
    images = GaussianPrior(mean, deviation, wrapped.schedule, "epsilon")
    torch.testing.assert_close(wrapped(noisy(), t), images(noisy(), t), rtol=1e-8, atol=1e-8)
    noise = math.sqrt((1 - schedule.alpha_bar[t]) / schedule.alpha_bar[t])  # in the numbers of the network
    # the table holds abar, and 1 - abar of a wide range keeps eight digits of it
    assert wrapped.schedule.sigma(t) == pytest.approx(noise / half * LEVELS_PER_UNIT, rel=1e-7)


def test_the_same_sigma_is_another_time_of_a_network_of_zero_to_one() -> None:
    """At one time, the noise of a [0, 1] network is twice that of a [-1, 1] network, measured in the image."""
    halved = LINEAR.for_images((0, 1))
    assert halved.sigma(100) == pytest.approx(2 * LINEAR.sigma(100), rel=1e-9)
    assert halved.nearest(2 * LINEAR.sigma(100)) == LINEAR.nearest(LINEAR.sigma(100)) == 100
    assert halved.nearest(25) < LINEAR.nearest(25)
    assert LINEAR.for_images((-1, 1)) is LINEAR


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_times_and_levels_convert_both_ways(schedule: Schedule, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, schedule.num_train_timesteps - 1))
    for one in (schedule, schedule.for_images((0, 1))):
        assert one.nearest(one.sigma(t)) == t


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_tables_are_those_of_diffusers(schedule: Schedule) -> None:
    theirs = DDPMScheduler.from_config(schedule.scheduler_config())
    np.testing.assert_allclose(schedule.alpha_bar, theirs.alphas_cumprod.double().numpy(), rtol=1e-3, atol=1e-8)
    again = Schedule.model_validate(dict(theirs.config))
    assert again == schedule and again.is_like(schedule)


def test_a_table_is_the_same_by_any_name() -> None:
    betas = np.linspace(1e-4, 0.02, 1000).tolist()
    assert LINEAR.is_like(Schedule.model_validate({"trained_betas": betas}))
    assert not LINEAR.is_like(Schedule.model_validate({"trained_betas": betas[:999]}))
    assert not LINEAR.is_like(LINEAR.model_copy(update={"beta_end": 0.0201}))


@pytest.mark.parametrize("betas", [[], [0.1, 0.0], [0.1, 1.0], [0.1, "x"], [0.1, math.nan], 3], ids=str)
def test_tables_that_are_none_are_refused(betas: Any) -> None:
    with pytest.raises(ValueError, match="trained_betas"):
        Schedule.model_validate({**LINEAR.model_dump(), "num_train_timesteps": 2, "trained_betas": betas})
