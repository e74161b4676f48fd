from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from udc_ray.config import spec_values
from udc_ray.errors import SpecError
from udc_ray.spec import RunSpec, canonical_json, parse_spec

FULL: dict[str, Any] = {
    "model": {"name": "nafnet", "weights": "w.pth"},
    "data": {"name": "shipped", "display": "zte", "size": 64},
    "attacks": ["fgsm", {"name": "pgd", "norm": "l2", "eps": 2.5, "grad_mode": "bpda"}],
    "defenses": ["none", {"name": "ddim", "steps": 3, "grad_mode": ["blind", "bpda"]}],
    "objective": "ssim",
    "success": {"psnr_below": 20.0},
    "seed": 5,
    "limit": 2,
    "checks": ["budget"],
    "run": {"micro_batch": "auto", "threads": 2},
}


def test_entries_are_names_or_mappings_with_parameters() -> None:
    spec = parse_spec(FULL)
    assert (spec.attacks[0].name, spec.attacks[0].params, spec.attacks[0].grad_mode) == ("fgsm", {}, None)
    assert (spec.attacks[1].params, spec.attacks[1].grad_mode) == ({"norm": "l2", "eps": 2.5}, ("bpda",))
    assert spec.defenses[1].grad_mode == ("blind", "bpda")
    assert spec.model.params == {"weights": "w.pth"}


def test_the_plain_values_of_a_spec_give_it_back() -> None:
    assert parse_spec(spec_values(parse_spec(FULL))) == parse_spec(FULL)


def test_every_key_is_optional_but_the_attacks_have_no_default_of_their_own() -> None:
    assert parse_spec({"attacks": ["fgsm"]}).defenses[0].name == "none"
    with pytest.raises(SpecError, match="attacks"):
        parse_spec({})


def test_a_spec_is_frozen() -> None:
    spec: RunSpec = parse_spec(FULL)
    with pytest.raises(ValidationError):
        spec.seed = 1  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("changes", "what", "change"),
    [
        ({"atacks": []}, "unknown key 'atacks'", "did you mean attacks"),
        ({"run": {"thread": 2}}, "unknown key 'thread' in 'run'", "did you mean threads"),
        ({"success": {"drop": 2}}, "unknown key 'drop' in 'success'", "did you mean drop_db"),
        ({"run": {"micro_batch": 0}}, "micro_batch", ""),
        ({"run": {"hosts": 0}}, "run.hosts", ""),
        ({"run": {"save": "some"}}, "run.save", ""),
        ({"run": 3}, "run", ""),
        ({"limit": 0}, "limit", ""),
        ({"seed": "x"}, "seed", ""),
        ({"attacks": "pgd"}, "attacks", ""),
        ({"attacks": [{"steps": 3}]}, "an entry is a name, or a mapping with a 'name'", ""),
        ({"attacks": [3]}, "attacks.0", ""),
        ({"attacks": [{"name": 3}]}, "attacks.0", ""),
        ({"success": {"drop_db": -1}}, "success.drop_db", ""),
    ],
)
def test_a_mistake_is_one_message_that_names_the_place(changes: dict[str, Any], what: str, change: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(FULL | changes)
    assert what in caught.value.what
    assert change in caught.value.change


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == canonical_json({"a": "é", "b": 1}) == '{"a":"é","b":1}'
