"""Tiles: windows that sum to 1, and a blend that is the whole image wherever the network is local."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from purifier_doubles import LINEAR, tiny_denoiser, tiny_unet
from torch import Tensor, nn

from udc_ray.errors import SpecError
from udc_ray.purifiers.chain import Noise, make_segments
from udc_ray.purifiers.denoiser import Denoiser
from udc_ray.purifiers.gradients import exact
from udc_ray.purifiers.plan import Plan, Round
from udc_ray.purifiers.tiled import Tiled, windows
from udc_ray.tape import Tape


class Calls(nn.Module):
    """A network given as a function, that keeps the shapes of what it was called with."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, t: int) -> Tensor:
        self.shapes.append(tuple(x.shape))
        answer: Tensor = self.function(x) * (1 + t / 1000)
        return answer


def denoiser(function: nn.Module) -> Denoiser:
    return Denoiser(Calls(function), LINEAR, channels=3, size_multiple=1)


def local_network(reach: int) -> nn.Module:
    """Two convolutions and a bend, in float64, that together see `reach` px around; zeros outside of the image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = nn.Conv2d(3, 4, 2 * (reach - 1) + 1, padding=reach - 1)
        return nn.Sequential(wide, nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1)).double()


def image(height: int, width: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)


@given(st.integers(1, 300), st.integers(2, 64), st.data())
def test_windows_cover_a_side_and_sum_to_one(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    total, found = np.zeros(length), windows(length, tile, overlap)
    for start, weight in found:
        assert len(weight) == min(tile, length) and weight.min() >= 0
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-15)
    assert found[0][0] == 0 and found[-1][0] + len(found[-1][1]) == length
    for (first, weight), (second, _) in pairwise(found):
        assert first + tile - second >= overlap  # they share what was asked for
        assert not weight[tile - overlap // 4 :].any() if overlap >= 4 else True  # and the outermost px count nothing


def test_windows_are_smooth() -> None:
    (_, left), (start, right) = windows(112, 64, 16)
    assert start == 48
    np.testing.assert_allclose(left[48:], right[:16][::-1], atol=1e-15)
    share = (np.arange(52, 60) + 0.5 - 52) / 8  # half of the overlap, in its middle
    np.testing.assert_allclose(left[52:60], (1 + np.cos(np.pi * share)) / 2, atol=1e-15)
    assert (left[:52] == 1).all() and (left[60:] == 0).all()


@given(st.integers(1, 50), st.integers(1, 50), st.integers(4, 20), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_constant_stays_a_constant(height: int, width: int, tile: int, overlap: int) -> None:
    ones = torch.ones(1, 3, height, width, dtype=torch.float64)
    blended = Tiled(denoiser(nn.Identity()), tile, overlap)(ones, 500)
    torch.testing.assert_close(blended, 1.5 * ones, rtol=0, atol=1e-14)


def test_a_linear_operator_has_its_closed_form() -> None:
    """Zero outside of a tile, a shift by one pixel loses the first column of every tile: known weights are missing."""
    shift = nn.Conv2d(3, 3, (1, 3), padding=(0, 1), groups=3, bias=False).double()
    shift.weight.data[:] = torch.tensor([1.0, 0.0, 0.0])
    x, tile, overlap = image(4, 29), 8, 3
    kept = torch.zeros(29, dtype=torch.float64)
    for start, weight in windows(29, tile, overlap):
        kept[start + 1 : start + tile] += torch.from_numpy(weight[1:])
    expected = torch.zeros_like(x)
    expected[..., 1:] = x[..., :-1] * kept[1:]
    torch.testing.assert_close(Tiled(denoiser(shift), tile, overlap)(x, 0), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(16, 16), (37, 16), (40, 51), (23, 17), (7, 33), (64, 5)])
def test_a_local_network_gives_the_whole_image_and_its_gradient(size: tuple[int, int]) -> None:
    network = local_network(reach=2)
    whole, tiled = denoiser(network), Tiled(denoiser(network), 16, 8)
    x = image(*size, count=2).requires_grad_()
    weight = image(*size, count=2).roll(1, -1)
    results = []
    for predictor in (whole, tiled):
        eps = predictor(x, 100)
        (gradient,) = torch.autograd.grad((eps.sin() * weight).sum(), x)
        results.append((eps, gradient))
    for dense, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, rtol=0, atol=1e-12)


def test_a_network_that_sees_further_than_the_overlap_differs() -> None:
    network, x = local_network(reach=4), image(16, 40)
    gap = Tiled(denoiser(network), 16, 8)(x, 100) - denoiser(network)(x, 100)
    assert gap.abs().max() > 1e-3


def test_every_pass_has_one_shape_and_small_images_pass_untouched() -> None:
    network = Calls(nn.Identity())
    tiled = Tiled(Denoiser(network, LINEAR, channels=3, size_multiple=1), 16, 4)
    tiled(image(45, 30, count=3), 0)
    assert set(network.shapes) == {(3, 3, 16, 16)}
    assert len(network.shapes) == tiled.tiles(45, 30) == 4 * 3
    network.shapes.clear()
    small = image(16, 9)
    assert torch.equal(tiled(small, 0), small) and network.shapes == [(1, 3, 16, 9)]


def test_an_image_has_the_same_bits_in_any_company() -> None:
    tiled, before = Tiled(tiny_denoiser(), 16, 8), torch.get_num_threads()
    x = image(21, 40, count=4).float()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            alone = tiled(x[:1].repeat(4, 1, 1, 1), 99)[0]
            assert all(torch.equal(tiled(x.roll(turn, 0), 99)[turn], alone) for turn in range(4))
    finally:
        torch.set_num_threads(before)


def test_the_attack_sees_the_tiling() -> None:
    """Through a purification in tiles, the exact gradient is that of plain autograd, and another than without tiles."""
    network = local_network(reach=4)
    plan = Plan(rounds=(Round(timesteps=(99, 49), clip_x0=False),))
    noise = Noise(tape=Tape(seed=0, image_ids=("a",), stream="attack"), name="test")
    x = (image(16, 40) / 8 + 0.5).requires_grad_()
    gradients = {}
    for name, predictor in (("tiled", Tiled(denoiser(network), 16, 4)), ("whole", denoiser(network))):
        segments = make_segments(plan, predictor, predictor.schedule, noise)
        state: tuple[Tensor, ...] = (x,)
        for segment in segments:
            state = segment(state, x)
        (gradients[name],) = torch.autograd.grad(state[0].square().sum(), x)
        (ours,) = torch.autograd.grad(exact(segments, x).square().sum(), x)
        assert (ours - gradients[name]).norm() <= 1e-12 * gradients[name].norm()
    assert (gradients["tiled"] - gradients["whole"]).norm() > 1e-3 * gradients["whole"].norm()


def test_a_tiled_denoiser_is_one() -> None:
    halved = Denoiser(tiny_unet(), LINEAR, prediction="sample", input_range=(0, 1))
    tiled = Tiled(halved, 16, 8)
    assert (tiled.schedule, tiled.channels, tiled.network) == (halved.schedule, 3, halved.network)
    x = image(12, 16).float()
    with torch.no_grad():
        assert torch.equal(tiled(x, 99), halved(x, 99))


@pytest.mark.parametrize(
    "tile, overlap, message", [(16, 16, "overlap by 16"), (16, -1, "overlap by -1"), (15, 4, "2 px")]
)
def test_senseless_tiles_are_refused(tile: int, overlap: int, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Tiled(tiny_denoiser(), tile, overlap)
