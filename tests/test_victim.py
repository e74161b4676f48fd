"""What an attack sees of a random victim: combined outputs, packed draws, gradients of every mode."""

from dataclasses import replace

import pytest
import torch
from purifier_doubles import tiny_denoiser
from torch import Tensor, nn

from udc_ray.attacks.base import GradientTarget
from udc_ray.attacks.objectives import get_objective
from udc_ray.models.base import Descriptor, ModuleRestorer
from udc_ray.purifiers.base import Purifier
from udc_ray.purifiers.chain import run_chain
from udc_ray.purifiers.diffusion import DDIM, DDPM
from udc_ray.purifiers.gradual import Gradual
from udc_ray.purifiers.guided import GDMP
from udc_ray.purifiers.simple import GaussianNoise, Identity, Median
from udc_ray.purifiers.victim import Victim
from udc_ray.tape import Tape

SLOTS = 4
MSE = get_objective("mse")


class Seen(nn.Module):
    """A restorer that remembers the batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.sizes.append(len(x_BCHW))
        return torch.sin(2 * x_BCHW)


def victim(purifier: Purifier, mode: str = "full", seen: Seen | None = None) -> Victim:
    restorer = ModuleRestorer(seen or Seen(), Descriptor(name="sine", parameters=0))
    return Victim(restorer=restorer, purifier=purifier, prepared=tiny_denoiser(), grad_mode=mode)


def images(count: int = SLOTS) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def tape(*ids: str) -> Tape:
    return Tape(seed=0, image_ids=ids, stream="attack")


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("copies", [2, 3])
def test_the_copies_of_a_victim_are_combined_after_the_restorer(combine: str, copies: int) -> None:
    purifier = DDIM(steps=2, copies=copies, combine=combine)  # type: ignore[arg-type]  # drawn
    x, keyed = images(2), tape("a", "b").at(sample=5)
    combined, trace = victim(purifier).evaluate(x, keyed)
    single = purifier.model_copy(update={"copies": 1})
    outputs = torch.stack([victim(single).evaluate(x, keyed.at(sample=5 * copies + c))[0] for c in range(copies)])
    middle = outputs.sort(dim=0).values
    expected = outputs.mean(dim=0) if combine == "mean" else (middle[(copies - 1) // 2] + middle[copies // 2]) / 2
    torch.testing.assert_close(combined, expected, atol=1e-6, rtol=0)
    assert trace.nfe == 2 * copies


def test_the_loss_comes_after_the_combination() -> None:
    """The gradient of the combined output's loss, not the mean of the copies' gradients."""
    x, keyed, many = images(2), tape("a", "b"), victim(DDIM(steps=2, copies=3))
    leaf = x.clone().requires_grad_()
    ours = torch.autograd.grad(MSE.loss(many.differentiable(leaf, keyed), x.flip(-1)).sum(), leaf)[0]
    one = replace(many, purifier=DDIM(steps=2))
    outputs = torch.stack([one.differentiable(leaf, keyed.at(sample=c)) for c in range(3)])
    expected = torch.autograd.grad(MSE.loss(outputs.mean(dim=0), x.flip(-1)).sum(), leaf)[0]
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-4)
    apart = torch.autograd.grad(MSE.loss(one.differentiable(leaf, keyed), x.flip(-1)).sum(), leaf)[0]
    assert (ours - apart).norm() > 1e-2 * ours.norm()


@pytest.mark.parametrize("count, eot", [(1, 8), (3, 4), (4, 3), (2, 1), (3, 3)])
def test_images_and_draws_fill_the_slots_together(count: int, eot: int) -> None:
    seen = Seen()
    x = images()[[b if b < count else 0 for b in range(SLOTS)]]
    ids = tuple("abcd"[b] if b < count else "a" for b in range(SLOTS))
    target = GradientTarget(victim(DDIM(steps=2), seen=seen), MSE, x.flip(-1), tape(*ids), eot=eot, count=count)
    found = target.gradient(x, 3)
    batches = -(-count * eot // SLOTS)
    assert seen.sizes == [SLOTS] * (batches + -(-count // SLOTS)), "the draws of the gradient, and one of the score"
    assert target.grad_evals[:count] == [eot] * count and target.queries[:count] == [1] * count
    assert all(torch.equal(found.gradient_BCHW[b], found.gradient_BCHW[0]) for b in range(count, SLOTS))


@pytest.mark.parametrize("purifier", [DDIM(steps=2), GDMP(steps=2), Gradual(steps=1, copies=2)], ids=lambda p: p.name)
def test_an_image_has_the_same_gradient_alone_and_in_company(purifier: Purifier) -> None:
    """Alone its draws share micro-batches; in company every batch holds other images too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = images()
        alone = GradientTarget(victim(purifier), MSE, x[[0] * 4].flip(-1), tape(*"aaaa"), eot=6, count=1)
        mixed = GradientTarget(victim(purifier), MSE, x[[2, 0, 1, 3]].flip(-1), tape(*"cabd"), eot=6)
        one, many = alone.gradient(x[[0] * 4], 2), mixed.gradient(x[[2, 0, 1, 3]], 2)
        assert torch.equal(one.gradient_BCHW[0], many.gradient_BCHW[1])
        assert one.loss_B[0] == many.loss_B[1] and one.score_B[0] == many.score_B[1]
    finally:
        torch.set_num_threads(before)


def test_eot_is_the_mean_over_draws() -> None:
    x, keyed = images(), tape(*"abcd")
    several = GradientTarget(victim(DDIM(steps=2)), MSE, x.flip(-1), keyed, eot=3).gradient(x, 0).gradient_BCHW
    single = []
    for draw in range(3):
        leaf = x.clone().requires_grad_()
        output = victim(DDIM(steps=2)).differentiable(leaf, keyed.at(sample=draw))
        single.append(torch.autograd.grad(MSE.loss(output, x.flip(-1)).sum(), leaf)[0])
    torch.testing.assert_close(several, torch.stack(single).mean(dim=0), atol=1e-9, rtol=1e-4)


MODES = ["full", "bpda", "surrogate-1", "surrogate-2", "forward-noise"]


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_a_diffusion_purifier(mode: str) -> None:
    """Which value an attack sees, and that each mode has a gradient of its own."""
    purifier, keyed, x = DDPM(sigma=4.0), tape("a"), images(1)
    leaf = x.clone().requires_grad_()
    found = purifier.differentiable(leaf, keyed, tiny_denoiser(), mode)
    gradient = torch.autograd.grad(found.sin().sum(), leaf)[0]
    value, _ = purifier.purify(x, keyed, tiny_denoiser())
    assert torch.equal(found.detach(), value) == (mode in ("full", "bpda"))
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    if mode == "bpda":
        torch.testing.assert_close(gradient, value.cos())
    if mode.startswith("surrogate"):
        segments = purifier.segments(x, keyed, tiny_denoiser(), steps=int(mode[-1]))
        assert len(segments) == int(mode[-1])
        assert torch.equal(found.detach(), run_chain(segments, x))


def test_the_gradient_without_the_guide_is_offered_by_guided_purifiers_only() -> None:
    assert GDMP().offers("full-no-guide") and not DDIM().offers("full-no-guide")
    assert not GDMP().offers("surrogate-k") and not GDMP().offers("surrogate-x") and GDMP().offers("surrogate-4")


@pytest.mark.parametrize("purifier", [Identity(), Median(), GaussianNoise()], ids=lambda p: p.name)
def test_cheap_filters_have_exact_gradients(purifier: Purifier) -> None:
    x = images(1).double().requires_grad_()
    found = purifier.differentiable(x, tape("a"), None, "full")
    assert torch.equal(found.detach(), purifier.purify(x.detach(), tape("a"), None)[0])
    gradient = torch.autograd.grad(found.sin().sum(), x)[0]
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) * 1e-6

    def value(at: Tensor) -> float:
        return float(purifier.purify(at.detach(), tape("a"), None)[0].sin().sum())

    slope = value(x + direction) - value(x - direction)
    assert slope == pytest.approx(2 * float((gradient * direction).sum()), rel=1e-5)
