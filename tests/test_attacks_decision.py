"""HopSkipJump, RayS and GeoDA against half-spaces, whose nearest points are known, and their papers' schedules."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from doubles import image_tape, query_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from torch import Tensor

from udc_ray.attacks.decision import EventMachine
from udc_ray.attacks.geoda import GeoDA, GeoDAMachine
from udc_ray.attacks.hopskipjump import HopSkipJump, HopSkipJumpMachine
from udc_ray.attacks.query import EVENT, QueryAttack
from udc_ray.attacks.rays import RayS, RaySMachine
from udc_ray.states import decode_state, encode_state

Event = Callable[[Tensor], bool]
SHAPE = (3, 4, 4)
CASES = [(HopSkipJump, "l2"), (HopSkipJump, "linf"), (GeoDA, "l2"), (GeoDA, "linf"), (RayS, "linf")]
every_attack = pytest.mark.parametrize(("attack", "norm"), CASES)


def image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Far enough from the ends of the box, on the 8-bit grid."""
    levels = np.random.default_rng(seed).integers(100, 156, shape).astype(np.float32)
    return torch.from_numpy(levels / np.float32(255))


def half_space(x: Tensor, norm: str, distance: float, seed: int = 0) -> Event:
    """True from a plane on whose nearest point, in the given norm, lies so far from x (by Hoelder's inequality)."""
    normal = np.random.default_rng(seed).standard_normal(tuple(x.shape))
    dual = np.abs(normal).sum() if norm == "linf" else np.linalg.norm(normal)
    return lambda c: bool((normal * (c.double() - x.double()).numpy()).sum() >= distance * dual)


def never(_: Tensor) -> bool:
    return False


def drive(machine: Any, event: Event, at_most: int | None = None) -> list[Tensor]:
    """All candidates of a machine that is driven to its end, or until so many were asked."""
    seen: list[Tensor] = []
    while not machine.done and (at_most is None or len(seen) < at_most):
        ask = machine.ask()
        assert ask.wanted == EVENT and 1 <= len(ask.x_KCHW) <= machine.left
        seen += list(ask.x_KCHW)
        machine.tell([float(event(c)) for c in ask.x_KCHW])
    return seen


@pytest.mark.parametrize(
    ("attack", "norm", "budget", "excess"),
    [
        (HopSkipJump(norm="l2"), "l2", 2500, 0.03),
        (HopSkipJump(norm="linf"), "linf", 2500, 0.08),
        (GeoDA(norm="l2", sub_dim=4), "l2", 2500, 0.08),
        (GeoDA(norm="linf", sub_dim=4), "linf", 2500, 0.08),
        (RayS(), "linf", 1000, 0.005),
    ],
)
def test_the_nearest_point_of_a_half_space_is_found(attack: QueryAttack, norm: str, budget: int, excess: float) -> None:
    x, distance = image(), 0.06 if norm == "linf" else 0.35
    machine: Any = attack.model_copy(update={"budget": budget}).start(query_problem(x))
    event = half_space(x, norm, distance)
    drive(machine, event)
    best, value = machine.best()
    moved = (best.double() - x.double()).numpy()
    assert event(best) and value == machine.curve[-1][1]
    assert value == pytest.approx(np.abs(moved).max() if norm == "linf" else np.linalg.norm(moved), rel=1e-9)
    assert distance * (1 - 1e-5) <= value <= distance * (1 + excess)
    assert all(later < earlier for (_, earlier), (_, later) in zip(machine.curve, machine.curve[1:], strict=False))


def test_at_eight_bits_rays_finds_the_smallest_level() -> None:
    x = image()
    machine = RayS(depth=8).start(query_problem(x))
    drive(machine, half_space(x, "linf", 15.3 / 255))
    assert machine.best()[1] * 255 == pytest.approx(16, abs=1e-3)


@every_attack
def test_an_untouched_success_and_no_success_end_cleanly(attack: type[QueryAttack], norm: str) -> None:
    x = image()
    machine: Any = attack(norm=norm, budget=300).start(query_problem(x))
    assert len(drive(machine, lambda _: True)) == 1 and machine.stop_reason == "converged"
    assert machine.best()[0].equal(x) and machine.best()[1] == 0 and machine.curve == [(1, 0.0)]
    machine = attack(norm=norm, budget=300).start(query_problem(x))
    drive(machine, never)
    assert machine.stop_reason == "converged" and machine.asked < 300
    assert machine.best()[0].equal(x) and machine.best()[1] == math.inf and machine.curve == []


def gone(x: Tensor) -> Event:
    """A success in the first image that differs, and none ever after."""
    left = [1]
    return lambda c: not c.equal(x) and left.pop() == 1 if left else False


@every_attack
@settings(max_examples=20, deadline=None)
@given(
    budget=st.integers(1, 200),
    kind=st.sampled_from(["never", "always", "once", "coin", "plane"]),
    depth=st.sampled_from(["float", 8]),
    seed=st.integers(0, 1000),
)
def test_no_budget_is_exceeded_whatever_the_events(
    attack: type[QueryAttack], norm: str, budget: int, kind: str, depth: Any, seed: int
) -> None:
    x, coin = image(seed, (3, 5, 3)), np.random.default_rng(seed)
    events: dict[str, Event] = {
        "never": never,
        "always": lambda _: True,
        "once": gone(x),
        "coin": lambda _: bool(coin.random() < 0.5),
        "plane": half_space(x, norm, 0.1, seed),
    }
    machine: Any = attack(norm=norm, budget=budget, depth=depth).start(query_problem(x, image_tape(seed=seed)))
    seen = torch.stack(drive(machine, events[kind]))  # it asserts that every ask fits
    assert machine.done and len(seen) == machine.asked <= budget
    assert machine.stop_reason in ("budget", "converged")
    assert (machine.stop_reason == "budget") <= (machine.asked == budget)
    assert seen.min() >= 0 and seen.max() <= 1
    assert depth == "float" or ((seen.double() * 255).round() - seen.double() * 255).abs().max() < 1e-4
    assert [count for count, _ in machine.curve] == sorted({count for count, _ in machine.curve})


def jagged(share: float) -> Event:
    """Looks random, but is a function of the image: every branch of a search is taken sooner or later."""
    return lambda c: zlib.crc32(c.numpy().tobytes()) / 2**32 < share


@every_attack
@settings(max_examples=8, deadline=None)
@given(
    cut=st.integers(1, 219),
    kind=st.sampled_from(["plane", "often", "seldom", "never"]),
    depth=st.sampled_from(["float", 8]),
    seed=st.integers(0, 100),
)
def test_a_saved_machine_asks_what_an_uninterrupted_one_asks(
    attack: type[QueryAttack], norm: str, cut: int, kind: str, depth: Any, seed: int
) -> None:
    x = image(seed, SHAPE if kind == "plane" else (1, 3, 3))
    plane = half_space(x, norm, 0.05 if norm == "linf" else 0.3, seed)
    event = {"plane": plane, "often": jagged(0.5), "seldom": jagged(0.1), "never": never}[kind]
    problem = query_problem(x, image_tape(seed=seed))
    small: dict[str, Any] = {} if attack is RayS else {"tries": 30}
    whole: Any = attack(norm=norm, budget=220, depth=depth, **small).start(problem)
    seen = drive(whole, event)
    first: Any = attack(norm=norm, budget=cut, depth=depth, **small).start(problem)
    begun = drive(first, event)
    resumed: Any = attack(norm=norm, budget=220, depth=depth, **small).start(problem)
    resumed.load(decode_state(encode_state(first.state())))
    again = begun + drive(resumed, event)
    assert len(again) == len(seen) and all(a.equal(b) for a, b in zip(again, seen, strict=True))
    assert resumed.best()[0].equal(whole.best()[0])
    assert (resumed.curve, resumed.asked, resumed.stop_reason) == (whole.curve, whole.asked, whole.stop_reason)


@pytest.mark.parametrize("attack", [HopSkipJump(halvings=8, probes=20, budget=240), GeoDA(horizon=45, budget=240)])
def test_a_search_is_resumed_in_the_middle_of_a_loop(attack: QueryAttack) -> None:
    """Steps fail until they are small, ways until they are long: every place in these loops is cut once."""
    x = image()

    def event(machine: Any) -> Event:
        def happened(candidate: Tensor) -> bool:
            if machine.phase in ("step", "reach"):
                steps = machine.phase == "step"
                return bool(machine.turn % 2 and (machine.halved >= 3 if steps else machine.widened >= 2))
            return machine.phase == "start" or (machine.phase != "untouched" and jagged(0.5)(candidate))

        return happened

    def watched(machine: Any) -> list[Tensor]:
        return drive(machine, event(machine))

    problem = query_problem(x)
    whole: Any = attack.start(problem)
    seen = watched(whole)
    assert whole.turn > 2
    for cut in range(20, 240, 5):
        first: Any = attack.model_copy(update={"budget": cut}).start(problem)
        begun = watched(first)
        if first.phase not in ("step", "reach", "bisect"):
            continue
        resumed: Any = attack.start(problem)
        resumed.load(first.state())
        assert all(a.equal(b) for a, b in zip(begun + watched(resumed), seen, strict=True))


@every_attack
def test_a_state_that_is_taken_with_a_question_open_is_the_one_before_it(attack: type[QueryAttack], norm: str) -> None:
    x = image()
    machine: Any = attack(norm=norm, budget=150).start(query_problem(x))
    event = half_space(x, norm, 0.05 if norm == "linf" else 0.3)
    while not machine.done:
        before = encode_state(machine.state())
        ask = machine.ask()
        assert encode_state(machine.state()) == before and machine.ask() is ask
        machine.tell([float(event(c)) for c in ask.x_KCHW])


def test_only_an_end_that_was_named_stops_at_a_success() -> None:
    x = image()
    event = half_space(x, "linf", 0.05)
    runs = {}
    for enough in (None, 0.2):
        machine = RayS(stop="success", enough=enough, budget=1000).start(query_problem(x))
        drive(machine, event)
        runs[enough] = machine
    assert runs[None].stop_reason == "converged" and runs[None].best()[1] < 0.051
    assert runs[0.2].stop_reason == "success" and runs[0.2].asked < 30
    assert 0.05 < runs[0.2].best()[1] <= 0.2


def phases(machine: Any, event: Event) -> list[tuple[str, int, list[Tensor]]]:
    """Phase, turn and candidates of every ask."""
    found = []
    while not machine.done:
        phase, turn, ask = machine.phase, machine.turn, machine.ask()
        found.append((phase, turn, list(ask.x_KCHW)))
        machine.tell([float(event(c)) for c in ask.x_KCHW])
    return found


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hopskipjump_keeps_the_papers_schedule(norm: Any) -> None:
    x = image()
    machine = HopSkipJump(norm=norm, budget=800).start(query_problem(x))
    sizes: dict[int, list[float]] = {}
    expected = {1: 0.1}
    values = x.numel()
    event = half_space(x, norm, 0.05 if norm == "linf" else 0.3)
    while not machine.done:
        ask = machine.ask()
        if machine.phase == "probe":
            moves = (ask.x_KCHW.double() - machine.point_CHW.double()).flatten(1).norm(dim=1)
            sizes[machine.turn] = sizes.get(machine.turn, []) + moves.tolist()
            # theta * reach * sqrt(d) with theta = d^-1.5, and theta * reach * d with theta = d^-2
            expected.setdefault(machine.turn, machine.reach / values)
        if machine.phase == "step" and machine.halved == 0:
            moved = (machine.point_CHW.double() - x.double()).flatten()
            distance = float(moved.abs().max() if norm == "linf" else moved.norm())
            assert machine.step == pytest.approx(distance / math.sqrt(machine.turn), rel=1e-6)
        machine.tell([float(event(c)) for c in ask.x_KCHW])
    counts = [len(sizes[turn]) for turn in sorted(sizes)]
    assert counts[:4] == [100, 141, 173, 200]
    for turn, found in sizes.items():
        assert found == pytest.approx([expected[turn]] * len(found), rel=0.02)


@pytest.mark.parametrize(("norm", "power"), [("l2", 1.5), ("linf", 2.0)])
def test_hopskipjump_bisects_to_theta(norm: Any, power: float) -> None:
    x = image(0, (1, 3, 3))
    machine = HopSkipJump(norm=norm, gamma=2.0, budget=60).start(query_problem(x))
    drive(machine, half_space(x, norm, 0.1))
    assert machine.turn == 1
    width = (machine.high - machine.low) / (machine.reach if norm == "linf" else 1.0)
    assert 2 / 9**power / 2 <= width <= 2 / 9**power


def test_probes_stay_visible_in_float32_and_at_eight_bits() -> None:
    x = torch.full((3, 64, 64), 100 / 255)
    for depth, least in (("float", 2e-6), (8, 1 / 255)):
        machine = HopSkipJump(depth=depth, norm="linf", budget=10).start(query_problem(x))
        machine.turn, machine.reach = 2, 0.01
        assert machine.spread == pytest.approx(least * math.sqrt(x.numel()))


def test_a_step_that_never_succeeds_is_given_up_after_its_halvings() -> None:
    x = image()
    machine = HopSkipJump(budget=700, halvings=5).start(query_problem(x))
    probes = [0]

    def first_turn_only(candidate: Tensor) -> bool:
        if machine.phase == "probe":
            probes[0] += 1
            return probes[0] % 2 == 0
        return machine.phase in ("start", "bisect")

    asked = [(phase, turn) for phase, turn, _ in phases(machine, first_turn_only)]
    assert asked.count(("step", 1)) == asked.count(("step", 2)) == 6 and machine.turn >= 3
    assert machine.stop_reason == "budget"


def test_rays_flips_blocks_from_coarse_to_fine() -> None:
    x = torch.full((1, 1, 5), 0.5)
    machine = RayS(budget=100).start(query_problem(x))
    seen = drive(machine, never)
    wanted = [[0.5] * 5]  # the untouched image
    for width in (5, 3, 2, 1):
        for start in range(0, 5, width):
            wanted.append([0.0 if start <= n < start + width else 1.0 for n in range(5)])
    assert [c.flatten().tolist() for c in seen] == wanted
    assert machine.stop_reason == "converged"


def test_rays_gives_a_useless_flip_up_after_one_query() -> None:
    x = torch.full((1, 2, 2), 0.5)
    machine = RayS(budget=200, tolerance=1e-3).start(query_problem(x))
    drive(machine, lambda c: bool((c - x).max() <= -0.125))
    # the untouched image, a check and nine of the ten halvings of [0, 1], as 1/2 and 1 give the same black
    # image; then 2 + 4 flips of one query each
    assert machine.best()[1] == 0.125 and machine.stop_reason == "converged"
    assert machine.asked == 1 + 1 + 9 + 2 + 4


def test_geoda_splits_the_horizon_as_the_paper_says() -> None:
    attack = GeoDA(horizon=1000)
    counts = [attack.probes(turn) for turn in range(1, 7)]
    assert counts[0] >= 50 and sum(counts) == pytest.approx(1000 - 25 * 6, abs=4)
    for earlier, later in zip(counts, counts[1:], strict=False):
        assert later / earlier == pytest.approx(0.6 ** (-2 / 3), rel=0.02)
    assert attack.probes(7) / counts[-1] == pytest.approx(0.6 ** (-2 / 3), rel=0.02)
    assert GeoDA(horizon=1).probes(1) == 1 and GeoDA(horizon=10**6).probes(1) < 100
    assert attack.band(224, 224) == (75, 75) and attack.band(128, 256) == (43, 86) and attack.band(1, 2) == (1, 1)
    assert GeoDA(sub_dim=10).band(224, 6) == (10, 6)


def test_geoda_probes_in_low_frequencies_with_sigma() -> None:
    x = image(0, (3, 12, 16))
    machine = GeoDA(sub_dim=4, sigma=0.01, budget=400).start(query_problem(x))
    assert isinstance(machine, GeoDAMachine)
    coefficients = []
    event = half_space(x, "l2", 0.2)
    while not machine.done:
        ask = machine.ask()
        if machine.phase == "probe":
            moves = (ask.x_KCHW.double() - machine.point_CHW.double()).numpy()
            spectra = dctn(moves, axes=(2, 3), norm="ortho")
            coefficients.append(spectra[:, :, :4, :4].copy())
            spectra[:, :, :4, :4] = 0
            if ask.x_KCHW.min() > 0 and ask.x_KCHW.max() < 1:
                assert np.abs(spectra).max() < 1e-6
        machine.tell([float(event(c)) for c in ask.x_KCHW])
    assert np.concatenate(coefficients).std() == pytest.approx(0.01, rel=0.05)


def test_machines_differ_by_image_and_restart_alone() -> None:
    x = image()
    event = half_space(x, "l2", 0.3)

    def first(tape: Any) -> Tensor:
        machine = HopSkipJump(budget=120).start(query_problem(x, tape))
        return torch.stack(drive(machine, event))

    assert first(image_tape()).equal(first(image_tape()))
    others = [image_tape("b"), image_tape(restart=1), image_tape(seed=8)]
    assert all(not torch.equal(first(image_tape())[-1], first(tape)[-1]) for tape in others)


def test_they_declare_what_they_are() -> None:
    for attack in (HopSkipJump, GeoDA, RayS):
        assert attack.uses_event and attack.minimum_norm and attack().eps is None
    assert isinstance(RayS().start(query_problem(image())), RaySMachine)
    assert issubclass(HopSkipJumpMachine, EventMachine)
    with pytest.raises(ValueError, match="linf"):
        RayS(norm="l2")
