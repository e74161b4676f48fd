"""The presets of adaptive evaluation are what their head comments promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import udc_ray
from udc_ray import cost
from udc_ray.config import build_spec
from udc_ray.prepare import prepare

PRESETS = Path(udc_ray.__file__).parent / "presets"
SCALE = {"": 1.0, "million": 1e6}


@pytest.mark.parametrize(
    ("preset", "steps", "eot", "restarts", "samples", "limit"),
    [("screen", 20, 8, 1, 8, 64), ("report", 100, 16, 3, 10, 256), ("paper", 200, 64, 3, 32, 256)],
)
def test_the_sizes_of_a_preset(preset: str, steps: int, eot: int, restarts: int, samples: int, limit: int) -> None:
    prepared = prepare(build_spec(preset=preset))
    spec, plan = prepared.setup.spec, prepared.setup.plan
    main = next(entry.attack for entry in plan.attacks if entry.name == "apgd")
    assert (main.model_dump()["steps"], main.model_dump()["eot"], main.restarts) == (steps, eot, restarts)
    purifier = next(d.purifier for d in plan.defences if d.name == "ddim")
    assert purifier is not None and (purifier.samples, purifier.calls) == (samples, 5)
    assert spec.limit == limit and len(prepared.setup.dataset.image_ids) == 12
    modes = {(plan.defences[c.defence].name, plan.attacks[c.attack].name, c.grad_mode) for c in plan.cells}
    assert {
        ("ddim", "apgd", "blind"),
        ("ddim", "apgd", "full"),
        ("jpeg", "apgd", "bpda"),
        ("none", "apgd", "full"),
    } <= modes
    if preset != "screen":
        assert {("ddim", "apgd", "bpda"), ("ddim", "square", "full"), ("ddim", "low-frequency", "full")} <= modes
        frozen = [e.attack for e in plan.attacks if e.attack.model_dump().get("frozen_noise")]
        assert len(frozen) == 1


@pytest.mark.parametrize("preset", ["screen", "report", "paper"])
def test_the_cost_in_the_head_comment_is_that_of_the_estimate(preset: str) -> None:
    head = " ".join(
        (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8").split("data:")[0].replace("#", " ").split()
    )
    amounts = re.findall(r"([\d.,]*\d) ?(million)? (?:forward passes of the denoiser|of the restorer)", head)
    said = [float(number.replace(",", "")) * SCALE[unit] for number, unit in amounts]
    prepared = prepare(build_spec(preset=preset))
    units = list(prepared.setup.plan.units(prepared.setup.dataset.image_ids, 4))
    found = cost.estimate(prepared.setup, units, None)
    assert said == pytest.approx([found.denoiser / 12, found.restorer / 12], rel=0.05)
