"""One contract for every attack of the registry, at every norm that it knows and at the storage depths."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from attack_cases import (
    CASES,
    CHANGES_NOTHING,
    DRAWS_NOTHING,
    QUICK,
    SHAPE,
    TOLERANCE,
    assert_inside,
    build,
    contract,
    gradient_attacks,
    query_attacks,
    size_of,
    target_of,
)
from doubles import (
    Counting,
    Jitter,
    image_tape,
    images,
    make_target,
    query_problem,
    restorer,
    run_machine,
    score_against,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.attacks.base import Attack, GradientAttack
from udc_ray.attacks.noise import Noise
from udc_ray.attacks.query import QueryAttack
from udc_ray.attacks.threat import Depth, Norm
from udc_ray.tape import Tape


@dataclass(frozen=True)
class Outcome:
    """What an attack did to a micro-batch, whatever its kind."""

    x_adv: Tensor
    scores: list[float]
    queries: list[int]
    grad_evals: list[int]


def attacked(attack: Attack, x: Tensor, ids: tuple[str, ...], *, model: Any = None, **options: Any) -> Outcome:
    """Run an attack of any kind; query attacks are scored at a fixed batch of one."""
    model = restorer() if model is None else model
    restart, seed = options.get("restart", 0), options.get("seed", 7)
    if isinstance(attack, GradientAttack):
        target, problem = make_target(attack, x, model=model, image_ids=ids, **options)
        result = attack.perturb(target, problem)
        return Outcome(result.x_adv_BCHW, result.score_B.tolist(), result.queries, result.grad_evals)
    if isinstance(attack, QueryAttack):
        judges, goals = zip(*(target_of(image, model) for image in x), strict=True)
        tapes = [image_tape(i, seed=seed, restart=restart) for i in ids]
        problems = [query_problem(i, tape, goal=goal) for i, tape, goal in zip(x, tapes, goals, strict=True)]
        machines = [attack.machine(problem) for problem in problems]
        queries = [run_machine(m, judge) for m, judge in zip(machines, judges, strict=True)]
        best = [m.best() for m in machines]
        return Outcome(torch.stack([b for b, _ in best]), [s for _, s in best], queries, [0] * len(x))
    assert isinstance(attack, Noise)
    tape = Tape(seed=seed, image_ids=ids, stream="attack", restart=restart)
    return Outcome(attack.perturb(x, tape), [], [0] * len(x), [0] * len(x))


@contract
@settings(max_examples=4)
@given(data=st.data())
def test_norm_box_and_depth_are_obeyed(name: str, norm: Norm, depth: Depth, data: st.DataObject) -> None:
    has_radius = build(name, norm, depth).eps is not None
    eps = data.draw(st.floats(0.002, 1.0) if norm == "linf" else st.floats(0.01, 30.0), label="eps")
    seed = data.draw(st.integers(0, 2**32), label="seed")
    attack = build(name, norm, depth, **({"eps": eps} if has_radius else {}))
    x = images(2, *SHAPE, seed=seed)
    result = attacked(attack, x, ("a", "b"), seed=seed)
    assert attack.eps == (eps if has_radius else None)
    assert_inside(attack, result.x_adv, x)


@contract
def test_it_does_something_and_depends_on_seed_and_restart_alone(name: str, norm: Norm, depth: Depth) -> None:
    attack, x = build(name, norm, depth), images(1, *SHAPE)
    first, again = attacked(attack, x, ("a",)), attacked(attack, x, ("a",))
    assert first.x_adv.equal(again.x_adv) and first.scores == again.scores
    assert first.x_adv.equal(x) == (name in CHANGES_NOTHING)
    if name not in DRAWS_NOTHING:
        assert not first.x_adv.equal(attacked(attack, x, ("a",), seed=8).x_adv)
        assert not first.x_adv.equal(attacked(attack, x, ("a",), restart=1).x_adv)
        assert not first.x_adv.equal(attacked(attack, x, ("c",)).x_adv)


@pytest.mark.parametrize(("name", "norm", "depth"), [case for case in CASES if case[0] not in query_attacks])
def test_companions_and_places_change_no_bit(name: str, norm: Norm, depth: Depth) -> None:
    attack, x = build(name, norm, depth), images(6, *SHAPE)
    first = attacked(attack, x[:4], ("a", "b", "c", "d"))
    other = attacked(attack, x[[4, 1, 5, 0]], ("e", "b", "f", "a"))
    assert first.x_adv[0].equal(other.x_adv[3]) and first.x_adv[1].equal(other.x_adv[1])
    assert (first.queries[:2], first.grad_evals[:2]) == (
        [other.queries[3], other.queries[1]],
        [other.grad_evals[3], other.grad_evals[1]],
    )
    if first.scores:
        assert first.scores[:2] == [other.scores[3], other.scores[1]]


@contract
def test_it_pickles_and_its_identity_rebuilds_it(name: str, norm: Norm, depth: Depth) -> None:
    attack = build(name, norm, depth)
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert attack.name == name and attack.identity().startswith(name + "{")
    values = json.loads(attack.identity().removeprefix(name))
    rebuilt = type(attack)(**values, **{f: getattr(attack, f) for f in attack.not_identity})
    assert rebuilt == attack and rebuilt.identity() == attack.identity()


@contract
def test_the_score_is_that_of_the_image_it_returns(name: str, norm: Norm, depth: Depth) -> None:
    attack, x = build(name, norm, depth), images(2, *SHAPE)
    result = attacked(attack, x, ("a", "b"))
    if isinstance(attack, GradientAttack):
        target, problem = make_target(attack, x, image_ids=("a", "b"))
        assert target.score(result.x_adv).tolist() == pytest.approx(result.scores, rel=1e-6)
        assert all(s >= c for s, c in zip(result.scores, problem.clean_score_B.tolist(), strict=True))
    elif attack.minimum_norm:  # the value is the distance of a success
        again = [score_against(restorer(), i)(c[None])[0] for i, c in zip(x, result.x_adv, strict=True)]
        assert all(score >= target_of(i)[1] for score, i in zip(again, x, strict=True))
        sizes = size_of(result.x_adv - x, norm).tolist()
        assert all(size <= s + TOLERANCE for size, s in zip(sizes, result.scores, strict=True))
        if isinstance(attack, QueryAttack) and attack.uses_event:
            assert sizes == pytest.approx(result.scores, rel=1e-6)
    elif isinstance(attack, QueryAttack):
        again = [score_against(restorer(), i)(c[None])[0] for i, c in zip(x, result.x_adv, strict=True)]
        assert again == pytest.approx(result.scores, rel=1e-12)


@pytest.mark.parametrize("name", gradient_attacks)
@pytest.mark.parametrize("random", [False, True])
def test_a_gradient_attack_counts_the_calls_that_are_made(name: str, random: bool) -> None:
    more = {"eot": 2, "select_draws": 3} if random else {}
    attack = build(name, "l2", "float", **more)
    model = Counting(restorer())
    assert isinstance(attack, GradientAttack)
    target, problem = make_target(attack, images(1, *SHAPE), model=model, purifier=Jitter() if random else None)
    model.with_gradient = model.without = 0
    result = attack.perturb(target, problem)
    assert result.grad_evals == [model.with_gradient] and model.with_gradient > 0
    assert result.queries == [model.without]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "ssim-pgd"])
def test_projected_ascent_costs_its_steps_and_one_query(name: str) -> None:
    attack = build(name, "linf", "float")
    result = attacked(attack, images(2, *SHAPE), ("a", "b"))
    steps = QUICK.get(name, {}).get("steps", 1)
    assert result.grad_evals == [steps, steps] and result.queries == [1, 1]
