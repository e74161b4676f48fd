"""From a spec to cells and units of work.

A *cell* is one combination attack x defence x grad mode (model and data are the run's). A *unit*
crafts one attack against one victim for a few images, and scores those images through every cell
that uses them: the crafting cell itself, and the blind cells of all defences when the victim was
undefended. So nothing is attacked twice, and a unit needs nothing from another unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from udc_ray.attacks.base import Attack
from udc_ray.attacks.objectives import get_objective
from udc_ray.attacks.query import QueryAttack
from udc_ray.attacks.registry import ATTACKS
from udc_ray.errors import SpecError, did_you_mean
from udc_ray.labels import describe_eps as describe_eps  # others import it from here
from udc_ray.labels import distinguish
from udc_ray.models.base import TaskName
from udc_ray.purifiers.base import Purifier, is_surrogate
from udc_ray.purifiers.registry import PURIFIERS
from udc_ray.spec import Entry, RunSpec, canonical_json

RecordKey = tuple[str, str, int, int]
SCORING_PASSES = 6
"""Passes in which a cell scores an image: clean, attacked, and the noise control's draws."""
DENOISER_PASSES = 5
"""A call of the shipped denoiser in passes of the shipped restorer."""
GRAD_MODES = ("full", "blind", "bpda", "forward-noise", "full-no-guide", "surrogate-k")
"""Ways in which an attack can meet a defence; k is the steps that the surrogate takes."""
UNDEFENDED = "undefended"
"""In the grad_mode list of an attack: it is made on the undefended model, without meeting defences in mode full."""


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
    smaller_budgets: tuple[int, ...] = ()
    """Budgets of entries that differ in nothing else; they are read from the curve of this one."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination; `id` is a hash that a raised budget keeps."""

    id: str
    label: str
    attack: int
    """Index into `Plan.attacks`."""
    defence: int
    """Index into `Plan.defences`."""
    defence_label: str
    """Name of the defence, with the parameters that tell it from others of the same name."""
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
    caps: tuple[int, ...] = ()
    """Queries that each chain may have asked in all, image by image and restart by restart, where a larger
    account leaves less than the budget; empty where none does."""

    @property
    def craft_cell(self) -> str:
        """Id of the cell that the attack is made for; of the first one where only blind cells use it."""
        own = [cell.id for cell in self.cells if cell.grad_mode != "blind"]
        return (own or [cell.id for cell in self.cells])[0]

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
    task: TaskName = "restoration"
    """What the model is for."""

    def units(self, image_ids: tuple[str, ...], chunk: int, done: Collection[RecordKey] = ()) -> Iterator[Unit]:
        """Units over all images, less the images whose records are all done."""
        finished = set(done)
        for (attack, victim, mode), cells in self._crafts().items():
            todo = tuple(i for i in image_ids if not self._is_done(cells, i, finished))
            for start in range(0, len(todo), chunk):
                yield Unit(
                    attack=attack, victim=victim, grad_mode=mode, cells=cells, image_ids=todo[start : start + chunk]
                )

    def cost(self, unit: Unit) -> int:
        """Roughly how many forward passes a unit takes; a denoiser call counts for a few of the restorer's."""
        crafted = self.attacks[unit.attack].attack.passes * self._passes(unit.victim)
        scored = sum(SCORING_PASSES * self._passes(cell.defence) for cell in unit.cells)
        return (crafted + scored) * len(unit.image_ids)

    def _passes(self, defence: int) -> int:
        purifier = self.defences[defence].purifier
        return 1 + (DENOISER_PASSES * purifier.calls if purifier is not None else 0)

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
    if attack.objective is not None:
        get_objective(attack.objective)
    for mode in entry.grad_mode or ():
        if mode not in (*GRAD_MODES[:-1], UNDEFENDED) and not is_surrogate(mode):
            known = (*GRAD_MODES, UNDEFENDED)
            raise SpecError(f"attack {entry.name!r}: unknown grad_mode {mode!r}", change=did_you_mean(mode, known))
    return AttackEntry(name=entry.name, attack=attack, grad_modes=entry.grad_mode)


def read_defence(entry: Entry) -> Defence:
    """Build the defence of a spec entry; ``none`` is the undefended model."""
    if entry.name == "none":
        if entry.params or entry.grad_mode not in (None, ("full",)):
            raise SpecError(
                "defence 'none' takes no parameters",
                "it is the undefended model, attacked in grad_mode 'full'",
                "write just: none",
            )
        return Defence(name="none", purifier=None, grad_modes=("full",))
    purifier = PURIFIERS.get(entry.name).build("defence", entry.params)
    modes = tuple(dict.fromkeys(entry.grad_mode or ("blind",)))
    for mode in modes:
        if mode not in ("blind", "full") and not purifier.offers(mode):
            known = ", ".join(["blind", *sorted(purifier.grad_modes)])
            raise SpecError(f"defence {entry.name!r} has no grad_mode {mode!r}", change=f"use one of: {known}")
    return Defence(name=entry.name, purifier=purifier, grad_modes=modes)


def make_plan(spec: RunSpec, model_and_data: str, task: TaskName = "restoration") -> Plan:
    """Combine attacks, defences and gradient modes; pairs that do not exist are left out.

    Args:
        spec: the run.
        model_and_data: hash of the model, the data and what else decides numbers.
        task: what the model is for.
    """
    attacks = _merge_budgets([read_attack(e) for e in spec.attacks])
    defences = tuple(read_defence(e) for e in spec.defenses)
    _refuse_repeats(attacks, defences)
    if any(d.purifier is not None for d in defences) and all(d.purifier is not None for d in defences):
        defences = (*defences, Defence(name="none", purifier=None, grad_modes=("full",)))
    attack_labels, defence_labels = _attack_labels(attacks), _defence_labels(defences)
    cells = tuple(
        Cell(
            id=_cell_id(attack, defence, mode, model_and_data),
            label=f"{attack_labels[a]} | {defence_labels[d]}{f' {mode}' if defence.purifier else ''}",
            defence_label=defence_labels[d],
            attack=a,
            defence=d,
            grad_mode=mode,
        )
        for a, attack in enumerate(attacks)
        for d, defence in enumerate(defences)
        for mode in _modes(attack, defence)
    )
    if not cells:
        raise SpecError(
            "the spec leaves nothing to do",
            "no attacks, no defences, or no grad_mode that attacks and defences share",
            "name at least one attack and one defence, 'none' among them",
        )
    _refuse_unmet(defences, cells)
    return Plan(attacks=attacks, defences=defences, cells=cells, task=task)


def _modes(entry: AttackEntry, defence: Defence) -> tuple[str, ...]:
    return tuple(m for m in defence.grad_modes if _meets(entry, defence.purifier, m))


def _meets(entry: AttackEntry, purifier: Purifier | None, mode: str) -> bool:
    """Whether an attack exists in a mode; a query attack asks the composed victim, and needs no gradient."""
    if purifier is None:
        return entry.grad_modes is None or bool({"full", UNDEFENDED} & set(entry.grad_modes))
    if entry.grad_modes is not None and mode not in entry.grad_modes:
        return False
    if mode == "blind" or entry.attack.kind == "control":
        return mode == "blind"
    return mode == "full" if entry.attack.kind == "query" else purifier.offers(mode)


def _refuse_unmet(defences: tuple[Defence, ...], cells: tuple[Cell, ...]) -> None:
    """The mode `full` of a purifier that was asked for and that no attack can use is a mistake."""
    met = {cell.defence for cell in cells if cell.grad_mode == "full"}
    for d, defence in enumerate(defences):
        if defence.purifier is not None and "full" in defence.grad_modes and d not in met:
            known = ", ".join(["blind", *sorted(defence.purifier.grad_modes)])
            raise SpecError(
                f"defence {defence.name!r} has no grad_mode 'full'",
                "gradients do not pass it, or no attack that is listed may use them; query attacks need none",
                f"use one of: {known}; or add a query attack",
            )


def _cell_id(entry: AttackEntry, defence: Defence, mode: str, model_and_data: str) -> str:
    identity, weights = "none", {}
    if defence.purifier is not None:
        identity, weights = defence.purifier.identity(), defence.purifier.weight_hashes()
    own = entry.attack.weight_hashes()
    text = canonical_json([model_and_data, entry.attack.identity(), identity, weights, mode, *([own] if own else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _attack_labels(attacks: tuple[AttackEntry, ...]) -> list[str]:
    return distinguish([_attack_name(a) for a in attacks], [a.attack for a in attacks])


def _attack_name(entry: AttackEntry) -> str:
    name = f"{entry.name} {entry.attack.bound}".strip()
    return f"{name}, frozen noise" if getattr(entry.attack, "frozen_noise", False) else name


def _defence_labels(defences: tuple[Defence, ...]) -> list[str]:
    return distinguish([d.name for d in defences], [d.purifier for d in defences])


def _merge_budgets(entries: list[AttackEntry]) -> tuple[AttackEntry, ...]:
    """Entries that differ in their budget only run once, at the largest."""
    merged: list[AttackEntry] = []
    for entry in entries:
        rival = next((m for m in merged if _differ_in_budget_only(m, entry)), None)
        if rival is None:
            merged.append(entry)
            continue
        small, large = sorted((rival, entry), key=_budget)
        known = {*rival.smaller_budgets, _budget(small)}
        merged[merged.index(rival)] = replace(large, smaller_budgets=tuple(sorted(known)))
    return tuple(merged)


def _differ_in_budget_only(one: AttackEntry, other: AttackEntry) -> bool:
    if not (isinstance(one.attack, QueryAttack) and isinstance(other.attack, QueryAttack)):
        return False
    leveled = one.attack.model_copy(update={"budget": other.attack.budget})
    same = (one.name, one.grad_modes, leveled) == (other.name, other.grad_modes, other.attack)
    return same and _budget(other) not in (_budget(one), *one.smaller_budgets)


def _budget(entry: AttackEntry) -> int:
    return entry.attack.budget if isinstance(entry.attack, QueryAttack) else 0


def _refuse_repeats(attacks: tuple[AttackEntry, ...], defences: tuple[Defence, ...]) -> None:
    names = [a.attack.identity() for a in attacks]
    names += [d.purifier.identity() if d.purifier is not None else "none" for d in defences]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(
                f"{name} is given twice",
                "two entries are equal, or differ in nothing that makes another attack or defence",
                "keep one of them",
            )
