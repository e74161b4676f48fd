"""UDC-UNet: the published keys and numbers, gradients, batches, and the code that it carries."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from published_fixture import fixture
from torch import nn

from udc_ray.models.networks.udcunet import UDCUNet


@cache
def network() -> nn.Module:
    made = filled("udcunet", UDCUNet())
    assert_published_numbers("udcunet", made)
    return made


def test_published_numbers() -> None:
    assert next(network().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


@pytest.mark.parametrize("size", [24, pytest.param(64, marks=pytest.mark.slow)])
def test_input_gradient_equals_central_differences(size: int) -> None:
    assert_gradient(network(), published_input("udcunet", size, size))


@pytest.mark.parametrize(("height", "width"), [(40, 24), (8, 16)])
def test_other_sizes_and_batches(height: int, width: int) -> None:
    assert_batches(network(), height, width)


def test_companions_change_no_bit() -> None:
    single, x = network().float(), torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = single(x[[0, 1]]), single(x[[0, 2]])
    network().double()
    assert torch.equal(first[0], second[0])


def test_the_code_is_carried_but_not_stored() -> None:
    """A float32 constant, whatever the precision of the network."""
    made = UDCUNet(width=4, blocks=1, bottom_blocks=1).double()
    assert made.code_1K11.dtype == DOUBLE
    assert torch.equal(made.code_1K11.flatten(), torch.tensor(fixture("udcunet")[0]["psf_code"]).double())
    assert not any("code" in key for key in made.state_dict())


def test_the_output_is_not_negative_and_has_no_upper_end() -> None:
    x = torch.full((1, 3, 16, 16), 500.0, dtype=DOUBLE)
    with torch.no_grad():
        out = network()(x)
    assert out.min() >= 0
    assert out.max() > 500


def test_the_four_plane_variant_has_its_published_parameters() -> None:
    """Ahn et al., UDC-SIT (NeurIPS 2023)."""
    with torch.device("meta"):
        made = UDCUNet(channels=4)
    assert sum(p.numel() for p in made.parameters()) == 14_058_244


def test_other_widths_and_kernels_run() -> None:
    made = UDCUNet(channels=4, width=4, blocks=1, bottom_blocks=1, kernel_size=5)
    assert made(torch.rand(2, 4, 16, 8)).shape == (2, 4, 16, 8)
