"""ECFNet: the published keys and numbers, gradients, batches, the four scales, the gates."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from published_checks import DOUBLE, assert_batches, assert_gradient, assert_published_numbers, filled, published_input
from torch import Tensor, nn
from torch.nn import functional as F

from udc_ray.errors import DataError
from udc_ray.models.networks.ecfnet import ECFNet, GatedFuse
from udc_ray.probe import position_invariant


class Result(nn.Module):
    """The network and its full-size image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)[-1]
        return out


@cache
def published() -> Result:
    network = Result(filled("ecfnet", ECFNet()))
    assert_published_numbers("ecfnet", network)
    return network


def narrow(seed: int = 0) -> ECFNet:
    torch.manual_seed(seed)
    return ECFNet(width=16, blocks=1).double().requires_grad_(False)


def test_published_numbers() -> None:
    assert next(published().parameters()).dtype == DOUBLE  # the checks ran, in both precisions


@pytest.mark.parametrize("size", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_input_gradient_equals_central_differences(size: int) -> None:
    assert_gradient(published(), published_input("ecfnet", size, size))


@pytest.mark.parametrize(("height", "width"), [(24, 16), (8, 8)])
def test_other_sizes_and_batches(height: int, width: int) -> None:
    assert_batches(published(), height, width)


@pytest.mark.parametrize("width", [24, 40])
def test_companions_change_no_bit(width: int) -> None:
    network, x = narrow().float(), torch.rand(3, 3, 16, width, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(x[[0, 1]])[-1][0], network(x[[0, 2]])[-1][0])


def test_the_place_in_the_batch_changes_no_bit() -> None:
    assert position_invariant(Result(narrow().float()), (3, 64, 64), 4)


def test_the_four_images_and_what_is_added_to_them() -> None:
    """Without the convolutions that make the images, each is the input, reduced to its scale by the nearest pixel."""
    network, x = narrow(), published_input("ecfnet", 16, 24)
    for conv in (*(out.conv2.main[0] for out in network.ConvsOut), network.feat_extract[7].main[0]):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    images = network(x)
    assert len(images) == 4
    for image, step in zip(images, (8, 4, 2, 1), strict=True):
        assert torch.equal(image, x[..., ::step, ::step])


def test_every_scale_reads_the_image_by_itself() -> None:
    """With the way down cut, a scale sees the image only in what was reduced to its own size.

    A pixel at an odd place is in no reduced image; one at a place divisible by 2, 4 or 8 is in those halvings.
    """
    network = narrow()
    for index in (1, 2, 3):  # biases stay, or the products with the image's features would vanish
        nn.init.zeros_(network.feat_extract[index].main[0].weight)
    levels: dict[int, Tensor] = {}
    for level, stage in enumerate(network.Encoder):
        stage.register_forward_hook(lambda _module, _inputs, out, level=level: levels.update({level: out}))
    x = published_input("ecfnet", 16, 16)
    network(x)
    before = dict(levels)
    for place, reached in ((1, {0}), (2, {0, 1}), (4, {0, 1, 2}), (8, {0, 1, 2, 3})):
        moved = x.clone()
        moved[..., place, place] += 0.1
        network(moved)
        assert {level for level in before if not torch.equal(before[level], levels[level])} == reached


def test_the_gate_gates_twice() -> None:
    torch.manual_seed(0)
    fuse = GatedFuse(3, 2).double()
    x = torch.randn(1, 3, 4, 5, dtype=DOUBLE)
    wide = F.conv2d(F.conv2d(x, fuse.project_in.weight), fuse.dwconv.weight, padding=1, groups=12)
    gate, value = wide[:, :6], wide[:, 6:]
    first = value / (1 + (-gate).exp())
    second = first / (1 + (-value).exp())
    wanted = torch.einsum("oi,bihw->bohw", fuse.project_out.weight[..., 0, 0], torch.cat([first, second], 1))
    torch.testing.assert_close(fuse(x), wanted, rtol=0, atol=1e-12)


def test_the_four_plane_variant_has_its_published_parameters() -> None:
    with torch.device("meta"):
        network = ECFNet(width=32, blocks=8, channels=4)
    assert sum(p.numel() for p in network.parameters()) == 38_723_956


def test_second_derivatives_equal_central_differences() -> None:
    network, x = narrow(), published_input("ecfnet", 8, 8)
    direction = torch.randn(x.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))

    def gradient(at: Tensor, *, graph: bool = False) -> Tensor:
        at = at if graph else at.detach().requires_grad_()
        return torch.autograd.grad(network(at)[-1].square().sum(), at, create_graph=graph)[0]

    start = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad((gradient(start, graph=True) * direction).sum(), start)
    difference = (gradient(x + 1e-5 * direction) - gradient(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(exact, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20)])
def test_other_sides_are_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match=f"{height} x {width}"):
        narrow()(torch.zeros(1, 3, height, width, dtype=DOUBLE))
