from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udc_ray.attacks.query import QueryAttack
from udc_ray.config import build_spec, list_presets
from udc_ray.errors import SpecError
from udc_ray.labels import describe_eps
from udc_ray.plan import Plan, RecordKey, make_plan
from udc_ray.spec import parse_spec

IMAGES = tuple(f"{n:04d}" for n in range(7))
ATTACKS: list[Any] = ["noise", "fgsm", {"name": "pgd", "restarts": 2}, {"name": "square", "budget": 100}]
DEFENSES: list[Any] = [
    "none",
    {"name": "jpeg", "grad_mode": ["blind", "bpda"]},
    {"name": "gaussian-noise", "samples": 3, "grad_mode": ["blind", "bpda"]},
]


def plan(attacks: list[Any] = ATTACKS, defenses: list[Any] = DEFENSES, context: str = "context") -> Plan:
    return make_plan(parse_spec({"attacks": attacks, "defenses": defenses}), context)


def ids(made: Plan) -> dict[str, str]:
    return {cell.label: cell.id for cell in made.cells}


def owed(made: Plan, images: tuple[str, ...] = IMAGES) -> list[RecordKey]:
    return [key for cell in made.cells for image in images for key in made.keys(cell, image)]


def test_cells_are_attacks_x_defences_x_modes_less_the_pairs_that_do_not_exist() -> None:
    labels = {c.label for c in plan(["noise", "pgd", "square"], DEFENSES[:2]).cells}
    assert labels == {
        "noise linf 8/255 | none", "noise linf 8/255 | jpeg blind",
        "pgd linf 8/255 | none", "pgd linf 8/255 | jpeg blind", "pgd linf 8/255 | jpeg bpda",
        "square linf 8/255 | none", "square linf 8/255 | jpeg blind",
    }  # fmt: skip


def test_the_modes_of_an_attack_are_intersected_with_those_of_the_defence() -> None:
    def labels(modes: list[str]) -> set[str]:
        return {c.label for c in plan([{"name": "pgd", "grad_mode": modes}], DEFENSES[:2]).cells}

    assert labels(["full", "blind"]) == {"pgd linf 8/255 | none", "pgd linf 8/255 | jpeg blind"}
    assert labels(["bpda"]) == {"pgd linf 8/255 | jpeg bpda"}
    assert labels(["blind"]) == {"pgd linf 8/255 | jpeg blind"}
    assert labels(["undefended", "blind"]) == {"pgd linf 8/255 | none", "pgd linf 8/255 | jpeg blind"}


def test_an_attack_can_leave_out_the_whole_of_a_defence_but_not_the_undefended_model() -> None:
    defences = ["none", {"name": "ddim", "grad_mode": ["blind", "full", "surrogate-2"]}]
    made = plan(["pgd", {"name": "fgsm", "grad_mode": ["undefended", "blind"]}], defences)
    assert {c.label for c in made.cells} == {
        "pgd linf 8/255 | none", "pgd linf 8/255 | ddim blind", "pgd linf 8/255 | ddim full",
        "pgd linf 8/255 | ddim surrogate-2", "fgsm linf 8/255 | none", "fgsm linf 8/255 | ddim blind",
    }  # fmt: skip
    with pytest.raises(SpecError, match="no grad_mode 'surrogate-0'"):
        plan(["pgd"], ["none", {"name": "ddim", "grad_mode": "surrogate-0"}])


def test_a_query_attack_meets_a_purifier_as_a_whole_and_others_do_not() -> None:
    made = plan(["square", "pgd", "noise"], ["none", {"name": "jpeg", "grad_mode": ["full", "blind", "bpda"]}])
    assert {c.label for c in made.cells} == {
        "square linf 8/255 | none", "square linf 8/255 | jpeg blind", "square linf 8/255 | jpeg full",
        "pgd linf 8/255 | none", "pgd linf 8/255 | jpeg blind", "pgd linf 8/255 | jpeg bpda",
        "noise linf 8/255 | none", "noise linf 8/255 | jpeg blind",
    }  # fmt: skip
    whole = [u for u in made.units(IMAGES[:1], 1) if u.victim == 1 and u.grad_mode == "full"]
    assert [[c.label for c in u.cells] for u in whole] == [["square linf 8/255 | jpeg full"]]


def test_the_cell_that_is_attacked_is_the_one_that_is_not_blind() -> None:
    made = plan(["pgd", {"name": "square", "grad_mode": ["blind"]}], ["jpeg", "median", "none"])
    crafts = {made.attacks[u.attack].name: u for u in made.units(IMAGES[:2], 2)}
    labels = {c.id: c.label for c in made.cells}
    assert labels[crafts["pgd"].craft_cell] == "pgd linf 8/255 | none"
    assert labels[crafts["square"].craft_cell] == "square linf 8/255 | jpeg blind", "the first one where all are blind"


def test_a_defence_without_modes_is_blind_and_the_undefended_model_always_takes_part() -> None:
    assert {c.grad_mode for c in plan(["pgd"], ["jpeg"]).cells} == {"blind", "full"}


def test_blind_cells_share_the_craft_against_the_undefended_model() -> None:
    made = plan()
    for unit in made.units(IMAGES, 4):
        modes = {c.grad_mode for c in unit.cells}
        if made.defences[unit.victim].purifier is None:
            assert modes == {"full", "blind"}
            assert len(unit.cells) == len(DEFENSES)
        else:
            assert (modes, len(unit.cells)) == ({"bpda"}, 1)


def test_units_owe_every_record_exactly_once() -> None:
    made = plan()
    keys = [
        key
        for unit in made.units(IMAGES, 3)
        for cell in unit.cells
        for i in unit.image_ids
        for key in made.keys(cell, i)
    ]
    assert sorted(keys) == sorted(owed(made))
    assert len(set(keys)) == len(keys)
    assert all(len(unit.image_ids) <= 3 for unit in made.units(IMAGES, 3))


def test_samples_and_restarts_are_owed() -> None:
    made = plan()
    cell = next(c for c in made.cells if c.label.startswith("pgd") and c.label.endswith("gaussian-noise bpda"))
    assert [(r, s) for *_, r, s in made.keys(cell, "i")] == [(r, s) for r in range(2) for s in range(3)]


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(IMAGES)), st.integers(1, 8))
def test_done_images_are_skipped_whatever_the_chunks(done: set[str], chunk: int) -> None:
    made = plan(["pgd", "square"], DEFENSES)
    finished = owed(made, tuple(done))
    left = {i for unit in made.units(IMAGES, chunk, finished) for i in unit.image_ids}
    assert left == set(IMAGES) - done


def test_an_image_with_one_record_missing_is_planned_again() -> None:
    made = plan(["pgd"], DEFENSES[:2])
    missing = next(k for k in owed(made) if k[1] == "0003")
    units = list(made.units(IMAGES, 4, [k for k in owed(made) if k != missing]))
    assert [u.image_ids for u in units] == [("0003",)]


def test_cell_ids_do_not_depend_on_other_cells_their_order_or_the_budget() -> None:
    base = ids(plan())
    more = ids(plan(["cw", *ATTACKS], [*DEFENSES[::-1], "median"]))
    assert base.items() <= more.items()
    assert len(set(more.values())) == len(more)
    raised = ids(plan([*ATTACKS[:3], {"name": "square", "budget": 9999}]))
    assert raised == base
    assert not set(base.values()) & set(ids(plan(context="another model")).values())
    other_eps = ids(plan([{"name": "pgd", "eps": "4/255", "restarts": 2}]))
    assert not set(base.values()) & set(other_eps.values())


def test_the_order_of_defences_is_kept_and_unit_keys_are_stable() -> None:
    made = plan(["pgd"], DEFENSES[::-1])
    assert [d.name for d in made.defences] == ["gaussian-noise", "jpeg", "none"]
    keys = [u.key for u in plan().units(IMAGES, 3)]
    assert keys == [u.key for u in plan().units(IMAGES, 3)]
    assert len(set(keys)) == len(keys)


def test_entries_that_differ_in_their_budget_run_once_at_the_largest() -> None:
    square = [{"name": "square", "budget": b} for b in (100, 400, 200)]
    made = plan([*square, {"name": "square", "budget": 300, "eps": "4/255"}], ["none"])
    budgets = [e.attack.budget for e in made.attacks if isinstance(e.attack, QueryAttack)]
    assert budgets == [400, 300]
    assert made.attacks[0].smaller_budgets == (100, 200)
    assert ids(made)["square linf 8/255 | none"] == ids(plan([square[0]], ["none"]))["square linf 8/255 | none"]


@pytest.mark.parametrize(
    ("attacks", "defenses", "text"),
    [
        (["pgd", "pgd"], ["none"], "given twice"),
        ([{"name": "square", "budget": 5}] * 2, ["none"], "given twice"),
        (["pgd"], ["none", "jpeg", "jpeg"], "given twice"),
        (["pgd"], ["none", "none"], "given twice"),
        (["pdg"], ["none"], "unknown attack 'pdg'"),
        (["pgd"], ["jpg"], "unknown defence 'jpg'"),
        ([{"name": "pgd", "stepz": 3}], ["none"], "no parameter 'stepz'"),
        ([{"name": "pgd", "eps": 8}], ["none"], "write 8/255"),
        ([{"name": "pgd", "objective": "mes"}], ["none"], "unknown objective 'mes'"),
        ([{"name": "pgd", "grad_mode": ["bpad"]}], ["none"], "unknown grad_mode 'bpad'"),
        (["pgd"], [{"name": "jpeg", "grad_mode": ["full"]}], "no grad_mode 'full'"),
        (["pgd"], [{"name": "none", "quality": 3}], "takes no parameters"),
        ([], ["none"], "nothing to do"),
        (["pgd"], [], "nothing to do"),
        ([{"name": "square", "grad_mode": ["bpda"]}], ["none", "jpeg"], "nothing to do"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_done(attacks: list[Any], defenses: list[Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        plan(attacks, defenses)


def test_a_mode_that_is_given_twice_makes_one_cell() -> None:
    assert len(plan(["pgd"], ["none", {"name": "jpeg", "grad_mode": ["blind", "blind"]}]).cells) == 2


@pytest.mark.parametrize("preset", list_presets())
def test_the_labels_of_a_preset_tell_its_cells_apart(preset: str) -> None:
    made = make_plan(build_spec(preset=preset), "context")
    labels = [c.label for c in made.cells]
    assert len(set(labels)) == len(labels) == len({c.id for c in made.cells})


def test_a_radius_is_written_as_people_write_it() -> None:
    written = {8 / 255: "8/255", 8 / 256: "8/256", 1.0: "255/255", 5.0: "5", 2.5: "2.5", 0.1: "0.1", 0.5: "0.5"}
    assert {eps: describe_eps(eps) for eps in written} == written
