"""Classification as a task: margins, goals, what counts as a success, and what is refused beforehand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doubles import make_target
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp
from torch import Tensor, nn

import udc_ray
from udc_ray.attacks.cw import CarliniWagnerL2
from udc_ray.attacks.objectives import CLASSIFICATION, OBJECTIVES, get_objective
from udc_ray.attacks.threat import l2_norm
from udc_ray.config import Overrides, build_spec
from udc_ray.data.base import Sample
from udc_ray.errors import DataError, SpecError, UserError, WeightsError
from udc_ray.metrics.protocols import get_protocol
from udc_ray.models.base import Descriptor, ModuleRestorer
from udc_ray.models.loading import probe
from udc_ray.models.zoo import describe
from udc_ray.prepare import prepare
from udc_ray.spec import Success
from udc_ray.tasks import TASKS, Reading, Scores, get_task, task_of
from udc_ray.tasks.base import Yardstick

IMAGES = Path(__file__).parent / "data" / "cifar10_test20.npz"
TASK = get_task("classification")
DESCRIPTOR = Descriptor(name="net", parameters=0, task="classification", classes=3)
logits = arrays(np.float32, (4, 5), elements=st.floats(-50, 50, width=32))
classes = arrays(np.int64, 4, elements=st.integers(0, 4))


class Linear(nn.Module):
    """Two classes by the sign of a plane: the distance of an image from it is known."""

    classes = 2

    def __init__(self, count: int) -> None:
        super().__init__()
        self.normal = nn.Parameter(torch.randn(count, generator=torch.Generator().manual_seed(0)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        side_B = (x_BCHW.flatten(1) - 0.5) @ self.normal.to(x_BCHW.dtype)
        return torch.stack([side_B, -side_B], dim=1)


@given(values=logits, labels=classes)
def test_the_margin_tells_what_the_largest_logit_is(values: Any, labels: Any) -> None:
    found = get_objective("margin").score(torch.from_numpy(values), torch.from_numpy(labels))
    assert found.dtype == torch.float64
    for row, label, margin in zip(values.astype(np.float64), labels, found.tolist(), strict=True):
        assert margin == max(np.delete(row, label)) - row[label]
        assert (margin < 0) == (row[label] > max(np.delete(row, label)))


@given(values=logits, labels=classes)
def test_the_cross_entropy_is_scipys_and_its_score_the_margin(values: Any, labels: Any) -> None:
    output, label = torch.from_numpy(values).double(), torch.from_numpy(labels)
    expected = logsumexp(values.astype(np.float64), axis=1) - values[np.arange(4), labels]
    objective = get_objective("cross-entropy")
    assert objective.loss(output, label).tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)
    assert objective.score(output, label).equal(get_objective("margin").score(output, label))


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_losses_have_the_gradient_of_finite_differences(name: str) -> None:
    output = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    label = torch.tensor([0, 5, 2])
    assert torch.autograd.gradcheck(lambda o: CLASSIFICATION[name].loss(o, label), (output,))


@pytest.mark.parametrize(
    "row", [[math.nan, 1.0, 2.0], [0.0, math.nan, -1.0], [math.inf, math.inf, 0.0], [-math.inf, -math.inf, -math.inf]]
)
def test_logits_that_are_no_numbers_are_a_miss(row: list[float]) -> None:
    output, label = torch.tensor([row]), torch.tensor([0])
    assert math.isfinite(float(get_objective("margin").score(output, label)))
    assert (
        float(get_objective("margin").score(output, label))
        >= TASK.goal(get_objective("margin"), [torch.tensor(row)], label[0], get_protocol("strict"), Success()).success
    )
    assert reading(row, 0).score == 0.0


def reading(row: list[float], label: int) -> Reading:
    return TASK.read(torch.tensor(row), torch.tensor(label), Yardstick(protocol=get_protocol("strict")))


def test_a_class_is_found_where_its_logit_is_the_largest_alone() -> None:
    assert reading([0.0, 2.0, 1.0], 1) == Reading(psnr=None, ssim=None, score=1.0)
    assert reading([0.0, 2.0, 1.0], 2).score == 0.0
    assert reading([0.0, 0.0, 0.0], 0).score == 0.0  # a model with equal logits finds nothing


def test_the_goal_is_a_miss_and_the_clean_score_the_mean_over_draws() -> None:
    margin = get_objective("margin")
    draws = [torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])]
    goal = TASK.goal(margin, draws, torch.tensor(0), get_protocol("strict"), Success(psnr_below=1.0))
    assert goal == (pytest.approx(-0.5), 0.0)


@pytest.mark.parametrize(
    ("clean", "attacked", "success"), [(1.0, 0.0, True), (1.0, 1.0, False), (0.0, 0.0, None), (0.0, 1.0, None)]
)
def test_success_needs_an_image_that_was_right_before(clean: float, attacked: float, success: bool | None) -> None:
    before, after = (Reading(psnr=None, ssim=None, score=value) for value in (clean, attacked))
    scores = Scores(None, 0.75, before, after)
    assert TASK.success(scores, True, Success()) is success
    assert TASK.columns(scores, True) == {"score_clean": clean, "score_noise": 0.75, "score_adv": attacked}


def test_every_objective_belongs_to_one_task_and_only_squared_errors_add_up() -> None:
    for name, objective in (OBJECTIVES | CLASSIFICATION).items():
        assert objective.name == name and name in TASKS[objective.task].objectives
        assert task_of(name) is TASKS[objective.task]
        assert objective.additive == name.startswith("mse")
    assert task_of("another version's").name == "restoration"
    assert [TASKS[name].objectives[0] for name in ("restoration", "classification")] == ["mse", "margin"]


def test_without_a_truth_the_class_of_the_mean_logits_stands_for_it() -> None:
    draws = [torch.tensor([0.0, 3.0, 2.0]), torch.tensor([0.0, 0.0, 2.5])]
    assert int(TASK.clean_reference(draws)) == 2


@pytest.mark.parametrize(
    ("truth", "reason"),
    [(None, "has no class"), (torch.zeros(3, 16, 16), "has no class"), (torch.tensor(3), "is of class 3")],
)
def test_images_that_a_classifier_cannot_answer_are_refused(truth: Tensor | None, reason: str) -> None:
    sample = Sample(image_id="a", degraded=torch.zeros(3, 16, 16), truth=truth)
    with pytest.raises(DataError, match=reason):
        TASK.check_sample(sample, DESCRIPTOR)
    TASK.check_sample(replace(sample, truth=torch.tensor(2)), DESCRIPTOR)


@pytest.mark.parametrize(
    ("flags", "sets", "reason"),
    [
        ({"model": "cifar-resnet20"}, ("limit=1", "data.size=32"), "is a classifier"),
        ({"model": "identity", "data": str(IMAGES)}, (), "identity restores images"),
        ({"model": "cifar-resnet20", "data": str(IMAGES), "attacks": ("ssim-pgd",)}, (), "ssim-pgd maximises ssim"),
        ({"model": "cifar-resnet20", "data": str(IMAGES)}, ("objective=ssim",), "maximises ssim"),
        ({"model": "cifar-resnet20", "data": str(IMAGES), "attacks": ("pgd:objective=mse",)}, (), "pgd maximises mse"),
        ({"model": "identity"}, ("objective=margin", "limit=1", "data.size=32"), "margin, which judges classification"),
    ],
)
def test_what_does_not_fit_together_is_refused(flags: dict[str, Any], sets: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        prepare(build_spec(flags=Overrides(**{"attacks": ("pgd",), "defenses": ("none",), **flags}), sets=sets))


def test_the_spec_of_a_classifier_says_what_was_filled_in() -> None:
    flags = Overrides(
        model="cifar-resnet20",
        data=str(IMAGES),
        limit=2,
        attacks=("pgd", "square", "simba:stop=never"),
        defenses=("none",),
    )
    made = prepare(build_spec(flags=flags))
    assert made.setup.plan.task == "classification" and made.setup.spec.objective == "margin"
    assert [e.params.get("stop") for e in made.setup.spec.attacks] == [None, "success", "never"]
    assert made.notes == ()
    again = prepare(made.setup.spec)  # as a resumed run reads it
    assert again.setup.spec == made.setup.spec and again.setup.fingerprint == made.setup.fingerprint
    explicit = replace(flags, attacks=("pgd", "square:stop=never", "simba:stop=never"))
    assert prepare(build_spec(flags=explicit)).setup.fingerprint != made.setup.fingerprint


def test_a_module_with_classes_is_a_classifier_and_its_answer_is_checked() -> None:
    module = Linear(3 * 64 * 64)
    model = ModuleRestorer(module, describe(module, "linear", None))
    assert (model.descriptor.task, model.descriptor.classes) == ("classification", 2)
    probe(model)
    for classes_, reason in ((3, "returns .1, 2. for 1 image of 3 classes"), (None, "tells None classes apart")):
        model.descriptor = replace(model.descriptor, classes=classes_)
        with pytest.raises(WeightsError, match=reason):
            probe(model)
    model.descriptor = replace(model.descriptor, task="restoration")
    with pytest.raises(WeightsError, match="a classifier"):
        probe(model)


def test_cw_finds_the_distance_to_a_plane() -> None:
    module = Linear(3 * 8 * 8)
    model = ModuleRestorer(module, describe(module, "linear", None))
    unit = module.normal.detach() / module.normal.detach().norm()
    wanted = torch.tensor([0.2, -0.4, 0.6])
    x = torch.rand(3, 192, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
    x = (0.5 + x + (wanted - x @ unit)[:, None] * unit).reshape(3, 3, 8, 8)
    label = torch.tensor([0, 1, 0])
    distance = wanted.abs().double()
    attack = CarliniWagnerL2(search_steps=7, iterations=100, initial_const=0.01)
    target, problem = make_target(attack, x, model=model, truth_BCHW=label, objective="cross-entropy")
    result = attack.perturb(target, replace(problem, goal_B=torch.zeros(3, dtype=torch.float64)))
    assert result.stop_reasons == ["success"] * 3 and bool((result.score_B >= 0).all())
    size = l2_norm(result.x_adv_BCHW - x)
    assert bool((size >= distance * (1 - 1e-5)).all()) and size.tolist() == pytest.approx(distance.tolist(), rel=0.02)


def test_the_library_attacks_and_measures_a_classifier() -> None:
    model, images = udc_ray.load("cifar-resnet20"), udc_ray.samples(str(IMAGES), limit=6)
    assert udc_ray.measure(model, images) == 1.0
    attacked = udc_ray.perturb(model, images, "pgd", eps=0.05, steps=5)
    assert udc_ray.measure(model, attacked) == 0.0
    assert (
        max(float((a.degraded - i.degraded).abs().max()) for a, i in zip(attacked, images, strict=True)) <= 0.05 + 1e-6
    )
    queried = udc_ray.perturb(model, images, "square", eps=0.05, budget=100)
    assert udc_ray.measure(model, queried) < 0.5
    with pytest.raises(SpecError, match="ssim-pgd maximises ssim"):
        udc_ray.perturb(model, images, "ssim-pgd")
    with pytest.raises(DataError, match="is a classifier"):
        udc_ray.measure(model, udc_ray.samples(limit=1, size=32))
