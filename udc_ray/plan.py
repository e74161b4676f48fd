"""From a spec to cells and units of work.

A *cell* is one combination attack x defence x grad mode (model and data are the run's). A *unit*
crafts one attack against one victim for a few images, and scores those images through every cell
that uses them: the crafting cell itself, and the blind cells of all defences when the victim was
undefended. So nothing is attacked twice, and a unit needs nothing from another unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from udc_ray.attacks.base import Attack
from udc_ray.attacks.registry import ATTACKS
from udc_ray.errors import SpecError
from udc_ray.purifiers.base import Purifier
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.spec import Entry, RunSpec, canonical_json

RecordKey = tuple[str, str, int, int]


@dataclass(frozen=True, kw_only=True)
class Defence:
    """A purifier (None when undefended) and the gradient modes in which it is attacked."""

    name: str
    purifier: Purifier | None
    grad_modes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """An attack and the gradient modes to which the spec confines it (None: all)."""

    name: str
    attack: Attack
    grad_modes: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination; `id` is a hash that a raised budget keeps."""

    id: str
    label: str
    attack: int
    """Index into `Plan.attacks`."""
    defence: int
    """Index into `Plan.defences`."""
    grad_mode: str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Work that is dispatched, retried and resumed as a whole.

    Attributes:
        attack: index into `Plan.attacks`.
        victim: index into `Plan.defences` of the victim that is attacked.
        grad_mode: how gradients pass the victim's purifier.
        cells: cells that the attacked images are scored through.
        image_ids: the images.
    """

    attack: int
    victim: int
    grad_mode: str
    cells: tuple[Cell, ...]
    image_ids: tuple[str, ...]

    @property
    def key(self) -> str:
        """Stable name of the unit: a hash of its cells and images."""
        text = canonical_json([[c.id for c in self.cells], list(self.image_ids)])
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that will be done, before anything is done."""

    attacks: tuple[AttackEntry, ...]
    defences: tuple[Defence, ...]
    cells: tuple[Cell, ...]

    def units(self, image_ids: tuple[str, ...], chunk: int, done: Collection[RecordKey] = ()) -> Iterator[Unit]:
        """Units over all images, less the images whose records are all done."""
        finished = set(done)
        for (attack, victim, mode), cells in self._crafts().items():
            todo = tuple(i for i in image_ids if not self._is_done(cells, i, finished))
            for start in range(0, len(todo), chunk):
                yield Unit(
                    attack=attack, victim=victim, grad_mode=mode, cells=cells, image_ids=todo[start : start + chunk]
                )

    def keys(self, cell: Cell, image_id: str) -> list[RecordKey]:
        """Record keys that a cell owes for one image."""
        purifier = self.defences[cell.defence].purifier
        samples = purifier.samples if purifier is not None and purifier.random else 1
        restarts = self.attacks[cell.attack].attack.restarts
        return [(cell.id, image_id, r, s) for r in range(restarts) for s in range(samples)]

    def _is_done(self, cells: tuple[Cell, ...], image_id: str, finished: set[RecordKey]) -> bool:
        return all(key in finished for cell in cells for key in self.keys(cell, image_id))

    def _crafts(self) -> dict[tuple[int, int, str], tuple[Cell, ...]]:
        crafts: dict[tuple[int, int, str], tuple[Cell, ...]] = {}
        undefended = next((i for i, d in enumerate(self.defences) if d.purifier is None), -1)
        for cell in self.cells:
            blind = cell.grad_mode == "blind"
            key = (cell.attack, undefended, "full") if blind else (cell.attack, cell.defence, cell.grad_mode)
            crafts[key] = (*crafts.get(key, ()), cell)
        return crafts


def read_attack(entry: Entry) -> AttackEntry:
    """Build the attack of a spec entry."""
    attack = ATTACKS.get(entry.name).build("attack", entry.params)
    return AttackEntry(name=entry.name, attack=attack, grad_modes=entry.grad_mode)


def read_defence(entry: Entry) -> Defence:
    """Build the defence of a spec entry; ``none`` is the undefended model."""
    if entry.name == "none":
        return Defence(name="none", purifier=None, grad_modes=("full",))
    purifier = PURIFIERS.get(entry.name).build("defence", entry.params)
    modes = entry.grad_mode or ("blind",)
    for mode in modes:
        if mode != "blind" and mode not in purifier.grad_modes:
            known = ", ".join(["blind", *sorted(purifier.grad_modes)])
            raise SpecError(f"defence {entry.name!r} has no grad_mode {mode!r}", change=f"use one of: {known}")
    return Defence(name=entry.name, purifier=purifier, grad_modes=modes)


def make_plan(spec: RunSpec, model_and_data: str) -> Plan:
    """Combine attacks, defences and gradient modes; pairs that do not exist are left out.

    Args:
        spec: the run.
        model_and_data: hash of the model, the data and what else decides numbers.
    """
    attacks = tuple(read_attack(e) for e in spec.attacks)
    defences = tuple(read_defence(e) for e in spec.defenses)
    _refuse_repeats(attacks, defences)
    if any(d.purifier is not None for d in defences) and all(d.purifier is not None for d in defences):
        defences = (*defences, Defence(name="none", purifier=None, grad_modes=("full",)))
    cells = tuple(
        _cell(a, attack, d, defence, mode, model_and_data)
        for a, attack in enumerate(attacks)
        for d, defence in enumerate(defences)
        for mode in _modes(attack, defence)
    )
    return Plan(attacks=attacks, defences=defences, cells=cells)


def _modes(entry: AttackEntry, defence: Defence) -> tuple[str, ...]:
    if defence.purifier is None:
        return ("full",)
    allowed = ("blind",) if entry.attack.kind != "gradient" else defence.grad_modes
    return tuple(m for m in defence.grad_modes if m in allowed and (entry.grad_modes is None or m in entry.grad_modes))


def _cell(a: int, entry: AttackEntry, d: int, defence: Defence, mode: str, model_and_data: str) -> Cell:
    identity = defence.purifier.identity() if defence.purifier is not None else "none"
    text = canonical_json([model_and_data, entry.attack.identity(), identity, mode])
    size = "" if entry.attack.eps is None else f" {entry.attack.norm} {describe_eps(entry.attack.eps)}"
    shield = "none" if defence.purifier is None else f"{defence.name} {mode}"
    return Cell(
        id=hashlib.sha256(text.encode()).hexdigest()[:16],
        label=f"{entry.name}{size} | {shield}",
        attack=a,
        defence=d,
        grad_mode=mode,
    )


def describe_eps(eps: float) -> str:
    """Write a radius as n/255 where it is one."""
    scaled = eps * 255
    return f"{round(scaled)}/255" if abs(scaled - round(scaled)) < 1e-6 and eps <= 1 else f"{eps:g}"


def _refuse_repeats(attacks: tuple[AttackEntry, ...], defences: tuple[Defence, ...]) -> None:
    names = [a.attack.identity() for a in attacks]
    names += [d.purifier.identity() if d.purifier is not None else "none" for d in defences]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(
                f"{name} is given twice",
                "two entries are equal, or differ in their budget only",
                "keep one; for several budgets keep the largest, its curve holds the smaller ones",
            )
