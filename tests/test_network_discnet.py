"""DISCNet: the published keys and numbers, gradients, batches, the code of the point spread function, padding."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from published_fixture import fixture
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.models.networks.discnet import DISCNet


class Coded(nn.Module):
    """The network with the public code of the centre."""

    def __init__(self) -> None:
        super().__init__()
        self.network = filled("discnet", DISCNet())
        self.register_buffer("code", torch.tensor(fixture("discnet")[0]["psf_code"]).reshape(1, 5, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x, self.code.expand(len(x), -1, -1, -1))
        return out


@cache
def coded() -> Coded:
    network = Coded()
    assert_published_numbers("discnet", network)
    return network


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def test_published_numbers() -> None:
    assert next(coded().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


@pytest.mark.parametrize(("height", "width"), [(24, 24), (13, 18), pytest.param(64, 64, marks=pytest.mark.slow)])
def test_input_gradient_equals_central_differences(height: int, width: int) -> None:
    """At 13 x 18 through the padding. In units in which 1e-6 along a random direction is about 1e-6 in all: a longer
    step crosses some of the millions of kinks of LeakyReLUs, and what it measures is no derivative."""
    x, unit = published_input("discnet", height, width), 2.0**-7
    assert_gradient(lambda scaled: coded()(scaled * unit), x / unit)


@pytest.mark.parametrize(("height", "width"), [(40, 24), (13, 18), (1, 3)])
def test_other_sizes_and_batches(height: int, width: int) -> None:
    assert_batches(coded(), height, width)


def test_padding_repeats_the_right_and_bottom_edge() -> None:
    x = rand(1, 3, 13, 18)
    by_hand = coded()(F.pad(x, (0, 2, 0, 3), mode="replicate"))[..., :13, :18]
    assert torch.equal(coded()(x), by_hand)


def test_each_item_has_its_own_code() -> None:
    network, x = coded().network, rand(1, 3, 8, 8).repeat(2, 1, 1, 1)
    codes = torch.cat([coded().code, -3 * coded().code])
    together = network(x, codes)
    assert (together[0] - together[1]).abs().max() > 1e-3
    for number in (0, 1):
        alone = network(x[:1], codes[number : number + 1])
        torch.testing.assert_close(together[number : number + 1], alone, rtol=0, atol=1e-10)
    assert torch.equal(network(x, codes[:1]), network(x, codes[:1].expand(2, -1, -1, -1)))


def test_companions_change_no_bit() -> None:
    network, x = coded().float(), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = network(x[[0, 1]]), network(x[[0, 2]])
    coded().double()
    assert torch.equal(first[0], second[0])


def test_second_derivatives_reach_the_input() -> None:
    """A guide's gradient is differentiated again: its directional derivative against central differences."""
    x, direction = published_input("discnet", 8, 8).requires_grad_(), rand(1, 3, 8, 8) - 0.5

    def slope(at: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(coded()(at).square().mean(), at, create_graph=True)
        return (gradient * direction).sum()

    (second,) = torch.autograd.grad(slope(x), x)
    ahead, behind = (slope((x + step * direction).detach().requires_grad_()) for step in (1e-6, -1e-6))
    wanted = (ahead - behind).detach() / 2e-6
    torch.testing.assert_close((second * direction).sum(), wanted, rtol=1e-5, atol=0)


def test_the_four_plane_variant_has_its_published_parameters() -> None:
    """Ahn et al., UDC-SIT (NeurIPS 2023)."""
    with torch.device("meta"):
        network = DISCNet(channels=4)
    assert sum(p.numel() for p in network.parameters()) == 3_805_482


def test_other_widths_kernels_and_codes_run() -> None:
    network = DISCNet(channels=4, width=4, code_length=2, kernel_size=3)
    assert network(torch.rand(2, 4, 6, 5), torch.rand(2, 2, 1, 1)).shape == (2, 4, 6, 5)
