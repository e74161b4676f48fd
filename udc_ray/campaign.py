"""What makes a run a campaign: query attacks only, which meet every defence as a whole."""

from __future__ import annotations

import math

from udc_ray.attacks.findeps import LADDER, SET_HERE
from udc_ray.attacks.query import QueryAttack
from udc_ray.attacks.registry import ATTACKS
from udc_ray.errors import SpecError
from udc_ray.plan import read_attack
from udc_ray.spec import Entry, RunSpec, Success

FIND_EPS = "find-eps"
SHARED = ("depth", "objective", "restarts", "repeats")
"""Parameters of an attack that belong to the search when it is put inside one."""


def as_campaign(spec: RunSpec, *, find_eps_db: float | None = None) -> RunSpec:
    """The spec with what a campaign means written out.

    A defence that names no grad_mode is queried as a whole (``full``).

    Args:
        spec: the spec as asked.
        find_eps_db: look for the smallest eps of each image that costs so many dB, in place of running the
            attacks at their own eps.

    Raises:
        SpecError: an attack that needs gradients.
    """
    for entry in spec.attacks:
        if ATTACKS.get(entry.name).kind == "gradient":
            raise SpecError(
                f"{entry.name} needs gradients, and a campaign has none",
                "a campaign attacks through queries alone",
                f"take it out, or use udc-ray evaluate; query attacks are {', '.join(_query_attacks())}",
            )
    defenses = tuple(
        entry if entry.name == "none" or entry.grad_mode else entry.model_copy(update={"grad_mode": ("full",)})
        for entry in spec.defenses
    )
    changed: dict[str, object] = {"defenses": defenses, "campaign": True}
    if find_eps_db is not None:
        changed["attacks"] = tuple(map(_searched, spec.attacks))
        changed["success"] = Success(drop_db=find_eps_db)
    return spec.model_copy(update=changed)


def _searched(entry: Entry) -> Entry:
    """A query attack inside the search for the smallest eps; controls and minimum-norm attacks stay."""
    attack = read_attack(entry).attack
    if not isinstance(attack, QueryAttack) or attack.minimum_norm:
        return entry
    inner = {key: value for key, value in entry.params.items() if key not in SET_HERE}
    outer = {key: entry.params[key] for key in SHARED if key in entry.params}
    # the search may come to spend the inner budget at every level that a bisection visits
    budget = attack.budget * math.ceil(math.log2(len(LADDER) + 1))
    params = {"attack": {"name": entry.name, **inner}, "norm": attack.norm, "budget": budget, **outer}
    return Entry(name=FIND_EPS, params=params, grad_mode=entry.grad_mode)


def _query_attacks() -> list[str]:
    return [name for name in ATTACKS if ATTACKS.get(name).kind == "query"]
