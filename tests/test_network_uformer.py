"""Uformer: the published keys and numbers in three sizes, gradients, batches, and what the built size decides."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from published_fixture import fixture
from torch import nn

from udc_ray.errors import DataError, SpecError
from udc_ray.models.networks.uformer import Uformer

OPTIONS: dict[str, dict[str, Any]] = {
    "uformer_t": {"width": 16},
    "uformer_s": {"width": 32},
    "uformer_b": {"width": 32, "depths": (1, 2, 8, 8, 2, 8, 8, 2, 1)},
}


@cache
def tiny() -> nn.Module:
    """The published network T."""
    network = filled("uformer_t", Uformer())
    assert_published_numbers("uformer_t", network)
    return network


def narrow(image_size: int = 128, **options: Any) -> Uformer:
    """Few blocks, and none at full resolution; the bottleneck and one stage on either side can shift."""
    torch.manual_seed(0)
    network = Uformer(width=4, depths=(0, 2, 0, 0, 2, 0, 0, 2, 0), heads=(1,) * 9, image_size=image_size, **options)
    return network.double().eval().requires_grad_(False)


def test_published_numbers_of_t() -> None:
    assert next(tiny().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


def test_published_numbers_of_b() -> None:
    assert_published_numbers("uformer_b", filled("uformer_b", Uformer(**OPTIONS["uformer_b"])))


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_input_gradient_equals_central_differences(count: int) -> None:
    assert_gradient(tiny(), published_input("uformer_t", 128, 128), count)


@pytest.mark.parametrize("image_size", [128, 256])
def test_input_gradient_of_a_narrow_network_equals_central_differences(image_size: int) -> None:
    assert_gradient(narrow(image_size), published_input("uformer_t", 128, 128))


def test_s_has_the_keys_of_t_and_the_widths_of_b() -> None:
    """No file of it is public, only its number of parameters."""
    with torch.device("meta"):
        network = Uformer(**OPTIONS["uformer_s"])
    assert sum(p.numel() for p in network.parameters()) == 20_751_197
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert list(shapes) == list(fixture("uformer_t")[0]["keys"])
    wide = fixture("uformer_b")[0]["keys"]
    assert shapes == {key: wide[re.sub(r"blocks\.\d", "blocks.0", key)] for key in shapes}


def test_the_four_plane_variant_has_its_published_parameters() -> None:
    """Ahn et al., UDC-SIT (NeurIPS 2023), call T what is half as wide and takes four planes."""
    with torch.device("meta"):
        network = Uformer(width=8, channels=4)
    assert sum(p.numel() for p in network.parameters()) == 1_385_502


def test_other_sizes_and_batches() -> None:
    assert_batches(narrow(), 256, 256)
    assert_batches(narrow(channels=4), 128, 256, channels=4)


def test_the_built_size_decides_whether_the_bottleneck_shifts() -> None:
    """At 128 it is a single window; built for more, the same weights give another result at 256, as published."""
    here, there = narrow(128), narrow(256)
    there.load_state_dict(here.state_dict())
    x_BCHW = torch.rand(1, 3, 256, 256, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert (here(x_BCHW) - there(x_BCHW)).abs().max() > 1e-6


def test_second_derivatives_exist() -> None:
    x_BCHW = published_input("uformer_t", 128, 128).requires_grad_()
    (gradient,) = torch.autograd.grad(narrow()(x_BCHW).square().sum(), x_BCHW, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x_BCHW)
    assert second.isfinite().all()
    assert second.abs().max() > 0


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(SpecError, match="192 pixels"):
        Uformer(image_size=192)
    with pytest.raises(DataError, match="128 x 120"):
        narrow()(torch.zeros(1, 3, 128, 120, dtype=DOUBLE))
