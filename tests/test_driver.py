"""The oracle's counts, and chains on their way, with machines whose every step is known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from doubles import image_tape, images, query_problem, restorer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from udc_ray.attacks.base import StopReason
from udc_ray.attacks.batcher import Batcher
from udc_ray.attacks.driver import Chain, Halt, drive, run_here, start_chains
from udc_ray.attacks.oracle import BudgetExceeded, ChainKey, Oracle, Row, ScoreRequest, TargetSpent
from udc_ray.attacks.query import EVENT, SCALAR, Answer, Ask, QueryAttack, QueryProblem, State, Wanted
from udc_ray.attacks.simba import SimBA
from udc_ray.attacks.square import Square
from udc_ray.tape import Tape

SHAPE = (3, 2, 2)
LIKE = Row(image_id="", cell="cell", objective="mse")


@dataclass
class Counter:
    """Asks the given numbers of candidates in turn; each candidate is the number of its query."""

    asks: list[int]
    asked: int = 0
    stop_reason: StopReason = "budget"
    curve: list[tuple[int, float]] = field(default_factory=list)
    told: list[list[Answer]] = field(default_factory=list)
    wanted: Wanted = SCALAR
    done: bool = False

    def __post_init__(self) -> None:
        self.done = not self.asks

    def ask(self) -> Ask:
        candidates = [torch.full(SHAPE, float(self.asked + n)) for n in range(self.asks[0])]
        return Ask(x_KCHW=torch.stack(candidates), wanted=self.wanted)

    def tell(self, answers: Any) -> None:
        assert len(answers) == self.asks.pop(0)
        self.asked += len(answers)
        self.told.append(list(answers))
        self.done = not self.asks

    def best(self) -> tuple[Tensor, float]:
        return torch.zeros(SHAPE), math.inf

    def state(self) -> State:
        return {"asks": list(self.asks), "asked": self.asked}

    def load(self, state: State) -> None:
        self.asks, self.asked, self.done = list(state["asks"]), state["asked"], not state["asks"]


@dataclass
class Target:
    """Scores a candidate by its own image and number, and remembers the rows."""

    rows: list[Row] = field(default_factory=list)
    victims: set[int] = field(default_factory=set)

    async def __call__(self, request: ScoreRequest) -> list[Answer]:
        assert len(request.rows) == len(request.x_NCHW)
        self.rows += request.rows
        self.victims.add(request.victim)
        return [1000 * int(r.image_id) + float(x.mean()) for r, x in zip(request.rows, request.x_NCHW, strict=True)]


def chains_of(*asks: list[int], goal: float = 1.0) -> list[Chain]:
    return [Chain(key=(str(n), 0), machine=Counter(list(a)), goal=goal) for n, a in enumerate(asks)]


def run(
    chains: list[Chain],
    slots: int,
    budget: int = 10_000,
    caps: Mapping[ChainKey, int] | None = None,
    halt: Halt | None = None,
) -> tuple[Oracle, Target]:
    target = Target()
    batcher = Batcher(target, slots)
    spent = {chain.key: chain.machine.asked for chain in chains}
    oracle = Oracle(batcher.send, 5, LIKE, budget, caps=caps, spent=spent)
    run_here(drive(chains, oracle, batcher, halt))
    assert target.victims <= {5}
    return oracle, target


def told(chain: Chain) -> list[list[Answer]]:
    assert isinstance(chain.machine, Counter)
    return chain.machine.told


ASKS = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=7)


@given(ASKS, st.integers(1, 5))
def test_every_chain_gets_its_own_answers_and_an_exact_count(asks: list[list[int]], slots: int) -> None:
    chains = chains_of(*asks)
    oracle, target = run(chains, slots)
    for n, chain in enumerate(chains):
        flat = [answer for answers in told(chain) for answer in answers]
        assert flat == [1000 * n + q for q in range(sum(asks[n]))]
        assert [len(answers) for answers in told(chain)] == asks[n]
        assert oracle.spent.get(chain.key, 0) == sum(asks[n]) and not chain.cut
    assert len(target.rows) == sum(map(sum, asks)), "a padded slot was counted, or a query lost"
    steps = {(row.image_id, row.step) for row in target.rows}
    assert len(steps) == len(target.rows), "two queries of a chain share a number"


def test_a_row_says_whose_it_is_and_what_is_wanted() -> None:
    chains = chains_of([2], [1], goal=0.25)
    tiles = Wanted(kind="tile-sums", tile=8, against="clean")
    for chain, wanted in zip(chains, (tiles, EVENT), strict=True):
        assert isinstance(chain.machine, Counter)
        chain.machine.wanted = wanted
    _, target = run(chains, 3)
    common = {"restart": 0, "cell": "cell", "objective": "mse", "goal": 0.25}
    assert target.rows == [
        Row(image_id="0", step=0, wanted=tiles, **common),  # type: ignore[arg-type]  # fields of any type
        Row(image_id="0", step=1, wanted=tiles, **common),  # type: ignore[arg-type]  # fields of any type
        Row(image_id="1", step=0, wanted=EVENT, **common),  # type: ignore[arg-type]  # fields of any type
    ]


@given(ASKS, st.integers(1, 5), st.integers(0, 12), st.dictionaries(st.integers(0, 6), st.integers(0, 12)))
def test_budgets_and_caps_hold_and_what_they_cut_is_said(
    asks: list[list[int]], slots: int, budget: int, bounds: dict[int, int]
) -> None:
    chains = chains_of(*asks)
    oracle, target = run(chains, slots, budget, caps={(str(n), 0): cap for n, cap in bounds.items()})
    for n, chain in enumerate(chains):
        allowed, afforded = min(budget, bounds.get(n, budget)), 0
        for count in asks[n]:
            if afforded + count > allowed:
                break
            afforded += count
        asked = sum(row.image_id == str(n) for row in target.rows)
        assert asked == oracle.spent.get(chain.key, 0) == chain.machine.asked == afforded <= allowed
        assert chain.cut == (afforded < sum(asks[n]))


def test_the_query_over_budget_is_never_sent() -> None:
    async def beyond(oracle: Oracle) -> None:
        ask = Ask(x_KCHW=torch.zeros(1, *SHAPE))
        await oracle.answer(("0", 0), ask, 1.0)
        for count, affordable in ((1, True), (2, False)):
            assert oracle.affords(("1", 0), count) == affordable
        with pytest.raises(BudgetExceeded, match=r"\('0', 0\) asks 2 queries of 1"):
            await oracle.answer(("0", 0), ask, 1.0)
        with pytest.raises(BudgetExceeded):
            await oracle.answer(("1", 0), Ask(x_KCHW=torch.zeros(2, *SHAPE)), 1.0)

    target = Target()
    oracle = Oracle(Batcher(target, 1).send, 5, LIKE, 1)
    run_here(beyond(oracle))
    assert [row.image_id for row in target.rows] == ["0"] and oracle.spent == {("0", 0): 1}


def test_restarts_of_one_image_are_chains_of_their_own() -> None:
    chains = [Chain(key=("0", restart), machine=Counter([1, 1]), goal=1.0) for restart in range(2)]
    oracle, target = run(chains, 2, budget=2)
    assert oracle.spent == {("0", 0): 2, ("0", 1): 2}
    assert sorted((row.restart, row.step) for row in target.rows) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_chain_that_was_begun_earlier_goes_on_counting() -> None:
    (chain,) = chains_of([3, 2])
    chain.machine.asked = 4
    oracle, target = run([chain], 2, budget=9)
    assert [row.step for row in target.rows] == [4, 5, 6, 7, 8] and oracle.spent == {("0", 0): 9}
    assert told(chain)[0] == [4, 5, 6]


@pytest.mark.parametrize("ending", ["cut", "save"])
@pytest.mark.parametrize("after", range(0, 9, 2))
def test_a_halt_ends_chains_between_two_questions(ending: Any, after: int) -> None:
    halt, target = Halt(), Target()
    seen: list[Row] = []

    async def score(request: ScoreRequest) -> list[Answer]:
        seen.extend(request.rows)
        if len(seen) > after:
            halt.ending = ending
        return await target(request)

    chains = chains_of([2] * 3, [1] * 6, [1])
    batcher = Batcher(score, 2)
    oracle = Oracle(batcher.send, 5, LIKE, 100)
    run_here(drive(chains, oracle, batcher, halt))
    for chain in chains:
        assert chain.machine.asked == oracle.spent.get(chain.key, 0), "a chain was ended while it waited"
        assert chain.cut == (not chain.machine.done)
    assert any(chain.cut for chain in chains)
    assert sum(oracle.spent.values()) == len(seen) <= after + 8


def test_a_halt_before_the_first_question_asks_nothing() -> None:
    chains = chains_of([1], [])
    _, target = run(chains, 2, halt=Halt(ending="cut"))
    assert target.rows == [] and [chain.cut for chain in chains] == [True, False]


def test_a_failure_ends_its_companions_and_leaves_the_batcher_to_others() -> None:
    class Fragile(Counter):
        def tell(self, answers: Any) -> None:
            if self.asked == 2:
                raise ArithmeticError("a machine broke")
            super().tell(answers)

    async def both() -> list[list[Answer]]:
        batcher = Batcher(Target(), 3)
        broken = [
            Chain(key=("7", 0), machine=Fragile([1] * 9), goal=1.0),
            Chain(key=("8", 0), machine=Counter([1] * 900), goal=1.0),
        ]
        sound = chains_of([1] * 30, [2] * 9)
        others = asyncio.create_task(drive(sound, Oracle(batcher.send, 5, LIKE, 99), batcher))
        with pytest.raises(ArithmeticError, match="a machine broke"):
            await drive(broken, Oracle(batcher.send, 5, LIKE, 999), batcher)
        assert broken[1].machine.asked < 20
        await asyncio.wait_for(others, 20)
        return [answers for chain in sound for answers in told(chain)]

    assert len(run_here(both())) == 39


class Starting(QueryAttack):
    """Remembers how its machines were begun."""

    name: ClassVar[str] = "starting"
    seen: ClassVar[list[Any]] = []

    def start(self, problem: QueryProblem) -> Counter:
        self.seen.append((problem.tape.image_ids, problem.tape.restart, problem.goal, problem.x_CHW.shape))
        return Counter([1])


def test_one_chain_for_every_problem_from_its_state() -> None:
    Starting.seen.clear()
    pictures = {"a": torch.zeros(SHAPE), "b": torch.zeros(3, 4, 2)}
    problems = [
        query_problem(pictures[i], image_tape(i, restart=restart), goal=0.1) for i in pictures for restart in range(2)
    ]
    states: dict[ChainKey, State] = {("a", 1): {"asks": [2, 3], "asked": 7}, ("z", 0): {}}
    chains = start_chains(Starting(budget=20), problems, states)
    assert [c.key for c in chains] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [c.machine.asked for c in chains] == [0, 7, 0, 0] and [c.goal for c in chains] == [0.1] * 4
    assert Starting.seen[1] == (("a",), 1, 0.1, SHAPE) and Starting.seen[2] == (("b",), 0, 0.1, (3, 4, 2))


def test_a_state_from_beyond_the_budget_is_let_go() -> None:
    problem = query_problem(torch.zeros(SHAPE))
    states: dict[ChainKey, State] = {("image0", 0): {"asks": [1], "asked": 7}}
    for budget, asked in ((8, 7), (7, 7), (6, 0)):
        (chain,) = start_chains(Starting(budget=budget), [problem], states)
        assert chain.machine.asked == asked


@pytest.mark.parametrize("attack", [Square(budget=12), SimBA(budget=12, restarts=2)], ids=lambda a: a.name)
def test_what_is_found_depends_on_neither_slots_nor_order(attack: QueryAttack) -> None:
    x_BCHW, model = images(3, 3, 16, 16), restorer()
    pictures = {f"i{b}": x_BCHW[b] for b in range(3)}

    async def score(request: ScoreRequest) -> list[Answer]:
        with torch.no_grad():
            return [
                float((model(x[None])[0] - pictures[row.image_id]).square().mean())
                for row, x in zip(request.rows, request.x_NCHW, strict=True)
            ]

    def found(order: list[str], slots: int, in_flight: int) -> dict[ChainKey, Any]:
        tapes = [
            Tape(seed=1, image_ids=(i,), stream="attack", restart=r) for i in order for r in range(attack.restarts)
        ]
        problems = [query_problem(pictures[tape.image_ids[0]], tape, goal=math.inf) for tape in tapes]
        chains, batcher = start_chains(attack, problems), Batcher(score, slots, in_flight)
        oracle = Oracle(batcher.send, 0, LIKE, attack.budget)
        run_here(drive(chains, oracle, batcher))
        assert set(oracle.spent.values()) == {attack.budget}
        return {c.key: (c.machine.best()[0].numpy().tobytes(), c.machine.curve) for c in chains}

    reference = found(["i0", "i1", "i2"], 1, 1)
    assert len({value[0] for value in reference.values()}) == len(reference)
    assert found(["i2", "i0", "i1"], 4, 2) == reference
    assert found(["i1", "i2", "i0"], 2, 3) == reference


def test_it_runs_in_a_loop_that_is_running_already() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 7

    async def notebook() -> int:
        return run_here(inner())

    assert run_here(inner()) == asyncio.run(notebook()) == 7


def test_arrays_of_answers_pass_through() -> None:
    sums = np.arange(6.0).reshape(2, 3)

    async def score(request: ScoreRequest) -> list[Answer]:
        return [sums + row.step for row in request.rows]

    chains, batcher = chains_of([2]), Batcher(score, 4)
    run_here(drive(chains, Oracle(batcher.send, 5, LIKE, 2), batcher))
    assert [np.asarray(answer).tolist() for answer in told(chains[0])[0]] == [sums.tolist(), (sums + 1).tolist()]


def test_a_target_that_has_no_queries_left_cuts_its_chains() -> None:
    left = [5]

    async def score(request: ScoreRequest) -> list[Answer]:
        if left[0] < len(request.rows):
            raise TargetSpent("no queries are left")
        left[0] -= len(request.rows)
        return [0.0 for _ in request.rows]

    chains, batcher = chains_of([1] * 4, [1] * 4), Batcher(score, 1)
    run_here(drive(chains, Oracle(batcher.send, 5, LIKE, 9), batcher))
    assert sum(chain.machine.asked for chain in chains) == 5
    assert any(chain.cut for chain in chains) and all(chain.cut or chain.machine.done for chain in chains)
