"""NAFNet in its two published configurations; what is common to all sizes is in test_nafnet."""

from __future__ import annotations

import pytest
from published_checks import assert_batches, assert_gradient, assert_published_numbers, filled, published_input

from udc_ray.models.nafnet import NAFNet

SHAPES = {
    "nafnet_sidd_w32": ((2, 2, 4, 8), 12, (2, 2, 2, 2)),
    "nafnet_gopro_w32": ((1, 1, 1, 28), 1, (1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_published_numbers_gradient_and_batches(name: str) -> None:
    encoder, middle, decoder = SHAPES[name]
    network = filled(name, NAFNet(width=32, encoder_blocks=encoder, middle_blocks=middle, decoder_blocks=decoder))
    assert_published_numbers(name, network)
    assert_gradient(network, published_input(name, 16, 16))
    assert_batches(network, 24, 17)  # padded inside
