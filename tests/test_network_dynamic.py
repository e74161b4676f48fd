"""Dynamic convolution: SciPy's correlation, an unfolded reference, exact derivatives, and no tensor of kernel size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from udc_ray.models.networks.dynamic import dynamic_filter, repeat_edge

DOUBLE = torch.float64


def inputs(
    size: int, shape: tuple[int, int, int, int], features: int = 3, slope: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Random image, features, weight, bias and slope, float64, all wanting gradients."""
    generator = torch.Generator().manual_seed(size)
    batch, channels, height, width = shape
    taps = channels * size**2
    shapes = [shape, (batch, features, height, width), (taps, features, 1, 1), (taps,)]
    x, f, w, b = (torch.randn(s, dtype=DOUBLE, generator=generator, requires_grad=True) for s in shapes)
    return x, f, w, b, torch.tensor([0.25], dtype=DOUBLE, requires_grad=True) if slope else None


def unfolded(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None = None) -> Tensor:
    """The textbook form: all neighbourhoods times all kernels."""
    kernel = F.conv2d(features, weight, bias)
    kernel = kernel if slope is None else F.prelu(kernel, slope)
    batch, channels, height, width = x.shape
    size = round((len(bias) / channels) ** 0.5)
    patches = F.unfold(F.pad(x, (size // 2,) * 4, mode="replicate"), size)
    shape = (batch, channels, size**2, height, width)
    return (patches.view(shape) * kernel.view(shape)).sum(2)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_one_kernel_for_all_pixels_is_a_correlation(size: int) -> None:
    """Without weights the kernels are the bias: tap order, orientation and edges against SciPy."""
    x, features, weight, bias, _ = inputs(size, (2, 2, 7, 9))
    got = dynamic_filter(x, features, torch.zeros_like(weight), bias).detach().numpy()
    kernels = bias.detach().numpy().reshape(2, size, size)
    for item, channel in np.ndindex(2, 2):
        wanted = ndimage.correlate(x.detach().numpy()[item, channel], kernels[channel], mode="nearest")
        np.testing.assert_allclose(got[item, channel], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 2, 1, 4), (1, 1, 2, 1), (1, 2, 1, 1)])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("slope", [True, False])
def test_values_and_gradients_of_the_unfolded_form(shape: tuple[int, int, int, int], size: int, slope: bool) -> None:
    arguments = inputs(size, shape, slope=slope)
    wanted, got = unfolded(*arguments), dynamic_filter(*arguments)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    leaves = [a for a in arguments if a is not None]
    weight = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((wanted * weight).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((got * weight).sum(), leaves), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("size", "shape", "slope"), [(3, (1, 2, 2, 3), True), (3, (2, 1, 3, 1), False), (5, (1, 1, 2, 2), True)]
)
def test_first_and_second_derivatives(size: int, shape: tuple[int, int, int, int], slope: bool) -> None:
    arguments = inputs(size, shape, features=2, slope=slope)
    assert torch.autograd.gradcheck(dynamic_filter, arguments)
    assert torch.autograd.gradgradcheck(dynamic_filter, arguments, fast_mode=True)


def test_a_gradient_to_be_differentiated_again_has_the_same_bits() -> None:
    x, features, weight, bias, slope = inputs(5, (2, 3, 6, 5))
    loss = dynamic_filter(x, features, weight, bias, slope).square().sum()
    leaves = (x, features, weight, bias)
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    recorded = torch.autograd.grad(loss, leaves, create_graph=True)
    assert all(r.requires_grad for r in recorded)
    assert all(torch.equal(p, r) for p, r in zip(plain, recorded, strict=True))


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_what_is_asked_for_gets_a_gradient(wanted: int) -> None:
    """An attack freezes the weights; its gradient is the same as with everything asked for."""
    arguments = [a for a in inputs(3, (1, 2, 4, 5)) if a is not None]
    full = torch.autograd.grad(dynamic_filter(*arguments).square().sum(), arguments)[wanted]
    frozen = [a.detach().requires_grad_(number == wanted) for number, a in enumerate(arguments)]
    dynamic_filter(*frozen).square().sum().backward()
    assert torch.equal(frozen[wanted].grad, full)
    assert [a.grad is not None for a in frozen] == [number == wanted for number in range(5)]


class Sizes(TorchDispatchMode):
    """Notes how many numbers the largest result holds, and how many operations ran."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.calls = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's signature
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, Tensor) else []:
            self.largest, self.calls = max(self.largest, tensor.numel()), self.calls + 1
        return result


@pytest.mark.parametrize("form", [dynamic_filter, unfolded])
def test_no_tensor_grows_with_the_kernel(form) -> None:  # type: ignore[no-untyped-def]  # one of two functions
    """Forward, kept for the backward pass, and backward; the unfolded form shows that the measure can fail."""
    x, features, *head = inputs(5, (1, 4, 40, 40), features=4)
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with Sizes() as forward, hooks:
        loss = form(x, features, *[h.detach() for h in head]).sum()
    with Sizes() as backward:
        torch.autograd.grad(loss, (x, features))
    assert min(forward.calls, backward.calls) > 5
    padded = 4 * 44 * 44
    small = max(forward.largest, backward.largest) <= padded and sum(kept) <= 3 * padded
    assert small == (form is dynamic_filter)


@pytest.mark.parametrize("margins", [(1, 2, 0, 3), (0, 0, 0, 0), (2, 2, 2, 2)])
def test_repeated_edges_and_their_gradient(margins: tuple[int, int, int, int]) -> None:
    x = torch.rand(2, 3, 4, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted, got = F.pad(x, margins, mode="replicate"), repeat_edge(x, *margins)
    assert torch.equal(got, wanted)
    weight = torch.rand(got.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((y * weight).sum(), x) for y in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
