"""Every attack of the registry, made short, at every norm that it knows; and what all of them must obey."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import Judge, judge_against, restorer, score_against
from torch import Tensor

from udc_ray.attacks.base import Attack, GradientAttack
from udc_ray.attacks.query import QueryAttack
from udc_ray.attacks.registry import ATTACKS
from udc_ray.attacks.threat import Depth, Norm, l2_norm, linf_norm
from udc_ray.errors import SpecError

QUICK: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 3},
    "apgd": {"steps": 5},
    "ssim-pgd": {"steps": 3},
    "cw": {"search_steps": 3, "iterations": 12, "initial_const": 0.1},
    "low-frequency": {"rounds": 2, "iterations": 4, "bands": 0.2},
    "square": {"budget": 12, "horizon": 200},
    "nes": {"budget": 24, "samples": 4},
    "zo-signsgd": {"budget": 24, "samples": 3},
    "hopskipjump": {"budget": 24, "probes": 3},
    "transfer": {"budget": 12, "surrogate": "doubles:Conv", "steps": 2, "scales": 2},
    "find-eps": {"budget": 24, "attack": {"name": "square", "budget": 5}},
}
"""Parameters that make an attack short; the contract holds for all."""
DRAWS_NOTHING = {"fgsm", "cw", "rays", "clean-repeat"}
CHANGES_NOTHING = {"clean-repeat"}
SHAPE = (3, 12, 15)
TOLERANCE = 1e-6


def norms_of(name: str) -> list[Norm]:
    """The norms that an attack can be built with."""
    found: list[Norm] = []
    for norm in ("linf", "l2"):
        try:
            ATTACKS.get(name).build("attack", {"norm": norm} | QUICK.get(name, {}))
        except SpecError:
            continue
        found.append(norm)
    return found


PAIRS = [(name, norm) for name in ATTACKS for norm in norms_of(name) if (name, norm) != ("cw", "linf")]
CASES = [(name, norm, depth) for name, norm in PAIRS for depth in ("float", 8)]
contract = pytest.mark.parametrize(("name", "norm", "depth"), CASES)
gradient_attacks = [n for n in ATTACKS if issubclass(ATTACKS.get(n), GradientAttack)]
query_attacks = [n for n in ATTACKS if issubclass(ATTACKS.get(n), QueryAttack)]
queries = pytest.mark.parametrize(("name", "norm"), [pair for pair in PAIRS if pair[0] in query_attacks])
depths = pytest.mark.parametrize("depth", ["float", 8])


def build(name: str, norm: Norm, depth: Depth, **more: Any) -> Attack:
    short = QUICK.get(name, {"budget": 12} if name in query_attacks else {})
    attack: Attack = ATTACKS.get(name).build("attack", {"norm": norm, "depth": depth} | short | more)
    return attack


def build_query(name: str, norm: Norm, depth: Depth = "float", **more: Any) -> QueryAttack:
    attack = build(name, norm, depth, **more)
    assert isinstance(attack, QueryAttack)
    return attack


def target_of(x_CHW: Tensor, model: Any = None) -> tuple[Judge, float]:
    """Who answers the attack on an image, and the score that is a success: 2 % more damage than there is."""
    model = restorer() if model is None else model
    goal = 1.02 * score_against(restorer(), x_CHW)(x_CHW[None])[0]
    with torch.no_grad():
        clean_CHW = restorer()(x_CHW[None])[0].clamp(0, 1)
    return judge_against(model, x_CHW, goal, clean_CHW), goal


def is_stored(x: Tensor, depth: Depth) -> bool:
    return depth == "float" or bool(((x.double() * 255).round() - x.double() * 255).abs().max() < 1e-4)


def size_of(delta_BCHW: Tensor, norm: Norm) -> Tensor:
    return linf_norm(delta_BCHW) if norm == "linf" else l2_norm(delta_BCHW)


def assert_inside(attack: Attack, x_adv: Tensor, x: Tensor) -> None:
    """Ball, box and grid; images B x C x H x W."""
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert attack.eps is None or bool((size_of(x_adv - x, attack.norm) <= attack.eps + TOLERANCE).all())
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert is_stored(x_adv, attack.depth)
