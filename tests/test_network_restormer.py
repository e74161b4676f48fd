"""Restormer: the published keys and numbers, gradients, batches, its two forms of layer norm."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from torch import nn

from udc_ray.errors import DataError
from udc_ray.models.networks.restormer import Restormer

NAME = "restormer_denoise"


@cache
def published() -> nn.Module:
    network = filled(NAME, Restormer())
    assert_published_numbers(NAME, network)
    return network


def test_published_numbers() -> None:
    assert next(published().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


def test_input_gradient_equals_central_differences() -> None:
    assert_gradient(published(), published_input(NAME, 16, 16))


def test_other_sizes_and_batches() -> None:
    assert_batches(published(), 24, 16)


def test_the_form_with_bias_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = Restormer(norm_bias=True)
    assert sum(p.numel() for p in network.parameters()) == 26_126_644
    assert "latent.7.norm2.body.bias" in network.state_dict()


def test_layer_norms_over_channels() -> None:
    x_BCHW = 7 * torch.randn(2, 8, 3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) + 2
    deviation = (x_BCHW.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    for norm_bias, centre in ((True, x_BCHW.mean(1, keepdim=True)), (False, 0.0)):
        network = Restormer(width=8, blocks=(1, 0, 0, 0), refinement_blocks=0, norm_bias=norm_bias).double()
        norm = network.encoder_level1[0].norm1
        torch.testing.assert_close(norm(x_BCHW), (x_BCHW - centre) / deviation)


def test_second_derivatives_exist() -> None:
    torch.manual_seed(0)
    network = Restormer(width=8, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 2, 2, 2)).double()
    x_BCHW = published_input(NAME, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x_BCHW).square().sum(), x_BCHW, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x_BCHW)
    assert second.isfinite().all()
    assert second.abs().max() > 0


def test_sides_that_do_not_fit_are_refused() -> None:
    network = Restormer(width=8, blocks=(0, 0, 0, 0), refinement_blocks=0)
    with pytest.raises(DataError, match="16 x 12"):
        network(torch.zeros(1, 3, 16, 12))
