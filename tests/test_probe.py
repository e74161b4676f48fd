"""Position invariance is measured, and a setting where it holds is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from doubles import Blur, Conv, GlobalMean, Scale
from torch import Tensor, nn

from udc_ray.probe import Resolved, output_and_gradient, position_invariant, settle

SHAPE = (3, 12, 16)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def asked(micro_batch: int, threads: int) -> Resolved:
    return Resolved(micro_batch=micro_batch, threads=threads, device_type="cpu", notes=("earlier",))


@pytest.mark.parametrize("slots", [2, 3, 4, 8])
@pytest.mark.parametrize("network", [Conv(), Blur(), GlobalMean(), Scale(0.7)], ids=lambda n: type(n).__name__)
def test_convolutions_are_invariant(network: nn.Module, slots: int) -> None:
    assert position_invariant(network, SHAPE, slots)


class Tilted(nn.Module):
    """Its last slot differs by one unit in the last place, unless the batch is a multiple of `good`."""

    def __init__(self, good: int, *, gradient: bool = False, only_threads: int | None = None) -> None:
        super().__init__()
        self.good, self.gradient, self.only_threads = good, gradient, only_threads
        self.seen: list[tuple[int, int]] = []

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.seen.append((len(x_BCHW), torch.get_num_threads()))
        fine = len(x_BCHW) % self.good == 0
        if fine or self.only_threads not in (None, torch.get_num_threads()):
            return x_BCHW
        gain = torch.ones(len(x_BCHW), 1, 1, 1)
        gain[-1] += 2**-20
        changed = x_BCHW * gain
        return changed + (x_BCHW - changed).detach() if self.gradient else changed


@pytest.mark.parametrize("gradient", [False, True])
def test_a_slot_that_differs_is_seen(gradient: bool) -> None:
    """The second network has equal outputs and only its gradient depends on the place."""
    network = Tilted(4, gradient=gradient)
    if gradient:
        x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(output_and_gradient(network, x)[0], x, atol=1e-7)
    assert not position_invariant(network, SHAPE, 3)
    assert position_invariant(network, SHAPE, 4)


def test_a_companion_that_leaks_is_seen() -> None:
    class Leaky(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return x_BCHW + 1e-3 * x_BCHW.roll(1, dims=0) * torch.arange(len(x_BCHW))[:, None, None, None]

    assert not position_invariant(Leaky(), SHAPE, 2)


def test_gradient_is_of_the_mean_square_per_image() -> None:
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    output, gradient = output_and_gradient(Scale(0.5), x)
    assert torch.equal(output, 0.5 * x)
    assert torch.allclose(gradient, 2 * 0.25 * x / x[0].numel(), rtol=1e-5)


def test_settle_keeps_what_passes() -> None:
    assert settle([Conv(), Blur()], [SHAPE, (3, 16, 12)], asked(3, 1)) == asked(3, 1)


def test_settle_goes_up_to_a_multiple_of_four_first() -> None:
    found = settle([Conv(), Tilted(4)], [SHAPE], asked(7, 2))
    assert (found.micro_batch, found.threads) == (8, 2)
    assert found.notes == ("earlier", "results depended on the place in the batch: micro_batch 8, threads 2")


def test_settle_goes_down_to_one_thread_next() -> None:
    network = Tilted(1000, only_threads=2)
    found = settle([network], [SHAPE], asked(7, 2))
    assert (found.micro_batch, found.threads) == (7, 1)
    assert list(dict.fromkeys(network.seen)) == [(7, 2), (8, 2), (7, 1)]
    assert "micro_batch 7, threads 1" in found.notes[-1]


def test_settle_ends_with_one_image_and_says_so() -> None:
    found = settle([Tilted(1000)], [SHAPE], asked(5, 2))
    assert (found.micro_batch, found.threads) == (1, 1)
    assert "micro_batch 1 is used" in found.notes[-1]


def test_settle_puts_the_threads_back(two_threads: None) -> None:
    settle([Tilted(4)], [SHAPE], asked(3, 1))
    assert torch.get_num_threads() == 2


def test_attention_at_two_threads_and_seven_slots(two_threads: None) -> None:
    """An attention UNet was seen to depend on the place at 2 threads and batches of 5, 6 and 7."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=8,
    ).eval()

    def network(x_BCHW: Tensor) -> Tensor:
        noise: Tensor = unet(x_BCHW, torch.full((len(x_BCHW),), 10)).sample
        return noise

    if position_invariant(network, (3, 8, 8), 7):
        pytest.skip("the kernels of this CPU do not depend on the place here")
    found = settle([network], [(3, 8, 8)], asked(7, 2))
    assert found.micro_batch % 4 == 0 or found.threads == 1
    assert found.notes[-1].endswith(f"micro_batch {found.micro_batch}, threads {found.threads}")
    torch.set_num_threads(1)
    assert position_invariant(network, (3, 8, 8), 7)
