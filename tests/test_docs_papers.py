"""Every published purifier has a page with one command, and its spec sets blind beside exact gradients."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from udc_ray.config import build_spec
from udc_ray.plan import make_plan

PAPERS = Path(__file__).parent.parent / "docs" / "papers"
SPECS = sorted(path.stem for path in PAPERS.glob("*.yaml"))


def test_every_purifier_has_a_page() -> None:
    assert {"uad-rs", "agdm", "gdmp", "ddpm", "ddim"} <= set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_a_page_has_one_command_and_its_spec_exists(name: str) -> None:
    text = (PAPERS / f"{name}.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert commands == [f"udc-ray evaluate docs/papers/{name}.yaml"]
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAPERS / link).exists(), link


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_attacks_its_purifier_blind_and_through_exact_gradients(name: str) -> None:
    spec = build_spec(spec_file=PAPERS / f"{name}.yaml")
    plan = make_plan(spec, "context")
    (purifier,) = (d for d in plan.defences if d.name not in ("none", "jpeg"))
    assert purifier.purifier is not None and purifier.purifier.random and purifier.purifier.samples == 4
    modes = {(plan.attacks[c.attack].name, plan.defences[c.defence].name, c.grad_mode) for c in plan.cells}
    assert {("pgd", purifier.name, mode) for mode in ("blind", "full")} <= modes
    assert {("pgd", "none", "full"), ("pgd", "jpeg", "bpda")} <= modes
    assert purifier.purifier.offers("full-no-guide") == (("pgd", purifier.name, "full-no-guide") in modes)
    assert (spec.limit, spec.data.params["size"]) == (8, 64)
