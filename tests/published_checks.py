"""What every published network is held to, whichever it is."""

from __future__ import annotations

import torch
from published_fixture import fill, fixture
from torch import Tensor, nn

DOUBLE = torch.float64


def filled(name: str, network: nn.Module) -> nn.Module:
    """The network in evaluation mode with the weights of the rule; its entries must be the published ones, in order."""
    info, _ = fixture(name)
    entries = [(key, list(value.shape)) for key, value in network.state_dict().items()]
    assert entries == list(info["keys"].items())
    assert sum(p.numel() for p in network.parameters()) == info["parameters"]
    fill(network, info)
    return network.eval().requires_grad_(False)


def assert_published_numbers(name: str, network: nn.Module) -> None:
    """The stored output in float32 and in float64; leaves the network in float64."""
    info, data = fixture(name)
    x = data["network_input"]
    torch.testing.assert_close(network(x), data["output"], rtol=0, atol=info["cases"][0]["suggested_atol"])
    torch.testing.assert_close(network.double()(x.to(DOUBLE)), data["output_f64"], rtol=0, atol=1e-6)


def published_input(name: str, height: int, width: int) -> Tensor:
    """The upper left of the stored input, float64."""
    return fixture(name)[1]["network_input"][..., :height, :width].to(DOUBLE)


def assert_gradient(network: nn.Module, x_BCHW: Tensor, count: int = 8) -> None:
    """The gradient of a random linear functional of the output against central differences, in float64.

    `count` is the number of random directions. The moved images go through in one batch, which spares
    time; that batches change nothing is another check.
    """
    generator = torch.Generator().manual_seed(0)
    x_BCHW = x_BCHW.detach().requires_grad_()
    output = network(x_BCHW)
    weight = torch.randn(output.shape, dtype=DOUBLE, generator=generator)
    (gradient,) = torch.autograd.grad((output * weight).sum(), x_BCHW)
    directions = torch.randn(count, *x_BCHW.shape[1:], dtype=DOUBLE, generator=generator)
    with torch.no_grad():
        ahead, behind = network(torch.cat((x_BCHW + 1e-6 * directions, x_BCHW - 1e-6 * directions))).chunk(2)
    differences = ((ahead - behind) * weight).sum((1, 2, 3)) / 2e-6
    torch.testing.assert_close((gradient * directions).sum((1, 2, 3)), differences, rtol=1e-5, atol=0)


def assert_batches(network: nn.Module, height: int, width: int, channels: int = 3) -> None:
    """Each image of a batch of two equals its own run, in float64, and keeps its size."""
    x_BCHW = torch.rand(2, channels, height, width, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    together = network(x_BCHW)
    assert together.shape == x_BCHW.shape
    apart = torch.cat([network(x_BCHW[:1]), network(x_BCHW[1:])])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-10)
