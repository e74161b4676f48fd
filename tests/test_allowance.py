"""Accounts of queries: never exceeded, shared evenly, the same whatever the units, and used up in rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_factory import make_record

from udc_ray.allowance import Allowance, Limits, Triple, even_shares, spent_queries
from udc_ray.attacks.query import QueryAttack
from udc_ray.plan import Plan, RecordKey, Unit, make_plan
from udc_ray.spec import parse_spec

BUDGETS = {"square": 30, "simba": 12}
ATTACKS: list[Any] = ["pgd", {"name": "square", "budget": 30}, {"name": "simba", "budget": 12, "restarts": 2}]
DEFENSES: list[Any] = ["none", {"name": "jpeg", "grad_mode": ["blind", "full"]}]
PLAN = make_plan(parse_spec({"attacks": ATTACKS, "defenses": DEFENSES}), "context")
IMAGES = tuple(f"{n:02d}" for n in range(16))


def chains_of(plan: Plan, units: list[Unit]) -> dict[Triple, int]:
    """What each chain of the units may ask in all."""
    allowed: dict[Triple, int] = {}
    for unit in units:
        attack = plan.attacks[unit.attack].attack
        if isinstance(attack, QueryAttack):
            keys = [(unit.craft_cell, i, restart) for i in unit.image_ids for restart in range(attack.restarts)]
            caps = unit.caps or (attack.budget,) * len(keys)
            assert not set(keys) & set(allowed), "a chain is in two units"
            allowed |= zip(keys, caps, strict=True)
    return allowed


QUERY_UNITS = [unit for unit in PLAN.units(IMAGES, 99) if PLAN.attacks[unit.attack].name in BUDGETS]
QUERIED = [unit.craft_cell for unit in QUERY_UNITS]
VICTIM = {unit.craft_cell: unit.victim for unit in QUERY_UNITS}
BUDGET = {unit.craft_cell: BUDGETS[PLAN.attacks[unit.attack].name] for unit in QUERY_UNITS}
KEYS = [(cell, i, r) for cell in QUERIED for i in IMAGES for r in range(2 if BUDGET[cell] == 12 else 1)]
bounds = st.none() | st.integers(1, 1500)


@st.composite
def accounts(draw: st.DrawFn) -> tuple[Limits, dict[Triple, int]]:
    """Limits, and what was spent within them."""
    limits = Limits(total=draw(bounds), per_cell=draw(bounds), per_target=draw(bounds))
    asked = draw(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 30), max_size=30))
    spent: dict[Triple, int] = {}
    for key, wanted in asked.items():
        spent[key] = min(wanted, BUDGET[key[0]])
        if exceeded(limits, spent):
            del spent[key]
    return limits, spent


def exceeded(limits: Limits, spent: Mapping[Triple, int]) -> bool:
    by_cell, by_target = Counter[str](), Counter[int]()
    for (cell, _, _), asked in spent.items():
        by_cell[cell] += asked
        by_target[VICTIM[cell]] += asked
    pairs = [(limits.total, sum(spent.values()))]
    pairs += [(limits.per_cell, n) for n in by_cell.values()] + [(limits.per_target, n) for n in by_target.values()]
    return any(bound is not None and used > bound for bound, used in pairs)


@given(accounts(), st.integers(1, 20), st.sets(st.sampled_from(IMAGES)))
def test_no_account_is_ever_exceeded_even_if_all_is_asked(
    drawn: tuple[Limits, dict[Triple, int]], chunk: int, done: set[str]
) -> None:
    limits, spent = drawn
    units = list(PLAN.units(tuple(i for i in IMAGES if i not in done), chunk))
    granted = Allowance(PLAN, limits, spent).share_out(units)
    allowed = chains_of(PLAN, granted)
    assert not exceeded(limits, {**spent, **allowed})
    assert all(spent.get(chain, 0) <= cap <= BUDGET[chain[0]] for chain, cap in allowed.items())
    assert [u for u in granted if u.attack == 0] == [u for u in units if u.attack == 0], "gradients have no account"


@given(accounts(), st.integers(1, 20), st.randoms(use_true_random=False))
def test_what_a_chain_may_ask_depends_on_no_unit(
    drawn: tuple[Limits, dict[Triple, int]], chunk: int, chance: Any
) -> None:
    limits, spent = drawn

    def more(units: list[Unit]) -> dict[Triple, int]:
        allowed = chains_of(PLAN, Allowance(PLAN, limits, spent).share_out(units))
        return {chain: cap for chain, cap in allowed.items() if cap > spent.get(chain, 0)}

    shuffled = list(PLAN.units(IMAGES, chunk))
    chance.shuffle(shuffled)
    assert more(shuffled) == more(list(PLAN.units(IMAGES, 16)))


@given(accounts())
def test_nothing_is_left_that_somebody_could_use(drawn: tuple[Limits, dict[Triple, int]]) -> None:
    """One query more for any chain that wants one would exceed an account."""
    limits, spent = drawn
    allowed = chains_of(PLAN, Allowance(PLAN, limits, spent).share_out(list(PLAN.units(IMAGES, 4))))
    everything = {**dict.fromkeys(KEYS, 0), **spent, **allowed}
    for chain in KEYS:
        if everything[chain] < BUDGET[chain[0]] and limits.any:
            assert exceeded(limits, {**everything, chain: everything[chain] + 1})


def test_without_limits_the_units_stay_as_they_are() -> None:
    units = list(PLAN.units(IMAGES, 3))
    assert Allowance(PLAN, Limits(), {}).share_out(units) == units
    assert Allowance(PLAN, Limits(total=10**6), {}).share_out(units) == units


def test_what_is_scarce_is_shared_evenly_by_cell_and_image() -> None:
    allowed = chains_of(PLAN, Allowance(PLAN, Limits(total=200), {}).share_out(list(PLAN.units(IMAGES, 5))))
    by_cell = Counter[str]()
    for (cell, _, _), cap in allowed.items():
        by_cell[cell] += cap
    assert by_cell == dict.fromkeys(QUERIED, 50)
    assert {cap for chain, cap in allowed.items() if BUDGET[chain[0]] == 30} == {3, 4}
    assert {cap for chain, cap in allowed.items() if BUDGET[chain[0]] == 12} == {1, 2}


def test_images_that_are_left_with_nothing_are_left_out() -> None:
    allowed = Allowance(PLAN, Limits(per_cell=5), {}).share_out(list(PLAN.units(IMAGES, 4)))
    queried = [unit for unit in allowed if unit.attack != 0]
    assert {unit.craft_cell for unit in queried} == set(QUERIED)
    assert all(sum(unit.caps) and len(unit.image_ids) <= 4 for unit in queried)
    # five queries are five images of one chain, or three of two chains
    assert sorted(len([c for c in chains_of(PLAN, queried) if c[0] == cell]) for cell in QUERIED) == [5, 5, 6, 6]


@given(st.integers(0, 400), st.lists(st.integers(0, 40), max_size=12))
def test_even_shares(amount: int, needs: list[int]) -> None:
    shares = even_shares(amount, needs)
    assert len(shares) == len(needs) and all(0 <= s <= n for s, n in zip(shares, needs, strict=True))
    assert sum(shares) == min(amount, sum(needs))
    hungry = [share for share, need in zip(shares, needs, strict=True) if share < need]
    if hungry:  # whoever could take more has as much as anybody else, but for what does not divide
        assert max(shares) - min(hungry) <= 1
        assert hungry == sorted(hungry, reverse=True), "what does not divide goes to the first"


def test_queries_are_counted_once_for_samples_and_under_every_cell_that_shares_them() -> None:
    rows = [make_record(cell="a", image_id="x", restart=0, sample=s, queries=5, grad_mode="full") for s in range(3)]
    rows += [make_record(cell="b", image_id="x", restart=0, sample=s, queries=5, grad_mode="blind") for s in range(3)]
    rows += [
        make_record(cell="a", image_id="x", restart=1, queries=7),
        make_record(cell="a", image_id="y", queries=None),
    ]
    assert spent_queries(rows) == {("a", "x", 0): 5, ("b", "x", 0): 5, ("a", "x", 1): 7}


@pytest.mark.parametrize("modes", [["blind"], ["full", "blind"]])
def test_images_that_only_blind_cells_use_are_on_the_account_of_the_undefended_model(modes: list[str]) -> None:
    attack = {"name": "square", "budget": 30, "grad_mode": modes}
    made = make_plan(parse_spec({"attacks": [attack, "fgsm"], "defenses": ["jpeg", "median", "none"]}), "context")
    unit = next(unit for unit in made.units(IMAGES[:2], 2) if unit.attack == 0)
    assert made.defences[unit.victim].purifier is None and unit.victim == 2
    rows = [
        make_record(cell=cell.id, image_id=i, queries=10, grad_mode=cell.grad_mode)
        for cell in unit.cells
        for i in IMAGES[:2]
    ]
    (granted,) = Allowance(made, Limits(per_target=50, total=60), spent_queries(rows)).share_out([unit])
    assert granted.caps == (25, 25)


def rounds(chunk: int, total: int) -> tuple[dict[Triple, int], int]:
    """What is asked in the end, and in how many rounds: square succeeds at its second query on all but three images."""
    limits, spent, done, count = Limits(total=total), dict[Triple, int](), set[RecordKey](), 0
    while True:
        before = dict(spent)
        for chain, cap in chains_of(PLAN, Allowance(PLAN, limits, spent).share_out(units_of(chunk, done))).items():
            early = BUDGET[chain[0]] == 30 and chain[1] not in IMAGES[-3:]
            spent[chain] = min(cap, 2) if early else cap
            if spent[chain] == (2 if early else BUDGET[chain[0]]):
                done.add((*chain, 0))
        assert sum(spent.values()) <= total
        if spent == before:
            return spent, count
        count += 1


def units_of(chunk: int, done: set[RecordKey]) -> list[Unit]:
    """The query units that are not done; blind cells are done with the cell whose images they use."""
    shared = {
        (cell.id, *key[1:]) for unit in QUERY_UNITS for key in done if key[0] == unit.craft_cell for cell in unit.cells
    }
    return [unit for unit in PLAN.units(IMAGES, chunk, shared) if unit.craft_cell in QUERIED]


def test_rounds_use_up_what_early_successes_left_whatever_the_chunk() -> None:
    spent, count = rounds(16, 700)
    assert count >= 2 and sum(spent.values()) == 700
    assert rounds(1, 700) == rounds(7, 700) == (spent, count)
    for cell in QUERIED:
        asked = [n for (c, *_), n in spent.items() if c == cell]
        if BUDGET[cell] == 30:
            assert asked[:13] == [2] * 13 and min(asked[13:]) > 20, "what was saved goes to those who can use it"
        else:
            assert max(asked) - min(asked) <= count, "what does not divide is one query a round"
