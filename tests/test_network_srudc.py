"""SRUDC: the published keys and numbers in two widths, both results, gradients, batches, sizes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from published_fixture import fixture
from torch import Tensor, nn

from udc_ray.errors import DataError
from udc_ray.models.networks.srudc import SRUDC
from udc_ray.probe import position_invariant

WIDTHS = {"srudc_f": 24, "srudc_l": 16}


class Result(nn.Module):
    """The network and its image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)[0]
        return out


@cache
def published(name: str) -> Result:
    network = Result(filled(name, SRUDC(width=WIDTHS[name])))
    assert_published_numbers(name, network)
    return network


def narrow() -> SRUDC:
    torch.manual_seed(0)
    return SRUDC(width=8, depths=(1,) * 7).double().eval().requires_grad_(False)


@pytest.mark.parametrize("name", WIDTHS)
def test_published_numbers(name: str) -> None:
    """The image, and the scattering parameters beside it."""
    _, data = fixture(name)
    network = published(name)
    _, scattering = network.network(data["network_input"].to(DOUBLE))
    assert scattering.shape == (1, 2, 1, 1)
    torch.testing.assert_close(scattering, data["second_output"].to(DOUBLE), rtol=0, atol=6e-8)  # stored as float32


@pytest.mark.parametrize("name", WIDTHS)
def test_input_gradient_equals_central_differences(name: str) -> None:
    """At 24 x 24 the step would cross the kink of one ReLU of a channel attention, and measure no derivative."""
    assert_gradient(published(name), published_input(name, 32, 24))


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_input_gradient_of_the_whole_input_equals_central_differences(name: str) -> None:
    assert_gradient(published(name), published_input(name, 64, 64))


def test_the_scattering_parameters_have_a_gradient_too() -> None:
    network = published("srudc_l").network

    def scattering(x: Tensor) -> Tensor:
        out: Tensor = network(x)[1]
        return out

    assert_gradient(scattering, published_input("srudc_l", 24, 24))


@pytest.mark.parametrize("name", WIDTHS)
def test_other_sizes_and_batches(name: str) -> None:
    assert_batches(published(name), 32, 24)


def test_companions_change_no_bit() -> None:
    network, x = narrow().float(), torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    for first, second in zip(network(x[[0, 1]]), network(x[[0, 2]]), strict=True):
        assert torch.equal(first[0], second[0])


def test_the_place_in_the_batch_changes_no_bit() -> None:
    assert position_invariant(Result(narrow().float()), (3, 64, 64), 4)


def test_only_the_stored_downs_cond_are_unused() -> None:
    """What the image or the scattering parameters depend on is everything but what the published file never uses."""
    network = narrow().requires_grad_(True)
    image, scattering = network(published_input("srudc_l", 24, 24))
    (image.sum() + scattering.sum()).backward()
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert unused == set(fixture("srudc_l")[0]["unused_keys"])


def test_the_condition_reaches_the_image_only_through_scale_and_shift() -> None:
    """Modulation by nothing leaves the image branch alone, whatever the condition branch computes."""
    network, x = narrow(), published_input("srudc_l", 24, 24)
    for fusion in network.fusions_cond:
        for layer in (fusion.SFT_scale_conv1, fusion.SFT_shift_conv1):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    image, scattering = network(x)
    nn.init.normal_(network.condconv.proj.weight)
    again, other = network(x)
    assert torch.equal(image, again)
    assert not torch.equal(scattering, other)


def test_second_derivatives_exist() -> None:
    network, x = narrow(), published_input("srudc_l", 24, 24).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[0].square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all()
    assert second.abs().max() > 0


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 64), (24, 28)])
def test_sides_that_it_cannot_take_are_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match=f"{height} x {width}"):
        narrow()(torch.zeros(1, 3, height, width, dtype=DOUBLE))
