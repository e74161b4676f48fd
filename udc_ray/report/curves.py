"""What the curves of query attacks say: quality left at a number of queries, and queries to a damage. Pure.

A curve holds (queries asked, best value so far) at every improvement of one image in one restart.
Readings follow the records: per image the worst over restarts, and every restart may ask as much.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from udc_ray.attacks.query import QueryAttack
from udc_ray.campaign import FIND_EPS
from udc_ray.metrics.protocols import PROTOCOLS, PSNR_CAP
from udc_ray.metrics.statistics import CellRecords, PerImage, group_cells
from udc_ray.plan import read_attack
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.records import Record
from udc_ray.spec import RunSpec, Success
from udc_ray.tasks import task_of
from udc_ray.tasks.classification import MISSED

Curve = Sequence[tuple[int, float]]
"""(queries asked, best value), queries growing."""

READ_AT = (100, 300, 1000, 3000, 10_000)
"""Budgets at which every curve is read, as far as they lie below its own."""
DROPS_DB = (1.0, 3.0, 6.0)
"""Losses of PSNR, in dB, to which the queries are counted."""

SEEN = "as the attacker saw it, no evaluation draws"


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What the values of a cell's curves are.

    Attributes:
        unit: ``psnr``: the value is a mean squared error, read as PSNR in dB. ``distance``: the norm of the
            closest success of a minimum-norm attack, or the smallest eps that harmed. ``margin``: from 0 on the
            class is missed; read as 1.0 while it is found, else 0.0. ``score``: any other.
        metric: name of the reading: ``psnr_adv`` or ``score_adv`` where it is what the evaluation measures,
            else ``psnr_seen``, ``accuracy_seen`` or ``score_seen``; for distances the norm, or ``eps``.
        anchored: whether the value can be compared with the record's clean PSNR.
        note: what must be read with the number.
    """

    unit: Literal["psnr", "distance", "margin", "score"]
    metric: str
    anchored: bool = False
    note: str = ""

    @property
    def seen(self) -> bool:
        """Whether the attacker's own view may differ from what the evaluation measures."""
        return self.metric.endswith("_seen")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The search on one image in one restart.

    Attributes:
        allowed: queries that it was allowed; a campaign may end below the spec's budget.
        ended: it stopped by itself, so that more queries would have changed nothing.
        clean: quality of the victim's answer to the untouched image, mean over samples: PSNR, or 1.0 for a
            class that is found.
        judged: whether it is known if the image was harmed; not where its class was missed before.
    """

    image_id: str
    restart: int
    allowed: int
    ended: bool
    clean: float | None
    judged: bool
    curve: Curve

    def known_at(self, queries: int) -> bool:
        """Whether it was not cut short before so many queries."""
        return self.ended or self.allowed >= queries


@dataclass(frozen=True, kw_only=True)
class CellCurves:
    """All curves of one cell, with what they mean.

    Attributes:
        cell: its records.
        meaning: what the values are.
        read_at: budgets of the readings, the cell's own last.
        chains: one for every image and restart that did not fail.
        success: the run's success event.
    """

    cell: CellRecords
    meaning: Meaning
    read_at: tuple[int, ...]
    chains: tuple[Chain, ...]
    success: Success

    @property
    def restarts(self) -> int:
        """Restarts of the attack."""
        return len({c.restart for c in self.chains})

    def at(self, queries: int) -> PerImage:
        """Best of every image after so many queries: PSNR in dB, class found (1.0) or missed, distance or score.

        Images with a restart that was cut short before are left out, except at the last budget, where they
        stand as they were; and so are minimum-norm searches without a success.
        """
        found: PerImage = {}
        short = self.cut_short(queries) if queries < self.read_at[-1] else frozenset()
        pick = max if self.meaning.unit == "score" else min
        for chain in self.chains:
            value = self._value(chain, queries)
            # An image whose class was missed before needs no perturbation: no distance says anything of it.
            counts = chain.image_id not in short and (chain.judged or self.meaning.unit != "distance")
            if value is not None and counts:
                found[chain.image_id] = pick(value, found.get(chain.image_id, value))
        return found

    def cut_short(self, queries: int) -> frozenset[str]:
        """Images with a restart that was not allowed so many queries."""
        return frozenset(c.image_id for c in self.chains if not c.known_at(queries))

    def to_drop(self, drop_db: float) -> dict[str, int | None] | None:
        """Queries to a loss of so many dB from the clean PSNR; None where that is not defined."""
        if not self.meaning.anchored or self.meaning.unit != "psnr":
            return None
        return self._times(lambda chain: lambda v: _drop(chain, v) >= drop_db)

    def to_success(self) -> dict[str, int | None] | None:
        """Queries to the first success by the run's event; None where the curve does not show it."""
        unit, below = self.meaning.unit, self.success.psnr_below
        if unit == "distance":
            return self._times(lambda _: lambda v: True)
        if unit == "margin":
            return self._times(lambda _: lambda v: v >= MISSED)
        if unit == "psnr" and below is not None and (self.meaning.anchored or not self._has_truth):
            return self._times(lambda _: lambda v: psnr(v) <= below)
        return self.to_drop(self.success.drop_db) if below is None else None

    @property
    def _has_truth(self) -> bool:
        return any(c.clean is not None for c in self.chains)

    def _value(self, chain: Chain, queries: int) -> float | None:
        value, unit = best_at(chain.curve, queries), self.meaning.unit
        if unit not in {"psnr", "margin"}:
            return value
        if value is None:  # before the first candidate that was scored as a whole the untouched image is all there is
            return chain.clean if self.meaning.anchored else None
        return psnr(value) if unit == "psnr" else float(value < MISSED)

    def _times(self, event: Callable[[Chain], Callable[[float], bool]]) -> dict[str, int | None]:
        times: dict[str, int | None] = {}
        for chain in (c for c in self.chains if c.judged):
            time, before = first_within(chain.curve, event(chain)), times.get(chain.image_id)
            times[chain.image_id] = before if time is None else time if before is None else min(time, before)
        return times


def psnr(score: float) -> float:
    """PSNR in dB of a mean squared error on range 1, at most the cap that all PSNR here has."""
    return min(PSNR_CAP, -10 * math.log10(score)) if score > 0 else PSNR_CAP


def best_at(curve: Curve, queries: int) -> float | None:
    """Best value after so many queries; None before the first."""
    place = bisect_right(curve, queries, key=lambda point: point[0])
    return curve[place - 1][1] if place else None


def first_within(curve: Curve, reached: Callable[[float], bool]) -> int | None:
    """Queries asked when a value first satisfied a condition; None if none did."""
    return next((queries for queries, value in curve if reached(value)), None)


def budgets_read(budget: int, others: Iterable[int] = ()) -> tuple[int, ...]:
    """Budgets at which curves are read, ascending: the usual and given ones below the budget, and itself."""
    return tuple(sorted({q for q in (*READ_AT, *others) if 0 < q < budget} | {budget}))


def cell_curves(
    records: Iterable[Record], curves: Mapping[str, Curve], spec: RunSpec, read_at: Sequence[int] = ()
) -> dict[str, CellCurves]:
    """Curves by cell id, of the cells that have any.

    Args:
        records: the run's records, those of failed units included.
        curves: ``cell/image/restart`` to curve, as `RunDirectory.curves` gives them.
        spec: says which victims are random, and at which smaller budgets an attack is read.
        read_at: further budgets to read at.
    """
    found = {}
    for cell in group_cells(records):
        chains = tuple(_chains(cell, curves))
        if chains and cell.adaptive:
            budget = max(c.allowed for c in chains)
            found[cell.head.cell] = CellCurves(
                cell=cell,
                meaning=meaning_of(cell, spec),
                read_at=budgets_read(budget, (*read_at, *_smaller_budgets(cell.head, spec))),
                chains=chains,
                success=spec.success,
            )
    return found


def meaning_of(cell: CellRecords, spec: RunSpec) -> Meaning:
    """What the values of a cell's curves are."""
    head = cell.head
    if head.eps is None:
        searched = head.attack == FIND_EPS
        return Meaning(
            unit="distance",
            metric="eps" if searched else head.norm,
            note="an upper bound, out of a ladder of sizes" if searched else "",
        )
    note = f"the victim is random: {SEEN}" if _is_random(head, spec) else ""
    if task_of(head.objective).name == "classification":
        return Meaning(unit="margin", metric="accuracy_seen" if note else "score_adv", anchored=True, note=note)
    if head.objective not in {"mse", "mse-clean"}:
        return Meaning(unit="score", metric="score_seen", note=note or f"best {head.objective}")
    truth = any(r.psnr_clean is not None for r in cell.records)
    protocol = PROTOCOLS.get(head.protocol)
    if protocol is None or protocol.bits is not None or protocol.border:
        note = note or f"measured on the whole float image; the protocol {head.protocol} differs"
    if truth and head.objective == "mse-clean":
        note = note or "against the victim's own clean output, not the truth"
    return Meaning(
        unit="psnr",
        metric="psnr_seen" if note else "psnr_adv",
        anchored=truth and head.objective == "mse",
        note=note,
    )


def _chains(cell: CellRecords, curves: Mapping[str, Curve]) -> Iterable[Chain]:
    clean = cell.samples("score_clean" if task_of(cell.head.objective).quality == "score_adv" else "psnr_clean")
    judged = cell.per_image("success")
    for record in sorted({r.key[:3]: r for r in cell.measured}.values(), key=lambda r: r.key):
        curve = curves.get(f"{record.cell}/{record.image_id}/{record.restart}")
        if curve is None and (record.budget is None or not record.queries):
            continue
        draws = clean.get(record.image_id, {}).get(record.restart)
        yield Chain(
            image_id=record.image_id,
            restart=record.restart,
            allowed=record.budget or record.queries or 0,
            ended=record.stop_reason in {"success", "converged"},
            clean=math.fsum(draws) / len(draws) if draws else None,
            judged=record.image_id in judged or record.psnr_adv is not None,
            curve=curve or (),
        )


def _smaller_budgets(head: Record, spec: RunSpec) -> list[int]:
    """Budgets that the spec names for this attack and threat."""
    attacks = [read_attack(entry).attack for entry in spec.attacks if entry.name == head.attack]
    mine = [a for a in attacks if (a.norm, a.eps) == (head.norm, head.eps)]
    return [attack.budget for attack in mine if isinstance(attack, QueryAttack)]


def _is_random(head: Record, spec: RunSpec) -> bool:
    """Whether two answers of the cell's victim to one candidate can differ."""
    name = head.defense.split()[0]
    known = {entry.name for entry in spec.defenses if entry.name != "none"}
    declared = spec.model.params.get("random") is True  # by the owner of a target behind HTTP
    return declared or (name in known and PURIFIERS.get(name).random)


def _drop(chain: Chain, value: float) -> float:
    return -math.inf if chain.clean is None else chain.clean - psnr(value)
