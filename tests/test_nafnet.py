"""NAFNet: the published network's keys and numbers, any image size, gradients."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from udc_ray.models.nafnet import LayerNorm2d, NAFNet

GOLDEN = Path(__file__).parent / "golden" / "nafnet_sidd_w32.npz"
PUBLISHED_KEYS = "964226f8ef55ed683b5af19dbdb520de5a5960d2511c0e29984776b5989a2547"
"""SHA-256 of the 664 lines ``key 1x2x3``, sorted, of the published SIDD-width32 state dict (2b4af71)."""


def fill(network: nn.Module) -> None:
    """Weights by a fixed rule, keyed by name; the published definition was filled alike."""
    state = network.state_dict()
    for key, value in state.items():
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        z = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(value.shape))
        if value.ndim >= 2:
            w = z / np.sqrt(max(1, np.prod(value.shape[1:])))
        else:
            w = 0.05 * z if key.endswith("bias") else np.abs(1 + 0.05 * z)
        value.copy_(torch.from_numpy(w.astype(np.float32)))


def small(seed: int = 0) -> NAFNet:
    torch.manual_seed(seed)
    network = NAFNet(4, (1, 1), 1, (1, 1)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("beta", "gamma")):
            nn.init.normal_(parameter)  # zero at the start of training, which would hide the blocks
    return network


@torch.no_grad()
def test_the_published_network_is_reproduced() -> None:
    """Output of the published definition under the same weights; atol is 20 times its float32 rounding."""
    network = NAFNet(32, (2, 2, 4, 8), 12, (2, 2, 2, 2)).eval()
    shapes = {key: "x".join(map(str, value.shape)) for key, value in network.state_dict().items()}
    text = "\n".join(f"{key} {shape}" for key, shape in sorted(shapes.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == PUBLISHED_KEYS
    assert sum(p.numel() for p in network.parameters()) == 29_159_715
    fill(network)
    x = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).random((1, 3, 64, 64), dtype=np.float32))
    with np.load(GOLDEN) as golden:
        torch.testing.assert_close(network(x), torch.from_numpy(golden["output"]), rtol=0, atol=7.12e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 8), (13, 6)])
def test_odd_sizes_equal_the_padded_image(height: int, width: int) -> None:
    network = small()
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    by_hand = torch.zeros(2, 3, -(-height // 4) * 4, -(-width // 4) * 4)
    by_hand[..., :height, :width] = x
    with torch.no_grad():
        assert torch.equal(network(x), network(by_hand)[..., :height, :width])


def test_a_new_network_is_not_far_from_the_identity() -> None:
    """Blocks start switched off and the input is added at the end."""
    network = NAFNet(4, (1,), 1, (1,))
    nn.init.zeros_(network.ending.weight)
    assert network.ending.bias is not None
    nn.init.zeros_(network.ending.bias)
    x = torch.rand(1, 3, 6, 6)
    assert torch.equal(network(x), x)


def test_input_gradients_equal_central_differences() -> None:
    network = small().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(1, 3, 5, 6, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((network(x) * weight).sum(), x)
    for _ in range(5):
        direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            step = 1e-5 * direction
            difference = ((network(x + step) - network(x - step)) * weight).sum() / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)


def test_layer_norm_is_over_channels() -> None:
    norm = LayerNorm2d(5)
    x = torch.randn(2, 5, 3, 4) * 7 + 2
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)
