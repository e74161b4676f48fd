"""FreqPure's hook against numpy's Fourier transform, and its gradients against finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from purifier_doubles import LINEAR, tiny_denoiser
from torch import Tensor

from udc_ray.errors import SpecError
from udc_ray.purifiers.chain import Noise, make_segments, run_chain
from udc_ray.purifiers.frequency import FrequencyHook
from udc_ray.purifiers.gradients import exact
from udc_ray.purifiers.plan import Plan, Round
from udc_ray.tape import Tape


def pair(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An estimate in [-1, 1] and a reference in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    x0, reference = torch.rand(2, 2, 2, height, width, generator=generator, dtype=torch.float64)
    return x0 * 2 - 1, reference


def by_numpy(x0: Tensor, reference: Tensor, hook: FrequencyHook) -> np.ndarray:
    """The same in amplitudes and phases, on the whole plane of frequencies."""
    estimate, held = np.fft.fft2(x0.numpy()), np.fft.fft2(reference.numpy() * 2 - 1)
    height, width = x0.shape[-2:]
    rows, columns = np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width
    radius = np.hypot(rows[:, None], columns[None])
    amplitude = np.where(radius <= hook.amplitude_radius, np.abs(held), np.abs(estimate))
    difference = (np.angle(estimate) - np.angle(held) + np.pi) % (2 * np.pi) - np.pi
    near = np.angle(held) + np.clip(difference, -hook.delta, hook.delta)
    phase = np.where(radius <= hook.phase_radius, near, np.angle(estimate))
    return np.fft.ifft2(amplitude * np.exp(1j * phase)).real


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(-1, 8),
    st.floats(-1, 8),
    st.floats(0, math.pi),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_it_is_amplitudes_and_phases(height: int, width: int, a: float, p: float, delta: float, seed: int) -> None:
    hook = FrequencyHook(amplitude_radius=a, phase_radius=p, delta=delta)
    x0, reference = pair(height, width, seed)
    np.testing.assert_allclose(hook(x0, reference).numpy(), by_numpy(x0, reference, hook), rtol=0, atol=1e-12)


def test_what_it_promises_of_the_result() -> None:
    hook = FrequencyHook()
    x0, reference = pair(16, 20)
    after, held, before = (torch.fft.fft2(v) for v in (hook(x0, reference), reference * 2 - 1, x0))
    rows, columns = torch.fft.fftfreq(16, 1 / 16), torch.fft.fftfreq(20, 1 / 20)
    radius = torch.hypot(rows[:, None], columns[None])
    inner = (radius <= 3) & (radius > 0)  # the phase of the zero frequency is 0 or pi
    torch.testing.assert_close(after.abs()[..., inner], held.abs()[..., inner])
    apart = (after / held).angle().abs()[..., (radius <= 2) & (radius > 0)]
    assert apart.max() <= 0.2 + 1e-9 and apart.max() > 0.19
    torch.testing.assert_close(after[..., radius > 3], before[..., radius > 3])


def test_without_radii_nothing_happens_and_with_all_of_it_the_reference_comes_back() -> None:
    x0, reference = pair(9, 8)
    torch.testing.assert_close(FrequencyHook(amplitude_radius=-1, phase_radius=-1)(x0, reference), x0)
    whole = FrequencyHook(amplitude_radius=99, phase_radius=99, delta=0)
    torch.testing.assert_close(whole(x0, reference), reference * 2 - 1)


@pytest.mark.parametrize("height, width", [(4, 5), (5, 4)])
def test_gradient_is_that_of_finite_differences(height: int, width: int) -> None:
    x0, reference = (v[:1, :1].clone().requires_grad_() for v in pair(height, width, 3))
    for hook in (FrequencyHook(), FrequencyHook(amplitude_radius=1, phase_radius=3, delta=1.0)):
        assert torch.autograd.gradcheck(hook, (x0, reference))
        assert torch.autograd.gradgradcheck(hook, (x0, reference), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_coefficients_are_zero(dtype: torch.dtype) -> None:
    flat = torch.zeros(1, 3, 8, 8, dtype=dtype)
    grey = torch.full_like(flat, 0.5)
    busy = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    for x0, reference in ((flat, grey), (flat, busy), (busy, grey), (flat, grey + 0.1)):
        x0, reference = x0.clone().requires_grad_(), reference.clone().requires_grad_()
        mixed = FrequencyHook()(x0, reference)
        first = torch.autograd.grad(mixed.square().sum(), (x0, reference), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x0, reference))
        assert all(bool(v.isfinite().all()) for v in (mixed, *first, *second))


def test_zero_coefficients_have_phase_zero() -> None:
    """As numpy has it: a flat estimate takes the amplitudes of the reference, all in phase at the first pixel."""
    hook = FrequencyHook(amplitude_radius=2, phase_radius=-1)
    x0, reference = torch.zeros(2, 2, 8, 8, dtype=torch.float64), pair(8, 8)[1]
    np.testing.assert_allclose(hook(x0, reference).numpy(), by_numpy(x0, reference, hook), rtol=0, atol=1e-14)


def test_in_a_chain_it_changes_the_image_and_its_gradient_is_complete() -> None:
    plan = Plan(rounds=(Round(timesteps=(150, 70)),), hook=FrequencyHook())
    tape = Tape(seed=0, image_ids=("a", "b"), stream="attack")
    x = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    segments = make_segments(plan, tiny_denoiser(), LINEAR, Noise(tape=tape, name="test"))
    plain = make_segments(Plan(rounds=plan.rounds), tiny_denoiser(), LINEAR, Noise(tape=tape, name="test"))
    purified = exact(segments, x)
    assert torch.equal(purified, run_chain(segments, x))
    assert (purified - run_chain(plain, x)).abs().max() > 1e-2
    state: tuple[Tensor, ...] = (x,)
    for segment in segments:
        state = segment(state, x)
    (ours,), (theirs,) = (torch.autograd.grad(y.square().sum(), x) for y in (purified, state[0]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_image_has_the_same_bits_in_any_company() -> None:
    before, hook = torch.get_num_threads(), FrequencyHook()
    x0, reference = torch.rand(2, 4, 3, 13, 16, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    try:
        alone = hook(x0[:1].repeat(4, 1, 1, 1), reference[:1].repeat(4, 1, 1, 1))[0]
        for turn in range(4):
            assert torch.equal(hook(x0.roll(turn, 0), reference.roll(turn, 0))[turn], alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("params", [{"delta": -0.1}, {"delta": 4.0}, {"phase_radius": math.nan}], ids=str)
def test_senseless_parameters_are_refused(params: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="delta"):
        FrequencyHook(**params)
