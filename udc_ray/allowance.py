"""Queries that a campaign may still spend, shared out before they are asked, so that no account is exceeded.

Every chain is given its worst case. What early successes leave over is shared out in the next round,
so the outcome does not depend on how many hosts there are, which of them is faster, or which images share a unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from udc_ray.attacks.query import QueryAttack
from udc_ray.plan import Plan, Unit
from udc_ray.records import Record

Triple = tuple[str, str, int]
"""Cell, image and restart: what queries are counted for."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Hard bounds on queries; None is no bound.

    Attributes:
        total: of the whole campaign.
        per_cell: of every cell.
        per_target: of every victim (model and defence).
    """

    total: int | None = None
    per_cell: int | None = None
    per_target: int | None = None

    @property
    def any(self) -> bool:
        """Whether anything is bounded."""
        return any(bound is not None for bound in (self.total, self.per_cell, self.per_target))


def spent_queries(records: Iterable[Record]) -> dict[Triple, int]:
    """Queries of every chain, under the cell that they were asked for and under each that shares its images."""
    spent: dict[Triple, int] = {}
    for record in records:
        if record.queries:
            key = record.key[:3]
            spent[key] = max(spent.get(key, 0), record.queries)
    return spent


class Allowance:
    """What is left of the accounts.

    Args:
        plan: which cell attacks which victim.
        limits: the bounds.
        spent: queries asked so far, as `spent_queries` counts them.
    """

    def __init__(self, plan: Plan, limits: Limits, spent: Mapping[Triple, int]) -> None:
        self.plan, self.limits = plan, limits
        self._victims = {unit.craft_cell: unit.victim for unit in plan.units(("",), 1)}
        self.spent = {chain: asked for chain, asked in spent.items() if chain[0] in self._victims}
        self._by_cell: Counter[str] = Counter()
        for (cell, _, _), asked in self.spent.items():
            self._by_cell[cell] += asked

    def share_out(self, units: Sequence[Unit]) -> list[Unit]:
        """The units with what each of their chains may ask; images that are left with nothing are left out."""
        if not self.limits.any:
            return list(units)
        shares = self._shares({chain: need for unit in units for chain, need in self._needs(unit).items()})
        return [granted for unit in units if (granted := self._granted(unit, shares)) is not None]

    def _needs(self, unit: Unit) -> dict[Triple, int]:
        """Queries that each chain of a unit could still ask."""
        attack = self.plan.attacks[unit.attack].attack
        if not isinstance(attack, QueryAttack):
            return {}
        chains = [(unit.craft_cell, i, restart) for i in unit.image_ids for restart in range(attack.restarts)]
        return {chain: max(0, attack.budget - self.spent.get(chain, 0)) for chain in chains}

    def _shares(self, needs: Mapping[Triple, int]) -> dict[Triple, int]:
        """Queries for each chain: evenly by cell, then by chain, whichever units they are in."""
        by_cell: dict[str, dict[Triple, int]] = {cell: {} for cell in self._victims}
        for chain in sorted(needs):
            by_cell[chain[0]][chain] = needs[chain]
        grants = {cell: sum(chains.values()) for cell, chains in by_cell.items()}
        for cell in grants:
            self._bound(grants, [cell], self.limits.per_cell)
        for victim in dict.fromkeys(self._victims.values()):
            self._bound(grants, [cell for cell in grants if self._victims[cell] == victim], self.limits.per_target)
        self._bound(grants, list(grants), self.limits.total)
        shares: dict[Triple, int] = {}
        for cell, chains in by_cell.items():
            shares |= zip(chains, even_shares(grants[cell], list(chains.values())), strict=True)
        return shares

    def _bound(self, grants: dict[str, int], cells: list[str], bound: int | None) -> None:
        """Cut the grants of the cells of an account down to what is left of it."""
        if bound is not None:
            room = max(0, bound - sum(self._by_cell[cell] for cell in cells))
            grants |= zip(cells, even_shares(room, [grants[cell] for cell in cells]), strict=True)

    def _granted(self, unit: Unit, shares: Mapping[Triple, int]) -> Unit | None:
        needs = self._needs(unit)
        if all(shares[chain] == need for chain, need in needs.items()):
            return unit
        hungry = {chain[1] for chain, need in needs.items() if need}
        served = {chain[1] for chain in needs if shares[chain]}
        images = tuple(image for image in unit.image_ids if image in served or image not in hungry)
        caps = tuple(self.spent.get(chain, 0) + shares[chain] for chain in needs if chain[1] in images)
        return replace(unit, image_ids=images, caps=caps) if images else None


def even_shares(amount: int, needs: Sequence[int]) -> list[int]:
    """Share an amount out as evenly as the needs allow, the first ones getting what does not divide."""
    shares = [0] * len(needs)
    while amount > 0:
        hungry = [n for n, need in enumerate(needs) if shares[n] < need]
        if not hungry:
            break
        portion = max(1, amount // len(hungry))
        for n in hungry:
            given = min(portion, needs[n] - shares[n], amount)
            shares[n] += given
            amount -= given
    return shares
