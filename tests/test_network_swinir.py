"""SwinIR: the published keys and numbers, gradients, batches, padding, and what the built size decides."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from torch import Tensor, nn

from udc_ray.errors import DataError, SpecError
from udc_ray.models.networks.swinir import SwinIR

NAME = "swinir_color_dn"


@cache
def published() -> nn.Module:
    network = filled(NAME, SwinIR())
    assert_published_numbers(NAME, network)
    return network


def small(image_size: int = 16, window: int = 8) -> SwinIR:
    torch.manual_seed(0)
    network = SwinIR(width=12, depths=(2, 3), heads=(2, 3), image_size=image_size, window=window)
    return network.double().eval().requires_grad_(False)


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def test_published_numbers() -> None:
    assert next(published().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


def test_input_gradient_equals_central_differences() -> None:
    assert_gradient(published(), published_input(NAME, 16, 8))


def test_other_sizes_and_batches() -> None:
    assert_batches(published(), 16, 24)
    assert_batches(small(), 21, 13)


def test_other_sides_are_mirrored_without_the_edge_pixel() -> None:
    x_BCHW = image(13, 21)
    by_hand = torch.from_numpy(np.pad(x_BCHW.numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), mode="reflect"))
    network = small()
    assert torch.equal(network(x_BCHW), network(by_hand)[..., :13, :21])


def test_the_built_size_changes_the_masks_and_not_the_output() -> None:
    here, there = small(16), small(48)
    state = there.state_dict()
    assert {key for key, value in here.state_dict().items() if value.shape != state[key].shape} == {
        "layers.0.residual_group.blocks.1.attn_mask",
        "layers.1.residual_group.blocks.1.attn_mask",
    }
    assert torch.equal(here(image(16, 16)), there(image(16, 16)))
    assert not any(key.endswith("attn_mask") for key in small(8).state_dict())


def test_the_mean_colour_is_a_fixed_point_of_the_bare_residual() -> None:
    """Without the last convolution the input comes back, the mean taken off and put on again."""
    network = small()
    network.conv_last.weight.zero_()
    assert network.conv_last.bias is not None
    network.conv_last.bias.zero_()
    torch.testing.assert_close(network(image(8, 8)), image(8, 8), rtol=0, atol=1e-15)


def test_second_derivatives_exist() -> None:
    x_BCHW = image(13, 9).requires_grad_()
    (gradient,) = torch.autograd.grad(small()(x_BCHW).square().sum(), x_BCHW, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x_BCHW)
    assert second.isfinite().all()
    assert second.abs().max() > 0


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(SpecError, match="100 pixels"):
        SwinIR(image_size=100)
    with pytest.raises(DataError, match="4 x 16"):
        small()(image(4, 16))
