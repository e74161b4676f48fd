"""The library: five lines, and that each of them does what it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, cast

import pytest
import torch
from doubles import restorer
from torch import Tensor

import udc_ray
from udc_ray import library
from udc_ray.attacks.base import AttackResult, GradientAttack, GradientTarget, Problem
from udc_ray.attacks.machine import QueryMachine
from udc_ray.attacks.query import Ask, QueryAttack, QueryProblem
from udc_ray.attacks.registry import ATTACKS
from udc_ray.attacks.threat import l2_norm
from udc_ray.data.base import Sample
from udc_ray.errors import DataError, SpecError


@pytest.fixture(scope="module")
def photos() -> list[Sample]:
    return udc_ray.samples(size=48, limit=3)


def test_the_documented_lines_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines of the package's documentation, on smaller images."""
    text = str(udc_ray.__doc__)
    lines = text[text.index("import udc_ray") :].strip()
    assert len(lines.splitlines()) == 6
    full = cast(Callable[..., list[Sample]], library.samples)

    def small(**params: Any) -> list[Sample]:
        return full(**{**params, "size": 48, "limit": 2})

    monkeypatch.setattr(library, "samples", small)
    exec(compile(lines, "the documentation", "exec"), {})
    clean, attacked, cleaned = map(float, capsys.readouterr().out.split())
    assert clean > 15 and attacked < clean - 3 and cleaned > attacked


def test_import_loads_neither_torch_nor_ray() -> None:
    code = "import sys, udc_ray; print([m for m in ('torch', 'ray', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'perturbe'"):
        udc_ray.perturbe  # noqa: B018  # looking it up is what is tested


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "square", "simba", "noise"])
def test_attacks_obey_their_size_and_harm(photos: list[Sample], attack: str) -> None:
    model, params = restorer(), {"budget": 20} if attack in {"square", "simba"} else {}
    attacked = udc_ray.perturb(model, photos, attack, eps="4/255", **params)
    assert [s.image_id for s in attacked] == [s.image_id for s in photos]
    for before, after in zip(photos, attacked, strict=True):
        assert after.truth is before.truth
        assert 0 < float((after.degraded - before.degraded).abs().max()) <= 4 / 255 + 1e-6
    assert udc_ray.measure(model, attacked) < udc_ray.measure(model, photos)


def test_images_are_independent_of_their_companions(photos: list[Sample]) -> None:
    model = restorer()
    for attack in ("pgd", "square"):
        params = {"budget": 8} if attack == "square" else {"steps": 2}
        together = udc_ray.perturb(model, photos, attack, **params)
        alone = udc_ray.perturb(model, photos[2:], attack, **params)
        assert torch.equal(together[2].degraded, alone[0].degraded)


class Drawn(GradientAttack):
    """One random step a restart; remembers what every restart found."""

    name: ClassVar[str] = "drawn"
    found: ClassVar[list[AttackResult]] = []

    def perturb(self, target: GradientTarget, problem: Problem) -> AttackResult:
        rows = [torch.from_numpy(g.random(problem.x_BCHW.shape[1:])).float() for g in problem.tape.generators("drawn")]
        sign = torch.stack(rows) * 2 - 1
        x_adv = self.threat.project(problem.x_BCHW + (self.eps or 0) * sign, problem.x_BCHW)
        blank = [0] * len(x_adv)
        result = AttackResult(
            x_adv_BCHW=x_adv, score_B=target.score(x_adv), queries=blank, grad_evals=blank, stop_reasons=[]
        )
        self.found.append(result)
        return result


def test_the_best_of_all_restarts_is_kept(photos: list[Sample]) -> None:
    ATTACKS.register("drawn-for-a-test", f"{__name__}:Drawn")
    try:
        Drawn.found.clear()
        attacked = udc_ray.perturb(restorer(), photos, "drawn-for-a-test", restarts=8)
    finally:
        del ATTACKS._targets["drawn-for-a-test"]
    scores = torch.stack([result.score_B for result in Drawn.found])[:, : len(photos)]
    assert len(scores) == 8 and len(set(scores.argmax(dim=0).tolist())) > 1, "one restart is best everywhere"
    for b, best in enumerate(scores.argmax(dim=0).tolist()):
        assert torch.equal(attacked[b].degraded, Drawn.found[best].x_adv_BCHW[b])


class Tried(QueryAttack):
    """Three random images a restart."""

    name: ClassVar[str] = "tried"
    budget: int = 3
    asked: ClassVar[dict[tuple[str, int], list[Tensor]]] = {}

    def start(self, problem: QueryProblem) -> QueryMachine:
        return TriedMachine(self, problem)


class TriedMachine(QueryMachine):
    def propose(self) -> Ask:
        noise = torch.from_numpy(self.generator(self.asked).random(self.x_CHW.shape)).float() * 2 - 1
        candidate = self.project(self.x_CHW + 4 / 255 * noise.sign())
        Tried.asked.setdefault((self.tape.image_ids[0], self.tape.restart), []).append(candidate)
        return Ask(x_KCHW=candidate[None])


def test_the_best_of_all_queries_of_all_restarts_is_kept(photos: list[Sample]) -> None:
    ATTACKS.register("tried-for-a-test", f"{__name__}:Tried")
    try:
        Tried.asked.clear()
        attacked = udc_ray.perturb(restorer(), photos, "tried-for-a-test", restarts=3)
    finally:
        del ATTACKS._targets["tried-for-a-test"]
    assert [len(asked) for asked in Tried.asked.values()] == [3] * 3 * len(photos)
    winners = set()
    for before, after in zip(photos, attacked, strict=True):
        tries = {(r, n): x for r in range(3) for n, x in enumerate(Tried.asked[before.image_id, r])}
        damage = {key: -udc_ray.measure(restorer(), [replace(before, degraded=x)]) for key, x in tries.items()}
        best = max(damage, key=lambda key: damage[key])
        assert torch.equal(after.degraded, tries[best])
        winners.add(best)
    assert len(winners) > 1, "one query is best everywhere"


def test_minimum_norm_attack_reaches_three_decibels(photos: list[Sample]) -> None:
    model, settings = restorer(), {"search_steps": 3, "iterations": 20, "rate": 0.05, "initial_const": 0.1}
    attacked = udc_ray.perturb(model, photos, "cw", **settings)
    for before, after in zip(photos, attacked, strict=True):
        assert udc_ray.measure(model, [before]) - udc_ray.measure(model, [after]) >= 3 - 1e-4
        assert float(l2_norm((after.degraded - before.degraded)[None])) < 10


def test_clean_objective_needs_no_better_reference(photos: list[Sample]) -> None:
    """Against its own clean output: the attacked output moves away from it."""
    model = restorer()
    attacked = udc_ray.perturb(model, photos, "pgd", objective="mse-clean", steps=3)
    with torch.no_grad():
        own = [replace(s, truth=model(s.degraded[None])[0].clamp(0, 1)) for s in photos]
    moved = [replace(a, truth=o.truth) for a, o in zip(attacked, own, strict=True)]
    assert udc_ray.measure(model, own) == 100 and udc_ray.measure(model, moved) < 40


def test_purify_is_keyed_by_image_and_seed(photos: list[Sample]) -> None:
    first = udc_ray.purify(photos, "gaussian-noise", sigma=10)
    alone = udc_ray.purify(photos[1:2], "gaussian-noise", sigma=10)
    assert torch.equal(first[1].degraded, alone[0].degraded)
    assert not torch.equal(udc_ray.purify(photos, "gaussian-noise", sigma=10, seed=1)[1].degraded, first[1].degraded)


def test_measure_is_the_mean_psnr(photos: list[Sample]) -> None:
    mse = [float((s.degraded - cast(Tensor, s.truth)).double().square().mean()) for s in photos]
    expected = sum(-10 * torch.tensor(m).log10().item() for m in mse) / len(mse)
    assert udc_ray.measure(udc_ray.load("identity"), photos) == pytest.approx(expected, abs=1e-4)


def test_bad_input_is_a_user_error(photos: list[Sample]) -> None:
    blind = [replace(photos[0], truth=None)]
    with pytest.raises(DataError, match="has no truth"):
        udc_ray.measure(restorer(), blind)
    with pytest.raises(DataError, match="has no truth"):
        udc_ray.perturb(restorer(), blind)
    with pytest.raises(DataError, match="no images"):
        udc_ray.measure(restorer(), [])
    with pytest.raises(SpecError, match="did you mean"):
        udc_ray.perturb(restorer(), photos, "pgdd")
