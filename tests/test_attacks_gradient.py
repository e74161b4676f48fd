"""Gradient attacks against loops, libraries and closed forms that share no code with them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from doubles import Blur, Constant, Conv, GlobalMean, Jitter, Scale, images, make_problem, make_target, restorer
from pydantic import ValidationError
from torch import Tensor, nn

from udc_ray.attacks.base import GradientAttack
from udc_ray.attacks.cw import CarliniWagnerL2, _Search
from udc_ray.attacks.pgd import FGSM, PGD, SSIMPGD
from udc_ray.attacks.threat import l2_norm, linf_norm
from udc_ray.errors import SpecError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import eagerpy
    import foolbox


def blurred(seed: int = 0, count: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs of low contrast and their truths."""
    truth = Blur()(images(count, 3, 16, 16, seed=seed))
    return Blur()(truth), truth


def psnr(output: Tensor, truth: Tensor) -> Tensor:
    return -10 * (output.clamp(0, 1).double() - truth.double()).square().mean(dim=(1, 2, 3)).log10()


def attacked(attack: GradientAttack, module: nn.Module, x: Tensor, truth: Tensor) -> Tensor:
    target, problem = make_target(attack, x, model=restorer(module), truth_BCHW=truth)
    return attack.perturb(target, problem).x_adv_BCHW


def bare_loop(module: nn.Module, x: Tensor, truth: Tensor, norm: str, eps: float, steps: int) -> Tensor:
    """Projected gradient descent as one would write it without a library."""
    step = 2.5 * eps / steps
    x_adv = x.clone()
    worst, worst_mse = x.clone(), torch.zeros(len(x))
    for n in range(steps + 1):
        x_adv.requires_grad_(True)
        output = module(x_adv)
        mse = ((output.clamp(0, 1) - truth) ** 2).mean(dim=(1, 2, 3)).detach()
        for b in range(len(x)):
            if mse[b] > worst_mse[b]:
                worst[b], worst_mse[b] = x_adv[b].detach(), mse[b]
        if n == steps:
            return worst
        nn.functional.mse_loss(output, truth, reduction="sum").backward()
        gradient = x_adv.grad
        assert gradient is not None
        if norm == "linf":
            moved = x_adv.detach() + step * torch.sign(gradient)
            x_adv = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
        else:
            moved = x_adv.detach() + step * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = (moved - x).renorm(2, 0, eps)
            x_adv = (x + delta).clamp(0, 1)
    raise AssertionError("unreachable")


@pytest.mark.parametrize("module", [Conv(), GlobalMean()], ids=["conv", "global-mean"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.7)])
def test_pgd_equals_a_bare_loop(module: nn.Module, norm: str, eps: float) -> None:
    x, truth = blurred()
    attack = PGD(norm=norm, eps=eps, steps=10, random_start=False)
    found = attacked(attack, module, x, truth)
    wanted = bare_loop(module, x, truth, norm, eps, 10)
    assert (found - wanted).abs().max() <= 1e-6
    assert bool((psnr(module(x), truth) - psnr(module(found), truth) > 1).all())


def test_pgd_agrees_with_foolbox() -> None:
    class LinfMSE(foolbox.attacks.LinfPGD):  # type: ignore[misc]  # foolbox carries no types
        def get_loss_fn(self, model: object, labels: object) -> object:
            def loss(inputs: eagerpy.Tensor) -> eagerpy.Tensor:
                output = module(inputs.raw)
                return eagerpy.astensor(((output - truth) ** 2).mean(dim=(1, 2, 3)).sum())

            return loss

    x, truth = blurred()
    module = Conv().eval().requires_grad_(False)
    foreign = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    theirs = LinfMSE(abs_stepsize=2 / 255, steps=10, random_start=False).run(
        foreign, x, foolbox.criteria.Misclassification(torch.zeros(len(x), dtype=torch.long)), epsilon=8 / 255
    )
    ours = attacked(PGD(steps=10, random_start=False), module, x, truth)
    assert (psnr(module(ours), truth) - psnr(module(theirs), truth)).abs().max() < 0.05
    assert bool((psnr(module(x), truth) - psnr(module(theirs), truth) > 1).all())


def test_the_default_step_and_start() -> None:
    assert PGD().stride == pytest.approx(2 / 255) and PGD(steps=1).length == 1
    assert PGD(step_size="1/255").stride == pytest.approx(1 / 255)
    x, truth = blurred()
    target, problem = make_target(PGD(), x, truth_BCHW=truth)
    start = PGD().begin(problem)
    assert 0.95 * 8 / 255 < linf_norm(start - x).min() <= linf_norm(start - x).max() <= 8 / 255 + 1e-6
    assert PGD(random_start=False).begin(problem) is x
    with pytest.raises(SpecError, match="steps"):
        PGD.build("attack", {"steps": 0})


@pytest.mark.parametrize(("norm", "eps"), [("linf", 4 / 255), ("l2", 0.5)])
def test_fgsm_on_a_linear_model_is_the_optimum_of_the_linearised_loss(norm: str, eps: float) -> None:
    x, truth = blurred()
    found = attacked(FGSM(norm=norm, eps=eps), Scale(0.8), x, truth)
    error = 0.8 * x - truth  # the gradient is along the error
    flat = error.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    step = eps * error.sign() if norm == "linf" else eps * error / flat
    assert torch.allclose(found, (x + step).clamp(0, 1), atol=1e-6)


def test_more_steps_do_more_and_ssim_lowers_ssim_most() -> None:
    x, truth = blurred()
    module = Conv()
    weak, strong = (attacked(PGD(steps=n, random_start=False), module, x, truth) for n in (1, 20))
    assert bool((psnr(module(strong), truth) <= psnr(module(weak), truth)).all())
    target, _ = make_target(SSIMPGD(), x, model=restorer(module), truth_BCHW=truth)
    assert target.objective.name == "ssim"
    by_ssim = attacked(SSIMPGD(steps=20), module, x, truth)
    by_mse = attacked(PGD(steps=20), module, x, truth)
    assert bool((target.score(by_ssim) > target.score(by_mse)).all())
    with pytest.raises(ValidationError):
        SSIMPGD(objective="mse")


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=2), PGD(norm="l2", steps=2), CarliniWagnerL2(search_steps=2, iterations=5)]
)
def test_a_dead_gradient_makes_no_nan(attack: GradientAttack) -> None:
    x, truth = blurred()
    target, problem = make_target(attack, x, model=restorer(Constant()), truth_BCHW=truth)
    result = attack.perturb(target, problem)
    assert bool(result.x_adv_BCHW.isfinite().all()) and bool(result.score_B.isfinite().all())
    assert result.stop_reasons == ["iterations"] * 2


def test_small_steps_survive_eight_bit_storage() -> None:
    x = images(1, 3, 16, 16)
    attack = PGD(norm="l2", eps=1.0, steps=40, depth=8, random_start=False)  # a step moves a value by 0.6 / 255
    target, problem = make_target(attack, x)
    result = attack.perturb(target, problem)
    assert float(result.score_B) > 1.05 * float(problem.clean_score_B)


def test_a_random_victim_is_compared_on_one_select_tape() -> None:
    x, truth = blurred()
    attack = PGD(steps=4, eot=3, select_draws=2)
    target, problem = make_target(attack, x, truth_BCHW=truth, purifier=Jitter())
    result = attack.perturb(target, problem)
    assert result.grad_evals == [12, 12] and result.queries == [10, 10]
    assert target.score(result.x_adv_BCHW).tolist() == pytest.approx(result.score_B.tolist(), rel=1e-6)


@pytest.mark.parametrize("a", [0.8, 1.0])
def test_cw_finds_the_least_perturbation_of_a_linear_model(a: float) -> None:
    """The error a x - y has to grow from e to e g: the least way is along itself, by (g - 1) |e| / a."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(2, 3, 8, 8, generator=generator)  # the box does not bind
    truth = a * x + torch.tensor([0.02, 0.05]).view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    attack = CarliniWagnerL2(iterations=200, rate=0.005)
    target, problem = make_target(attack, x, model=restorer(Scale(a)), truth_BCHW=truth)
    result = attack.perturb(target, problem)
    least = (10 ** (3 / 20) - 1) * l2_norm(a * x - truth) / a
    found = l2_norm(result.x_adv_BCHW - x)
    assert result.stop_reasons == ["success", "success"]
    assert bool((result.score_B >= problem.goal_B).all())
    assert bool((found >= least * (1 - 1e-4)).all()) and bool((found <= least * 1.05).all())


def test_cw_with_confidence_goes_further_and_without_success_keeps_the_strongest() -> None:
    x, truth = blurred()
    sizes = []
    for confidence in (0.0, 2.0):
        attack = CarliniWagnerL2(confidence=confidence, iterations=60)
        target, problem = make_target(attack, x, truth_BCHW=truth)
        result = attack.perturb(target, problem)
        drop = 10 * (result.score_B / problem.clean_score_B).log10()
        assert result.stop_reasons == ["success"] * 2 and bool((drop >= 3 + confidence - 1e-6).all())
        sizes.append(l2_norm(result.x_adv_BCHW - x))
    assert bool((sizes[1] > sizes[0]).all())
    target, problem = make_target(attack, x, truth_BCHW=truth, drop_db=90)
    result = attack.perturb(target, problem)
    assert result.stop_reasons == ["iterations"] * 2
    assert bool((result.score_B > 2 * problem.clean_score_B).all())


def test_cw_leaves_the_stationary_point_of_a_clean_reference() -> None:
    x = torch.full((2, 3, 16, 16), 0.5)  # tanh space starts at 0 exactly, and so does every gradient
    attack = CarliniWagnerL2(search_steps=6, iterations=60)
    target, problem = make_target(attack, x, objective="mse-clean")
    goal_B = torch.full((2,), 10 ** (-3.0), dtype=torch.float64)  # 30 dB from the clean output
    result = attack.perturb(target, replace(problem, goal_B=goal_B))
    assert result.stop_reasons == ["success"] * 2 and bool((result.score_B >= goal_B).all())
    assert bool((l2_norm(result.x_adv_BCHW - x) < 0.1 * math.sqrt(x[0].numel())).all())


def test_cw_rests_uncounted_after_it_aborts() -> None:
    x, truth = blurred(count=3)
    x[2] = truth[2]  # much easier to restore: its descent ends at another time
    counts = {}
    for abort in (True, False):
        attack = CarliniWagnerL2(search_steps=6, iterations=50, abort_early=abort)
        target, problem = make_target(attack, x, truth_BCHW=truth)
        counts[abort] = attack.perturb(target, problem).grad_evals
    assert counts[False] == [300] * 3
    assert len(set(counts[True])) > 1 and max(counts[True]) < 300


def test_cw_searches_its_constant_by_tens_and_then_by_halves() -> None:
    x, _ = blurred()
    attack = CarliniWagnerL2()
    search = _Search.begin(attack, make_problem(attack, x))
    tried = []
    for first, second in [(False, True), (False, True), (True, True), (False, False), (True, False)]:
        tried.append(search.const_B.tolist())
        search.narrow(torch.tensor([first, second]))
    assert [c for c, _ in tried] == pytest.approx([1e-3, 1e-2, 1e-1, 5.5e-2, 7.75e-2])
    assert [c for _, c in tried] == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4, 1.875e-4])


def test_cw_has_no_eps_and_no_other_norm() -> None:
    assert CarliniWagnerL2().eps is None and CarliniWagnerL2().threat.eps is None
    for params in ({"eps": 0.5}, {"norm": "linf"}):
        with pytest.raises(SpecError):
            CarliniWagnerL2.build("attack", params)
