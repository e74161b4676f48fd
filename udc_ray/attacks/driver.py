"""Steps ask/tell machines: every chain asks, waits for its answers, and is told, until it is done or halted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from udc_ray.attacks.batcher import Batcher, Seat
from udc_ray.attacks.memory import Memory
from udc_ray.attacks.oracle import ChainKey, Oracle, TargetSpent
from udc_ray.attacks.query import Machine, QueryAttack, QueryProblem, State
from udc_ray.pool import Ending

T = TypeVar("T")
MEMORY = "memory"
"""Where the memory of a chain stands in its state."""


@dataclass
class Halt:
    """Set to ``cut`` or ``save`` by whoever wants the chains to end before they are done."""

    ending: Ending | None = None


@dataclass(kw_only=True)
class Chain:
    """One machine on its way.

    Attributes:
        key: image id and restart.
        machine: the machine.
        goal: score from which on the image counts as a success.
        memory: answers that it does not ask for again; None where every candidate is sent.
        cut: it was ended before its own end: by a cap below its budget, or a halt.
    """

    key: ChainKey
    machine: Machine
    goal: float
    memory: Memory | None = None
    cut: bool = False

    def state(self) -> State:
        """What `start_chains` needs to go on, between two questions."""
        kept = {} if self.memory is None else {MEMORY: self.memory.state()}
        return {**self.machine.state(), **kept}


def start_chains(
    attack: QueryAttack,
    problems: Sequence[QueryProblem],
    states: Mapping[ChainKey, State] | None = None,
    *,
    remember: bool = False,
) -> list[Chain]:
    """One chain for every problem, from its saved state where there is one; not from beyond the budget.

    Args:
        attack: the attack.
        problems: one for every image and restart.
        states: what `Chain.state` gave.
        remember: do not send a candidate twice; for victims that draw no noise.
    """
    return [_start(attack, problem, states or {}, remember and not problem.random) for problem in problems]


def _start(attack: QueryAttack, problem: QueryProblem, states: Mapping[ChainKey, State], remember: bool) -> Chain:
    key = (problem.tape.image_ids[0], problem.tape.restart)
    state = dict(states[key]) if key in states else None
    known = None if state is None else state.pop(MEMORY, None)
    memory = Memory() if remember else None
    if memory is not None and known is not None:
        memory.load(known)
    machine = attack.machine(problem, state)
    if machine.asked > attack.budget:  # the budget was larger then
        return _start(attack, problem, {}, remember)
    return Chain(key=key, machine=machine, goal=problem.goal, memory=memory)


async def drive(chains: Sequence[Chain], oracle: Oracle, batcher: Batcher, halt: Halt | None = None) -> None:
    """Run chains to their end, all at once; the first error ends the others."""
    seats = [batcher.join() for _ in chains]  # all before the first asks, so that no batch leaves for want of them
    tasks = [
        asyncio.create_task(_run(chain, seat, oracle, halt or Halt()))
        for chain, seat in zip(chains, seats, strict=True)
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for seat in seats:
            seat.leave()


async def _run(chain: Chain, seat: Seat, oracle: Oracle, halt: Halt) -> None:
    while not chain.machine.done:
        ask = chain.machine.ask()
        if halt.ending is not None or not oracle.affords(chain.key, len(ask.x_KCHW)):
            chain.cut = True
            break
        try:
            answers = await oracle.answer(chain.key, ask, chain.goal)
        except TargetSpent:
            chain.cut = True
            break
        chain.machine.tell(answers)
    seat.leave()


def run_here(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end from code that does not await; in a notebook, whose loop is running already, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
