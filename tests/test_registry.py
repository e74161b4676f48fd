"""Names to classes: built-in, registered, and the user's own by path."""

from __future__ import annotations

import pytest

from udc_ray.attacks.pgd import PGD
from udc_ray.attacks.registry import ATTACKS
from udc_ray.errors import SpecError
from udc_ray.models.zoo import MODELS
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.registry import Registry


def things() -> Registry[object]:
    return Registry("thing", {"pgd": "udc_ray.attacks.pgd:PGD", "broken": "no.such.module:X", "absent": "json:nothing"})


@pytest.mark.parametrize("registry", [ATTACKS, PURIFIERS, MODELS], ids=lambda r: r.kind)
def test_every_entry_loads_under_its_own_name(registry: Registry[object]) -> None:
    assert list(registry) == sorted(registry) and len(list(registry)) >= 3
    for name in registry:
        assert getattr(registry.get(name), "name", None) == name


def test_get_by_name_and_by_path() -> None:
    assert things().get("pgd") is PGD
    assert things().get("udc_ray.attacks.pgd:PGD") is PGD


def test_unknown_name_suggests() -> None:
    with pytest.raises(SpecError, match="unknown attack 'pgdd'\nwhat to change: did you mean pgd"):
        ATTACKS.get("pgdd")


@pytest.mark.parametrize("name", ["broken", "absent", "no.such.module:X", "json:nothing", ":"])
def test_what_cannot_be_loaded_is_a_user_error(name: str) -> None:
    with pytest.raises(SpecError, match="cannot be loaded"):
        things().get(name)


def test_register_adds_and_refuses_what_is_taken() -> None:
    registry = things()
    registry.register("mine", "udc_ray.attacks.pgd:FGSM")
    assert "mine" in registry and registry.get("mine").__name__ == "FGSM"
    with pytest.raises(SpecError, match="'pgd' is already registered"):
        registry.register("pgd", "a:b")
    assert "mine" not in things(), "registries share their entries"
