"""The probe in both directions: planted defects trip the check that is named for them, honest victims trip none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from doubles import Blur, Constant, Conv, images, restorer
from purifier_doubles import tiny_denoiser
from record_factory import make_cell
from run_doubles import Notes, make_host, small_run
from torch import Tensor, nn

from udc_ray.attacks.base import GradientAttack
from udc_ray.attacks.objectives import get_objective
from udc_ray.attacks.pgd import PGD
from udc_ray.checks import CheckResult, Measured, run_checks
from udc_ray.checks.control import CONTROL
from udc_ray.checks.readings import Reading
from udc_ray.gradient_probe import differences, draws, probe
from udc_ray.gradient_probe.double import NoDouble, in_double
from udc_ray.gradient_probe.subject import Subject, met_by_gradients
from udc_ray.host import Host
from udc_ray.in_process import InProcessPool
from udc_ray.models.base import Restorer
from udc_ray.purifiers.base import Purifier, Trace
from udc_ray.purifiers.broken import BrokenControl
from udc_ray.purifiers.chain import Noise, Segment, make_segments
from udc_ray.purifiers.diffusion import DDIM
from udc_ray.purifiers.guided import GDMP
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.purifiers.simple import GaussianNoise, Identity, Median
from udc_ray.purifiers.victim import Victim
from udc_ray.run import Finished, Settings, execute
from udc_ray.setup import HostSetup
from udc_ray.spec import parse_spec
from udc_ray.tape import Tape

if CONTROL not in PURIFIERS:
    PURIFIERS.register(CONTROL, "udc_ray.purifiers.broken:BrokenControl")

SHORT = PGD(steps=4)


def subject(
    purifier: Purifier | None = None,
    mode: str = "full",
    *,
    model: Restorer | None = None,
    attacks: Sequence[GradientAttack] = (SHORT,),
) -> Subject:
    """A victim with a tiny prior, on 16 x 16 pixels."""
    # no two values are equal: a median bends there
    x = 0.1 + 0.8 * images(1, 3, 16, 16) + 0.01 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    prepared = tiny_denoiser() if isinstance(purifier, DDIM | GDMP) else None
    victim = Victim(restorer=model or restorer(), purifier=purifier, prepared=prepared, grad_mode=mode)
    return Subject(
        victim=victim,
        label="none" if purifier is None else purifier.name,
        attacks=tuple(attacks),
        objective=get_objective("mse"),
        image_id="image",
        x_1CHW=x,
        reference_1=0.9 * Blur()(x),
        tape=Tape(seed=3, image_ids=("image",), stream="attack"),
        slots=4,
    )


def judged(reading: Reading) -> list[CheckResult]:
    """All checks of a sound run of eight images in which one victim was probed so."""
    spec = parse_spec({"attacks": ["pgd"], "defenses": ["none", "ddim", "gdmp", "gaussian-noise"]})
    # as an honest attack would have it: converged, in some harmony with blind and undefended runs
    rows = make_cell([15.0] * 8, loss_move=0.01, cell="bare")
    if reading.defense != "none":
        defended: dict[str, Any] = {"defense": reading.defense, "psnr_clean": 27.9, "loss_move": 0.01}
        rows += make_cell([16.5] * 8, grad_mode="blind", **defended)
        rows += make_cell([16.0] * 8, grad_mode=reading.grad_mode, **defended)
    return run_checks(rows, spec, Measured(gradients=(reading,)))


def failing(reading: Reading) -> set[str]:
    return {one.check for one in judged(reading) if one.verdict == "fail"}


FEW = DDIM(steps=2, sigma=30.0)
GUIDED = GDMP(steps=2, repeats=2, scale=200.0)


@pytest.mark.parametrize(
    "purifier", [None, FEW, GUIDED, GaussianNoise(), Identity(), Median(), DDIM(steps=2, eta=1.0, copies=2)]
)
def test_honest_victims_trip_no_check(purifier: Purifier | None) -> None:
    reading = probe(subject(purifier))
    assert failing(reading) == set()
    assert (reading.agreeing + reading.kinks, reading.no_double, reading.failure) == (8, "", "")
    assert reading.agreeing >= 6  # kinks are few: the comparison says something
    assert reading.recomputed is (True if isinstance(purifier, DDIM | GDMP) else None)
    assert (reading.inner_gradients, reading.guide_gap is not None) == ((4, True) if purifier is GUIDED else (0, False))


class Detached(DDIM):
    """Loses the graph."""

    def differentiable(self, x_BCHW: Tensor, tape: Tape, prepared: Any, mode: str) -> Tensor:
        return super().differentiable(x_BCHW, tape, prepared, mode).detach()


class HalfDetached(DDIM):
    """Loses one of two ways through which the image acts."""

    def differentiable(self, x_BCHW: Tensor, tape: Tape, prepared: Any, mode: str) -> Tensor:
        purified = super().differentiable(x_BCHW, tape, prepared, mode)
        return purified.detach() + (purified - purified.detach()) / 2


class Rounded(Identity):
    """Stores the image in 8 bits."""

    def apply(self, x_BCHW: Tensor, tape: Tape) -> Tensor:
        return (x_BCHW * 255).round() / 255


@dataclass(frozen=True, kw_only=True)
class DriftingNoise(Noise):
    """Gives other noise when it is asked again for a gradient."""

    def __call__(self, purpose: str, like: Tensor) -> Tensor:
        return super().__call__(purpose, like) + 1e-3 * torch.is_grad_enabled()


class Drifting(DDIM):
    """Its noise changes in the recompute."""

    def segments(self, x_BCHW: Tensor, tape: Tape, prepared: Any, **options: Any) -> list[Segment]:
        noise = DriftingNoise(tape=tape, name=self.noise_key)
        return make_segments(self.plan(prepared), prepared, prepared.schedule, noise)


class Leaking(DDIM):
    """Its evaluation draws the noise that the attack saw."""

    def segments(self, x_BCHW: Tensor, tape: Tape, prepared: Any, **options: Any) -> list[Segment]:
        return super().segments(x_BCHW, tape.at(stream="attack", step=0), prepared, **options)


class Unfrozen(DDIM):
    """Its noise comes from nowhere."""

    def purify(self, x_BCHW: Tensor, tape: Tape, prepared: Any) -> tuple[Tensor, Trace]:
        purified, trace = super().purify(x_BCHW, tape, prepared)
        return purified + 0.01 * torch.rand_like(purified), trace


class CutGuide(GDMP):
    """Says that its gradient is exact, and leaves the guide out."""

    def differentiable(self, x_BCHW: Tensor, tape: Tape, prepared: Any, mode: str) -> Tensor:
        return super().differentiable(x_BCHW, tape, prepared, "full-no-guide" if mode == "full" else mode)


@pytest.mark.parametrize(
    ("purifier", "mode", "tripped"),
    [
        (Detached(steps=2), "full", {"05-gradient"}),
        (HalfDetached(steps=2), "full", {"05-gradient"}),
        (Rounded(), "full", {"06-zero-gradient"}),
        (Drifting(steps=2), "full", {"07-recompute"}),
        (GUIDED, "full-no-guide", {"08-guide"}),
        (CutGuide(steps=2, repeats=2, scale=200.0), "full", {"05-gradient", "08-guide"}),
        (Leaking(steps=2), "full", {"11-frozen-noise"}),
        (Unfrozen(steps=2), "full", {"11-frozen-noise"}),
    ],
)
def test_planted_defects_trip_the_check_that_is_named_for_them(
    purifier: Purifier, mode: str, tripped: set[str]
) -> None:
    assert failing(probe(subject(purifier, mode))) == tripped


class Weakened(PGD):
    """Walks the wrong way once nothing is random."""

    def perturb(self, target: Any, problem: Any) -> Any:
        found = super().perturb(target, problem)
        return found if target.victim.random else replace(found, x_adv_BCHW=problem.x_BCHW)


def test_an_attack_that_fails_on_frozen_noise_is_broken() -> None:
    assert failing(probe(subject(FEW, attacks=(Weakened(steps=4),)))) == {"11-frozen-noise"}


def test_a_listed_attack_on_frozen_noise_is_made_in_full() -> None:
    listed = PGD(steps=9, frozen_noise=True)
    assert draws._short((PGD(steps=50), listed)) == PGD(steps=9)
    assert draws._short((PGD(steps=50, eot=4, restarts=3),)) == PGD(steps=draws.FEW)
    assert draws._short(()) is None


@pytest.mark.parametrize("mode", ["bpda", "surrogate-1", "forward-noise"])
def test_approximate_modes_are_measured_against_the_exact_gradient(mode: str) -> None:
    reading = probe(subject(FEW, mode))
    assert reading.cosine is not None and -1 <= reading.cosine < 0.999
    assert (reading.attack_steps, reading.steps) == ({"bpda": 2, "surrogate-1": 1, "forward-noise": 0}[mode], 2)
    assert (reading.plan == reading.attack_plan) is (mode == "bpda")
    assert (reading.forward_gap == 0) is (mode == "bpda")
    assert failing(reading) == set()


def test_more_draws_agree_better() -> None:
    reading = probe(subject(GaussianNoise(sigma=20.0), attacks=(PGD(steps=4, eot=2), PGD(steps=4, eot=8))))
    assert [n for n, _ in reading.eot] == [2, 4, 8, 16, 32]
    cosines = [cosine for _, cosine in reading.eot]
    assert cosines[0] < cosines[-1] <= 1


def test_the_broken_control_is_flagged() -> None:
    reading = probe(subject(BrokenControl()))
    assert (reading.zero_share, failing(reading)) == (1.0, {"06-zero-gradient"})
    assert probe(subject(BrokenControl(), "bpda")).zero_share == 0.0


def test_a_constant_victim_has_no_gradient() -> None:
    assert failing(probe(subject(model=restorer(Constant())))) == {"06-zero-gradient"}


class Stubborn(nn.Module):
    """Computes in float32 whatever it is given."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        blurred: Tensor = Blur()(x_BCHW.float())
        return blurred


def test_a_victim_without_a_copy_in_double_is_told_apart() -> None:
    stubborn = subject(model=restorer(Stubborn()))
    with pytest.raises(NoDouble, match="float32 whatever it is given"):
        in_double(stubborn.victim, stubborn.x_1CHW, stubborn.tape)
    reading = probe(stubborn)
    assert (failing(reading), reading.directions) == (set(), 0)
    assert any("float32 whatever" in one.message for one in judged(reading) if one.check == "05-gradient")


def test_a_copy_in_double_leaves_the_victim_as_it_was() -> None:
    mine = subject(FEW)
    before = mine.victim.evaluate(mine.x_1CHW, mine.tape)[0]
    doubled = in_double(mine.victim, mine.x_1CHW, mine.tape)
    assert doubled.evaluate(mine.x_1CHW.double(), mine.tape)[0].dtype == torch.float64
    assert torch.equal(mine.victim.evaluate(mine.x_1CHW, mine.tape)[0], before)


def _value(x_BCHW: Tensor) -> Tensor:
    return (x_BCHW.clamp(max=0.5) ** 3).sum(dim=(1, 2, 3))


def test_differences_tell_kinks_from_mistakes() -> None:
    x = torch.full((1, 1, 4, 4), 0.4, dtype=torch.float64)
    directions = differences.unit_directions(x, seed=0)
    right = 3 * x**2
    found = differences.compare(_value, x, right, directions)
    assert (found.agreeing, found.kinks, found.gap) == (8, 0, 0.0)
    wrong = differences.compare(_value, x, 0.9 * right, directions)
    assert (wrong.agreeing, wrong.kinks, wrong.gap) == (0, 0, pytest.approx(0.1, abs=0.05))
    # half a largest step from the bend on one side: narrower differences settle
    bent = x.clone()
    bent[0, 0, 0, 0] = 0.5 - float(differences.STEPS[0] * directions[:, 0, 0, 0].abs().min()) / 2
    slopes = 3 * bent**2
    assert differences.compare(_value, bent, slopes, directions).agreeing == 8


def test_differences_leave_jumps_alone() -> None:
    def steps(x_BCHW: Tensor) -> Tensor:
        return (x_BCHW * 255).round().sum(dim=(1, 2, 3))

    x = torch.full((1, 1, 4, 4), 0.4, dtype=torch.float64)
    directions = differences.unit_directions(x, seed=0)
    x[0, 0, 0, 0] = (102.5 + 1e-9) / 255  # every difference jumps here
    found = differences.compare(steps, x, torch.zeros_like(x), directions)
    assert found.kinks == 8


def test_only_victims_that_gradients_attack_are_probed() -> None:
    prepared = small_run(
        "defenses=[none, {name: jpeg, grad_mode: [blind, bpda]}, {name: median, grad_mode: blind}]",
        attacks=("noise", "fgsm", "pgd:steps=2", "square:budget=4"),
    )
    met = {(d, mode): len(attacks) for d, mode, attacks in met_by_gradients(prepared.setup.plan)}
    assert met == {(0, "full"): 2, (1, "bpda"): 2}


class Probing(InProcessPool):
    """A pool of one host whose gradients can be looked at; counts how often."""

    asked: ClassVar[int] = 0

    def probe_gradients(self) -> list[Reading]:
        type(self).asked += 1
        return self.host.probe_gradients()


def run(out: Path) -> Finished:
    prepared = small_run(
        f"defenses=[none, {{name: {CONTROL}, grad_mode: [full, bpda]}}]",
        "run.save=none",
        "data.size=32",
        attacks=("pgd:steps=2,step_size=1/255", "pgd:steps=12,step_size=1/255"),
    )

    def make_pool(setup: HostSetup) -> Probing:
        return Probing(Host(setup, restorer=prepared.restorer))

    return execute(prepared, make_pool, Notes(), Settings(out=str(out)))


def test_a_run_is_probed_once_and_its_checks_flag_what_is_broken(tmp_path: Path) -> None:
    finished = run(tmp_path / "run")
    asked = Probing.asked
    verdicts = {(one.check, one.cell is None): one.verdict for one in finished.checks}
    assert verdicts["23-known-broken", True] == "pass"
    flags = [one for one in finished.checks if one.check == "06-zero-gradient" and one.verdict == "fail"]
    assert len(flags) == 2  # both lengths of the attack on the control, in mode full
    short = [one.verdict for one in finished.checks if one.check == "16-converged-longer"]
    assert "warn" in short  # two steps flatter
    assert not [one for one in finished.checks if one.check == "05-gradient" and one.verdict == "fail"]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    modes = [(one["defense"], one["grad_mode"]) for one in environment["probes"]["gradients"]]
    assert modes == [("none", "full"), (CONTROL, "full"), (CONTROL, "bpda")]
    again = run(tmp_path / "run")
    assert (again.checks, Probing.asked) == (finished.checks, asked)


def test_a_host_says_why_a_victim_could_not_be_probed() -> None:
    prepared = small_run("data.size=32")

    class Broken:
        descriptor = prepared.restorer.descriptor

        def __call__(self, x_BCHW: Tensor) -> Tensor:
            raise ArithmeticError("an odd size\nand more")

        def to(self, device: str) -> Broken:
            return self

    (reading,) = make_host(prepared, Broken()).probe_gradients()
    assert (reading.defense, reading.failure) == ("none", "ArithmeticError: an odd size")
    assert failing(reading) == set()


def test_the_probe_of_a_host_is_deterministic() -> None:
    prepared = small_run("data.size=32", defenses=("none", "gaussian-noise"))
    readings = [replace(r, seconds=0.0) for _ in range(2) for r in make_host(prepared).probe_gradients()]
    assert readings[: len(readings) // 2] == readings[len(readings) // 2 :]
    assert Conv is not None
