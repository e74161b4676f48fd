"""What every published network promises as a restorer: companions change no bit, and padding is nobody's to perturb."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from published_fixture import fill, fixture
from torch import Tensor

from udc_ray.data.base import Sample
from udc_ray.library import perturb
from udc_ray.models import build
from udc_ray.models.adapter import PublishedRestorer
from udc_ray.models.base import Descriptor
from udc_ray.models.published import PUBLISHED

EDGE = 24
SLOTS = 4


def restorer(name: str) -> PublishedRestorer:
    network = build(name)
    fill(network, fixture(name if name != "uformer_s" else "uformer_t")[0])
    parameters = sum(p.numel() for p in network.parameters())
    return PublishedRestorer(network, PUBLISHED[name], Descriptor(name=name, parameters=parameters))


def images(seed: int, batch: int = SLOTS, height: int = EDGE, width: int = EDGE) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def answer(model: PublishedRestorer, x_BCHW: Tensor, slot: int) -> tuple[Tensor, Tensor]:
    """Output and gradient of one slot."""
    x_BCHW = x_BCHW.clone().requires_grad_()
    output = model(x_BCHW)
    (gradient,) = torch.autograd.grad(output.square().sum(), x_BCHW)
    return output.detach()[slot], gradient[slot]


LARGE = ("uformer_s", "uformer_b")
"""Of the same code as the small one, and a quarter of a minute each."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in PUBLISHED])
def test_companions_change_no_bit(name: str) -> None:
    model, x = restorer(name), images(0)
    others = images(1)
    others[2] = x[2]
    for mine, same in zip(answer(model, x, 2), answer(model, others, 2), strict=True):
        assert torch.equal(mine, same)
        assert bool(torch.isfinite(mine).all()) and float(mine.abs().sum()) > 0


def fed(model: PublishedRestorer, x_BCHW: Tensor) -> Tensor:
    """What goes into the network itself."""
    seen: list[Tensor] = []
    with model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])), torch.no_grad():
        model(x_BCHW)
    return seen[0]


@pytest.mark.parametrize(("name", "height", "width"), [("srudc_l", 29, 33), ("swinir_color_dn", 13, 17)])
def test_padding_follows_the_attacked_image(name: str, height: int, width: int) -> None:
    model = restorer(name)
    attacked = attack(model, images(3, 1, height, width))
    inside = fed(model, attacked)
    mode: Any = "reflect" if name.startswith("srudc") else "symmetric"
    mapped = PUBLISHED[name].range == "signed"
    expected = (attacked - 0.5) * 2 if mapped else attacked
    around = [(0, 0), (0, 0), (0, -height % 8), (0, -width % 8)]
    np.testing.assert_array_equal(inside.numpy(), np.pad(expected.numpy(), around, mode=mode))


def test_a_square_of_zeros_stays_one_under_attack() -> None:
    model = restorer("uformer_t")
    attacked = attack(model, images(3, 1, 40, 52))
    inside = fed(model, attacked)
    assert inside.shape[-2:] == (128, 128)
    assert torch.equal(inside[..., 44:84, 38:90], attacked)
    inside[..., 44:84, 38:90] = 0
    assert not bool(inside.any())


def attack(model: PublishedRestorer, x_BCHW: Tensor) -> Tensor:
    """One step of FGSM, by the library."""
    sample = Sample(image_id="a", degraded=x_BCHW[0], truth=x_BCHW[0])
    attacked = perturb(model, [sample], "fgsm", eps="8/255")[0].degraded[None]
    assert attacked.shape == x_BCHW.shape and not torch.equal(attacked, x_BCHW)
    return attacked
