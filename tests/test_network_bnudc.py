"""BNUDC: the published keys and numbers, gradients, batches, and what each of its three images is."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from udc_ray.models.networks.bnudc import BNUDC, WeightNormConv, colour_transform


class Final(nn.Module):
    """The network and its last image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)[2]
        return out


@cache
def final() -> Final:
    network = Final(filled("bnudc", BNUDC()))
    assert_published_numbers("bnudc", network)
    return network


def narrow() -> BNUDC:
    torch.manual_seed(0)
    return BNUDC(high_width=4, low_widths=(4, 6, 8), blocks=1).double().requires_grad_(False)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def test_published_numbers() -> None:
    assert next(final().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


@pytest.mark.parametrize("size", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_input_gradient_equals_central_differences(size: int) -> None:
    """In units in which 1e-6 along a random direction is about 1e-6 in all: a longer step crosses some of the millions
    of kinks of LeakyReLUs, and what it measures is no derivative."""
    x, unit = published_input("bnudc", size, size), 2.0**-7
    assert_gradient(lambda scaled: final()(scaled * unit), x / unit)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (16, 16)])
def test_other_sizes_and_batches(height: int, width: int) -> None:
    assert_batches(final(), height, width)


def test_companions_change_no_bit() -> None:
    network, x = final().float(), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = network(x[[0, 1]]), network(x[[0, 2]])
    final().double()
    assert torch.equal(first[0], second[0])


def test_weight_normalisation_is_that_of_torch() -> None:
    ours, theirs = WeightNormConv(4, 2, 4), nn.Conv2d(4, 2, 3, padding=4, dilation=4, bias=False)
    with torch.no_grad():
        ours.weight_g.mul_(1.5)
    parametrizations.weight_norm(theirs)
    theirs.load_state_dict(
        {f"parametrizations.weight.original{n}": v for n, v in enumerate(ours.state_dict().values())}
    )
    x = torch.rand(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_the_colour_transform_is_a_matrix_and_an_offset() -> None:
    x, affine = rand(2, 3, 4, 5), rand(2, 12, 4, 5) - 0.5
    got = colour_transform(x, affine)
    matrix, offset = affine[1, :9, 2, 3].reshape(3, 3), affine[1, 9:, 2, 3]
    torch.testing.assert_close(got[1, :, 2, 3], matrix @ x[1, :, 2, 3] + offset, rtol=0, atol=1e-12)


def test_without_a_correction_of_its_own_a_branch_passes_the_other_on() -> None:
    """Gain 1 and offset 0 from one, the identity matrix from the other."""
    network, x = narrow(), rand(1, 3, 32, 16)
    high, low, last = network(x)
    assert min((high - x).abs().max(), (low - x).abs().max(), (last - high).abs().max()) > 1e-3
    network.tail_sub.weight.zero_()
    network.tail_sub.bias.copy_(torch.cat([torch.eye(3).flatten(), torch.zeros(3)]))
    unchanged, neutral, last = network(x)
    assert torch.equal(unchanged, high)
    torch.testing.assert_close(neutral, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, high, rtol=0, atol=1e-12)
    network = narrow()
    network.tail.weight.zero_()
    network.tail.bias.copy_(torch.cat([torch.ones(12), torch.zeros(12)]))
    neutral, unchanged, last = network(x)
    assert torch.equal(unchanged, low)
    torch.testing.assert_close(neutral, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, low, rtol=0, atol=1e-12)


def test_the_published_box_filter_is_a_mean_up_to_the_edge() -> None:
    """A uniform image stays uniform, so that the colour matrix has no frame of its own at the first layer."""
    network, seen = narrow(), []
    network.shallow_sub.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.full((1, 3, 32, 48), 0.3, dtype=DOUBLE))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 8, 12), 0.3, dtype=DOUBLE), rtol=0, atol=1e-12)
