"""Query units: many chains asking at once, wherever there is a CPU; only candidates travel to the host."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from udc_ray.attacks.batcher import Batcher
from udc_ray.attacks.driver import Chain, Halt, drive, start_chains
from udc_ray.attacks.objectives import get_objective
from udc_ray.attacks.oracle import ChainKey, Oracle, Row
from udc_ray.attacks.query import QueryAttack, QueryProblem, State
from udc_ray.crafted import Crafted
from udc_ray.crafting import Goals
from udc_ray.metered.model import endpoint_of
from udc_ray.plan import Unit
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup
from udc_ray.tape import Tape

FindState = Callable[[str, ChainKey], State | None]
"""The saved state of a chain of a cell, or None."""


class HostCalls(Protocol):
    """What stepping needs of a host, here or elsewhere."""

    def goals(self, unit: Unit) -> Awaitable[Goals]:
        """See `Host.goals`."""
        ...

    def finish(self, unit: Unit, crafted: list[Crafted]) -> Awaitable[UnitResult]:
        """See `Host.finish`."""
        ...


def no_state(cell: str, key: ChainKey) -> State | None:
    """Every chain begins anew."""
    return None


@dataclass(kw_only=True)
class Stepper:
    """Steps units against one host.

    Attributes:
        setup: the run.
        host: the host.
        batcher: merges the candidates of all units that are stepped at once.
        find_state: saved states of chains.
        halt: ends all chains early.
    """

    setup: HostSetup
    host: HostCalls
    batcher: Batcher
    find_state: FindState = no_state
    halt: Halt = field(default_factory=Halt)
    lost: dict[str, int] = field(default_factory=dict)
    """Queries that had been answered to units that failed, by unit key; they will be asked again."""
    _under_way: dict[str, tuple[Unit, list[Chain]]] = field(default_factory=dict)

    async def step(self, unit: Unit) -> UnitResult:
        """Attack and score a unit.

        Returns:
            Its records, with the states of chains that a budget ended. Where all was to be saved only, the
            states alone.
        """
        started, attack = time.monotonic(), query_attack(self.setup, unit)
        goals = await self.host.goals(unit)
        remember = self.setup.spec.run.memory
        chains = start_chains(attack, self._problems(unit, goals), self._states(unit, attack), remember=remember)
        asked_before = {chain.key: chain.machine.asked for chain in chains}
        objective = attack.objective or self.setup.spec.objective
        oracle = Oracle(
            self.batcher.send,
            unit.victim,
            Row(image_id="", cell=unit.craft_cell, objective=objective),
            attack.budget,
            caps=_caps(unit, attack),
            spent=asked_before,
            memories={chain.key: chain.memory for chain in chains if chain.memory is not None},
        )
        self._under_way[unit.key] = (unit, chains)
        try:
            await drive(chains, oracle, self.batcher, self.halt)
        except Exception:
            self.lost[unit.key] = sum(chain.machine.asked - asked_before[chain.key] for chain in chains)
            raise
        finally:
            del self._under_way[unit.key]
        if self.halt.ending == "save" and any(chain.cut for chain in chains):
            return UnitResult(records=[], states=_states(chains), chain_cell=unit.craft_cell)
        begun = [chain for chain in chains if chain.machine.asked]  # one cut before its first query shows nothing
        seconds = (time.monotonic() - started) / max(1, len(begun))
        crafted = [_crafted(chain, oracle, seconds) for chain in begun]
        result = await self.host.finish(unit, crafted) if crafted else UnitResult(records=[])
        return replace(result, states=_open(chains), chain_cell=unit.craft_cell)

    def snapshot(self) -> list[UnitResult]:
        """States of all chains that are under way, between two of their questions."""
        return [
            UnitResult(records=[], states=_states(chains), chain_cell=unit.craft_cell)
            for unit, chains in self._under_way.values()
        ]

    def _problems(self, unit: Unit, goals: Goals) -> list[QueryProblem]:
        attack = query_attack(self.setup, unit)
        purifier, endpoint = self.setup.plan.defences[unit.victim].purifier, endpoint_of(self.setup.spec)
        additive = get_objective(attack.objective or self.setup.spec.objective).additive
        return [
            QueryProblem(
                x_CHW=self.setup.dataset.load(image_id).degraded,
                tape=Tape(seed=self.setup.spec.seed, image_ids=(image_id,), stream="attack", restart=restart),
                goal=goals[image_id][1],
                random=(purifier is not None and purifier.random) or (endpoint is not None and endpoint.random),
                additive=additive,
            )
            for image_id in unit.image_ids
            for restart in range(attack.restarts)
        ]

    def _states(self, unit: Unit, attack: QueryAttack) -> dict[ChainKey, State]:
        keys = chain_keys(unit, attack)
        found = {key: self.find_state(unit.craft_cell, key) for key in keys}
        return {key: state for key, state in found.items() if state is not None}


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """How a host is kept busy.

    Attributes:
        slots: candidates of a batch.
        in_flight: batches that are under way at once.
    """

    slots: int
    in_flight: int

    @property
    def chains(self) -> int:
        """Chains that should be held: they fill what is under way and one batch to fill up from, and as many
        again, as the chains of one unit do not end together.
        """
        return 2 * self.slots * (self.in_flight + 1)


def lanes_of(setup: HostSetup) -> Lanes:
    """Two full batches for models of our own; for a metered target as many single images as it takes at once."""
    endpoint = endpoint_of(setup.spec)
    if endpoint is None:
        return Lanes(slots=setup.resolved.micro_batch, in_flight=2)
    return Lanes(slots=1, in_flight=endpoint.concurrency)


def query_attack(setup: HostSetup, unit: Unit) -> QueryAttack:
    """The attack of a query unit."""
    attack = setup.plan.attacks[unit.attack].attack
    if not isinstance(attack, QueryAttack):
        raise TypeError(f"{attack.name} is no query attack")
    return attack


def is_stepped(setup: HostSetup, unit: Unit) -> bool:
    """Whether a unit is stepped from outside the host."""
    return isinstance(setup.plan.attacks[unit.attack].attack, QueryAttack)


def chain_keys(unit: Unit, attack: QueryAttack) -> list[ChainKey]:
    """The chains of a unit, in the order of its caps."""
    return [(image_id, restart) for image_id in unit.image_ids for restart in range(attack.restarts)]


def _caps(unit: Unit, attack: QueryAttack) -> dict[ChainKey, int]:
    return dict(zip(chain_keys(unit, attack), unit.caps, strict=True)) if unit.caps else {}


def _states(chains: Sequence[Chain]) -> dict[ChainKey, State]:
    """States of chains, between two of their questions."""
    return {chain.key: chain.state() for chain in chains}


def _open(chains: Sequence[Chain]) -> dict[ChainKey, State]:
    """States of the images that could go on; those of all their restarts, so that none is asked again."""
    images = {c.key[0] for c in chains if c.cut or c.machine.stop_reason == "budget"}
    return _states([c for c in chains if c.key[0] in images])


def _crafted(chain: Chain, oracle: Oracle, seconds: float) -> Crafted:
    x_adv_CHW, _ = chain.machine.best()
    image_id, restart = chain.key
    asked = oracle.spent.get(chain.key, 0)
    return Crafted(
        image_id=image_id,
        restart=restart,
        x_adv_CHW=x_adv_CHW,
        queries=asked,
        grad_evals=0,
        stop_reason="budget" if chain.cut else chain.machine.stop_reason,
        seconds=seconds,
        curve=chain.machine.curve,
        allowed=asked if chain.cut else None,
        from_memory=None if chain.memory is None else chain.memory.hits,
    )
