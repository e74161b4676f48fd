"""DAGF: the published keys and numbers, gradients, batches, its norm and its guided filter against closed forms."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from scipy import ndimage
from torch import nn

from udc_ray.errors import DataError
from udc_ray.models.networks.dagf import DAGF, AdaptiveNorm, GuidedFilter, SharedConv
from udc_ray.probe import position_invariant


@cache
def published() -> nn.Module:
    network = filled("dagf", DAGF())
    assert_published_numbers("dagf", network)
    return network


def narrow() -> DAGF:
    torch.manual_seed(0)
    network = DAGF(width=8, guide_width=4)
    for name, parameter in network.named_parameters():
        if name.endswith("w_1"):
            nn.init.constant_(parameter, 0.5)  # nothing at the start of training, which would hide the statistics
    return network.requires_grad_(False)


def test_published_numbers() -> None:
    assert next(published().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


@pytest.mark.parametrize("size", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_input_gradient_equals_central_differences(size: int) -> None:
    """In units in which 1e-6 along a random direction is about 1e-6 in all: a longer step crosses kinks of LeakyReLUs,
    and what it measures is no derivative."""
    x, unit = published_input("dagf", size, size), 2.0**-7
    assert_gradient(lambda scaled: published()(scaled * unit), x / unit)


@pytest.mark.parametrize(("height", "width"), [(20, 12), (32, 16)])
def test_other_sizes_and_batches(height: int, width: int) -> None:
    assert_batches(published(), height, width)


def test_the_smallest_image() -> None:
    """One pixel for the network inside, which has no spread to divide by."""
    out = narrow().double()(published_input("dagf", 4, 4))
    assert out.shape == (1, 3, 4, 4)
    assert out.isfinite().all()


@pytest.mark.parametrize("width", [28, 64])
def test_companions_change_no_bit(width: int) -> None:
    network, x = narrow(), torch.rand(3, 3, 20, width, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(x[[0, 1]])[0], network(x[[0, 2]])[0])


def test_the_place_in_the_batch_changes_no_bit() -> None:
    assert position_invariant(narrow(), (3, 64, 64), 4)


def test_the_norm_mixes_the_features_with_those_of_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    norm, x = AdaptiveNorm(3).double(), 5 * torch.randn(2, 3, 4, 6, dtype=DOUBLE) + 2
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    centred = x - x.mean((2, 3), keepdim=True)
    unit = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-3).sqrt()
    weight, bias = norm.ins_norm.weight[:, None, None], norm.ins_norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), norm.w_0 * x + norm.w_1 * (unit * weight + bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_shared_filter_is_a_correlation_of_each_channel(dtype: torch.dtype) -> None:
    conv = SharedConv(4)
    x = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(conv.to(dtype)(x.to(dtype)), x.to(dtype))  # the identity as made
    nn.init.normal_(conv.weight)
    got, kernel = conv(x.to(dtype)).detach().numpy(), conv.weight.detach().double().numpy()[0, 0]
    for item, channel in np.ndindex(2, 3):
        wanted = ndimage.correlate(x.double().numpy()[item, channel], kernel, mode="constant")
        np.testing.assert_allclose(got[item, channel], wanted, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12)


def test_the_guided_filter_keeps_local_means() -> None:
    """Where the learned slope is 0 the result is the local mean, the count of pixels at the edges included."""
    torch.manual_seed(0)
    guided = GuidedFilter(3, 1).double()
    nn.init.zeros_(guided.conv_a[6].weight)
    low, guide = torch.rand(1, 3, 6, 8, dtype=DOUBLE), torch.rand(1, 3, 6, 8, dtype=DOUBLE)
    inside = ndimage.uniform_filter(np.ones((6, 8)), 3, mode="constant")
    wanted = np.stack([ndimage.uniform_filter(c, 3, mode="constant") / inside for c in low[0].numpy()])
    np.testing.assert_allclose(guided(guide, low, guide).detach().numpy()[0], wanted, rtol=0, atol=1e-12)


def test_second_derivatives_exist() -> None:
    network, x = narrow().double(), published_input("dagf", 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all()
    assert second.abs().max() > 0


@pytest.mark.parametrize(("height", "width"), [(10, 12), (12, 6)])
def test_other_sides_are_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match=f"{height} x {width}"):
        narrow()(torch.zeros(1, 3, height, width))
