"""Features of a network: where they are read, and what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from doubles import Conv, restorer
from torch import Tensor, nn

from udc_ray.errors import SpecError
from udc_ray.features import Layer, features_of, find_layer, look, network_of
from udc_ray.meter import Counted, Meter
from udc_ray.models.base import Descriptor, ModuleRestorer
from udc_ray.models.nafnet import NAFNet


class Hourglass(nn.Module):
    """Two levels down and up; gates that pool to one pixel; a projection before the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 2, 2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.deep = nn.Sequential(nn.Conv2d(8, 10, 2, 2), nn.Tanh())
        self.up = nn.ConvTranspose2d(10, 3, 4, 4)
        self.unused = nn.Conv2d(3, 99, 8, 8)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.down(torch.tanh(self.first(x_BCHW)))
        restored: Tensor = x_BCHW + 0.1 * self.up(self.deep(h * self.gate(h)))
        return restored


def nafnet() -> ModuleRestorer:
    network = NAFNet(4, (1, 1), 2, (1, 1))
    return ModuleRestorer(network, Descriptor(name="tiny", parameters=0), channels_last=True)


def images(count: int, edge: int = 16) -> Tensor:
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(0))


def test_the_bottleneck_of_a_nafnet_is_its_middle() -> None:
    assert find_layer(nafnet()) == Layer(name="middle_blks", width=16)
    assert find_layer(Counted(nafnet(), Meter())) == Layer(name="middle_blks", width=16)


def test_of_another_network_it_is_the_last_of_the_smallest_maps() -> None:
    """Pooled gates, modules that are not called and the image itself are left out; a container ends last."""
    assert find_layer(restorer(Hourglass())) == Layer(name="deep", width=10)


def test_a_network_that_keeps_its_size_gives_its_last_wide_maps() -> None:
    assert find_layer(restorer()) == Layer(name="first", width=6)


def test_a_layer_can_be_named() -> None:
    assert find_layer(restorer(Hourglass()), "down") == Layer(name="down", width=8)
    with pytest.raises(SpecError, match=r"no layer 'dwn'\n.*did you mean down"):
        find_layer(restorer(Hourglass()), "dwn")
    with pytest.raises(SpecError, match="gives maps"):
        find_layer(restorer(Hourglass()), "unused")


def test_a_model_without_layers_or_maps_is_refused() -> None:
    class Hidden:
        descriptor = Descriptor(name="hidden", parameters=0)

        def __call__(self, x_BCHW: Tensor) -> Tensor:
            return x_BCHW

        def to(self, device: str) -> Hidden:
            return self

    with pytest.raises(SpecError, match="shows no layers"):
        network_of(Hidden())
    with pytest.raises(SpecError, match="gives maps"):
        find_layer(restorer(nn.Identity()))


def test_features_are_the_mean_of_the_layer_over_the_image() -> None:
    network, x = Hourglass(), images(3)
    layer = find_layer(restorer(network))
    features, output = look(restorer(network), layer, x.clone().requires_grad_())
    with torch.no_grad():
        h = network.down(torch.tanh(network.first(x)))
        expected = network.deep(h * network.gate(h)).mean(dim=(2, 3))
        assert torch.allclose(features, expected, atol=1e-6)
        assert torch.equal(output, network(x))
    assert not features.requires_grad and not output.requires_grad


def test_nothing_stays_on_the_network() -> None:
    network = Conv()
    look(restorer(network), find_layer(restorer(network)), images(1))
    assert not any(module._forward_hooks for module in network.modules())


def test_images_of_several_sizes_come_back_in_order() -> None:
    model = restorer(Hourglass())
    layer = find_layer(model)
    mixed = [images(1, 16)[0], images(1, 32)[0], images(2, 16)[1], images(3, 16)[2], images(2, 32)[1]]
    found = features_of(model, layer, mixed, slots=2)
    alone = np.stack([look(model, layer, x[None].repeat(2, 1, 1, 1))[0][0].numpy() for x in mixed])
    assert found.shape == (5, 10) and found.dtype == np.float32
    assert np.allclose(found, alone, atol=1e-6)
