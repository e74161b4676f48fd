"""On the shipped photographs every attack does more than random noise of the same size."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_doubles import Notes

from udc_ray.attacks.registry import ATTACKS
from udc_ray.config import Overrides, build_spec
from udc_ray.host import Host
from udc_ray.in_process import InProcessPool
from udc_ray.metrics.statistics import bootstrap_mean, group_cells
from udc_ray.prepare import prepare
from udc_ray.records import Record
from udc_ray.run import Settings, execute
from udc_ray.rundir import RunDirectory

REPORTED_ONLY = {"noise", "simba", "clean-repeat", "nes", "zo-signsgd"}
CLOSEST = {name for name in ATTACKS if ATTACKS.get(name).minimum_norm and ATTACKS.get(name).kind == "query"}
"""They end at the least that is a success, not at the most damage."""


def margins(records: list[Record]) -> list[float]:
    """psnr_noise - psnr_adv by image, in dB."""
    (cell,) = group_cells(records)
    noise, attacked = cell.per_image("psnr_noise"), cell.per_image("psnr_adv")
    return [noise[i] - attacked[i] for i in sorted(noise)]


def run(attack: str, out: Path, *sets: str) -> list[Record]:
    flags = Overrides(attacks=(attack,), defenses=("none",), data="shipped")
    prepared = prepare(build_spec(flags=flags, sets=("data.size=128", "data.display=toled", *sets)))
    host = Host(prepared.setup, restorer=prepared.restorer)
    execute(prepared, lambda setup: InProcessPool(host), Notes(), Settings(out=str(out)))
    return RunDirectory.read(str(out)).records()


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "pgd:norm=l2", "ssim-pgd"])
def test_gradient_attacks_beat_noise(attack: str, tmp_path: Path) -> None:
    assert bootstrap_mean(margins(run(attack, tmp_path / "run")), 0).ci_low > 0


@pytest.mark.slow
@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - REPORTED_ONLY - CLOSEST))
def test_every_attack_beats_noise_at_its_defaults(attack: str, tmp_path: Path) -> None:
    found = margins(run(attack, tmp_path / "run"))
    estimate = bootstrap_mean(found, 0)
    assert len(found) == 12
    assert estimate.ci_low > 0, f"{attack}: {estimate}"
