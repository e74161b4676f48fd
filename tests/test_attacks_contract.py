"""One contract for every attack of the registry, at both norms and both storage depths."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from doubles import Counting, Jitter, image_tape, images, make_target, restorer, run_machine, score_against
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.attacks.base import Attack, GradientAttack
from udc_ray.attacks.noise import Noise
from udc_ray.attacks.query import QueryAttack
from udc_ray.attacks.registry import ATTACKS
from udc_ray.attacks.threat import Depth, Norm, l2_norm, linf_norm
from udc_ray.tape import Tape

QUICK: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 3},
    "ssim-pgd": {"steps": 3},
    "cw": {"search_steps": 3, "iterations": 12, "initial_const": 0.1},
    "square": {"budget": 12, "horizon": 200},
    "simba": {"budget": 12},
}
"""Parameters that make an attack short; the contract holds for all."""
SHAPE = (3, 12, 15)
TOLERANCE = 1e-6

CASES = [
    (name, norm, depth)
    for name in ATTACKS
    for norm in (("l2",) if ATTACKS.get(name).minimum_norm else ("linf", "l2"))
    for depth in ("float", 8)
]
contract = pytest.mark.parametrize(("name", "norm", "depth"), CASES)
gradient_attacks = [n for n in ATTACKS if issubclass(ATTACKS.get(n), GradientAttack)]
query_attacks = [n for n in ATTACKS if issubclass(ATTACKS.get(n), QueryAttack)]


@dataclass(frozen=True)
class Outcome:
    """What an attack did to a micro-batch, whatever its kind."""

    x_adv: Tensor
    scores: list[float]
    queries: list[int]
    grad_evals: list[int]


def build(name: str, norm: Norm, depth: Depth, **more: Any) -> Attack:
    attack: Attack = ATTACKS.get(name).build("attack", {"norm": norm, "depth": depth} | QUICK.get(name, {}) | more)
    return attack


def attacked(attack: Attack, x: Tensor, ids: tuple[str, ...], *, model: Any = None, **options: Any) -> Outcome:
    """Run an attack of any kind; query attacks are scored at a fixed batch of one."""
    model = restorer() if model is None else model
    restart, seed = options.get("restart", 0), options.get("seed", 7)
    if isinstance(attack, GradientAttack):
        target, problem = make_target(attack, x, model=model, image_ids=ids, **options)
        result = attack.perturb(target, problem)
        return Outcome(result.x_adv_BCHW, result.score_B.tolist(), result.queries, result.grad_evals)
    if isinstance(attack, QueryAttack):
        tapes = [image_tape(i, seed=seed, restart=restart) for i in ids]
        machines = [attack.start(image, tape, 1.0) for image, tape in zip(x, tapes, strict=True)]
        queries = [run_machine(m, score_against(model, image)) for m, image in zip(machines, x, strict=True)]
        best = [m.best() for m in machines]
        return Outcome(torch.stack([b for b, _ in best]), [s for _, s in best], queries, [0] * len(x))
    assert isinstance(attack, Noise)
    tape = Tape(seed=seed, image_ids=ids, stream="attack", restart=restart)
    return Outcome(attack.perturb(x, tape), [], [0] * len(x), [0] * len(x))


def is_stored(x: Tensor, depth: Depth) -> bool:
    return depth == "float" or bool(((x.double() * 255).round() - x.double() * 255).abs().max() < 1e-4)


@contract
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_norm_box_and_depth_are_obeyed(name: str, norm: Norm, depth: Depth, data: st.DataObject) -> None:
    minimum_norm = ATTACKS.get(name).minimum_norm
    eps = data.draw(st.floats(0.002, 1.0) if norm == "linf" else st.floats(0.01, 30.0), label="eps")
    seed = data.draw(st.integers(0, 2**32), label="seed")
    attack = build(name, norm, depth, **({} if minimum_norm else {"eps": eps}))
    x = images(2, *SHAPE, seed=seed)
    result = attacked(attack, x, ("a", "b"), seed=seed)
    size = linf_norm(result.x_adv - x) if norm == "linf" else l2_norm(result.x_adv - x)
    assert minimum_norm or bool((size <= eps + TOLERANCE).all())
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert result.x_adv.shape == x.shape and result.x_adv.dtype == x.dtype
    assert is_stored(result.x_adv, depth)


@contract
def test_it_does_something_and_depends_on_seed_and_restart_alone(name: str, norm: Norm, depth: Depth) -> None:
    attack, x = build(name, norm, depth), images(2, *SHAPE)
    first, again = attacked(attack, x, ("a", "b")), attacked(attack, x, ("a", "b"))
    assert first.x_adv.equal(again.x_adv) and first.scores == again.scores
    assert not first.x_adv.equal(x)
    if name not in ("fgsm", "cw"):  # these draw nothing
        assert not first.x_adv.equal(attacked(attack, x, ("a", "b"), seed=8).x_adv)
        assert not first.x_adv.equal(attacked(attack, x, ("a", "b"), restart=1).x_adv)
        assert not first.x_adv.equal(attacked(attack, x, ("c", "d")).x_adv)


@contract
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
    elif isinstance(attack, QueryAttack):
        again = [score_against(restorer(), i)(c[None])[0] for i, c in zip(x, result.x_adv, strict=True)]
        assert again == result.scores


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


@pytest.mark.parametrize("name", query_attacks)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("budget", [1, 2, 3, 17])
def test_a_budget_is_spent_exactly(name: str, norm: Norm, budget: int) -> None:
    attack, x = build(name, norm, "float", budget=budget), images(1, *SHAPE)[0]
    assert isinstance(attack, QueryAttack)
    model = Counting(restorer())
    machine = attack.start(x, image_tape(), 1.0)
    assert run_machine(machine, score_against(model, x)) == budget == machine.asked == model.without
    assert machine.done and machine.stop_reason == "budget"
    assert machine.curve[-1][1] == machine.best()[1] and machine.curve[-1][0] <= budget


@pytest.mark.parametrize("name", query_attacks)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("depth", ["float", 8])
@settings(max_examples=8, deadline=None)
@given(cut=st.integers(0, 39), seed=st.integers(0, 1000))
def test_a_resumed_machine_ends_where_an_uninterrupted_one_does(
    name: str, norm: Norm, depth: Depth, cut: int, seed: int
) -> None:
    attack, x = build(name, norm, depth, budget=40), images(1, *SHAPE, seed=seed)[0]
    assert isinstance(attack, QueryAttack)
    score, tape = score_against(restorer(), x), image_tape(seed=seed)
    whole = attack.start(x, tape, 1.0)
    run_machine(whole, score)
    first = build(name, norm, depth, budget=cut + 1)  # the budget is no part of the identity: it was raised
    assert isinstance(first, QueryAttack)
    machine = first.start(x, tape, 1.0)
    run_machine(machine, score, at_most=cut)
    state = pickle.loads(pickle.dumps(machine.state()))
    if cut:
        machine.tell(score(machine.ask()))  # what happens to the first machine does not reach the saved state
    resumed = attack.restore(x, tape, 1.0, state)
    run_machine(resumed, score)
    assert resumed.best()[0].equal(whole.best()[0]) and resumed.best()[1] == whole.best()[1]
    assert (resumed.asked, resumed.curve, resumed.stop_reason) == (whole.asked, whole.curve, whole.stop_reason)


@pytest.mark.parametrize("name", query_attacks)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_curves_rise_and_success_stops_only_where_asked(name: str, norm: Norm) -> None:
    x = images(1, *SHAPE)[0]
    runs = {}
    for stop in ("never", "success"):
        attack = build(name, norm, "float", budget=60, stop=stop)
        assert isinstance(attack, QueryAttack)
        score = score_against(restorer(), x)
        goal = 1.02 * score(x[None])[0]
        machine = attack.start(x, image_tape(), goal)
        runs[stop] = (run_machine(machine, score), machine, goal)
    asked, machine, goal = runs["never"]
    scores = [s for _, s in machine.curve]
    assert asked == 60 and machine.stop_reason == "budget" and len(scores) > 2
    assert all(later > earlier for earlier, later in zip(scores, scores[1:], strict=False))
    asked, machine, goal = runs["success"]
    assert machine.stop_reason == "success" and machine.best()[1] >= goal and asked == machine.curve[-1][0] < 60
    assert all(s < goal for _, s in machine.curve[:-1])


@pytest.mark.parametrize("name", query_attacks)
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 9), st.integers(1, 9)),
    norm=st.sampled_from(["linf", "l2"]),
    answers=st.lists(st.floats(allow_nan=True), min_size=20, max_size=20),
)
def test_any_shape_and_any_answer_is_survived(
    name: str, shape: tuple[int, int, int], norm: Norm, answers: list[float]
) -> None:
    attack, x = build(name, norm, "float", budget=20), torch.full(shape, 0.5)
    assert isinstance(attack, QueryAttack)
    machine = attack.start(x, image_tape(), 1.0)
    pending = iter(answers)
    asked = run_machine(machine, lambda batch: [next(pending) for _ in batch])
    assert machine.done and asked == machine.asked <= 20
    best, _ = machine.best()
    size = linf_norm((best - x)[None]) if norm == "linf" else l2_norm((best - x)[None])
    assert best.shape == shape and float(size) <= (attack.eps or 0) + TOLERANCE
