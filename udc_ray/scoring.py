"""From attacked images to records: every cell of a unit, every image, restart and sample."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from udc_ray.attacks.threat import l2_norm, linf_norm
from udc_ray.crafted import Crafted
from udc_ray.data.base import Sample
from udc_ray.evaluation import CONTROL_DRAWS, Control
from udc_ray.failures import cell_columns
from udc_ray.plan import Cell, RecordKey, Unit
from udc_ray.records import Record
from udc_ray.results import Adversarial, UnitResult
from udc_ray.tasks import Scores, get_task

if TYPE_CHECKING:
    from udc_ray.host import Host


def score_unit(host: Host, unit: Unit, crafted: list[Crafted]) -> UnitResult:
    """Score attacked images through every cell of their unit."""
    records: list[Record] = []
    by_restart: dict[int, list[Crafted]] = defaultdict(list)
    for item in crafted:
        by_restart[item.restart].append(item)
    for cell in unit.cells:
        scores = CellScores(host, unit, cell)
        for items in by_restart.values():
            records += scores.records(items)
    images = _kept(host, unit, crafted, records)
    curves = {
        f"{cell.id}/{item.image_id}/{item.restart}": item.curve
        for cell in unit.cells
        if cell.grad_mode != "blind"
        for item in crafted
        if item.curve
    }
    return UnitResult(records=records, images=images, curves=curves, executed=dict(host.evaluator.executed))


class CellScores:
    """Scores attacked images through one cell.

    Args:
        host: where the models are.
        unit: the unit that the images belong to.
        cell: the cell.
    """

    def __init__(self, host: Host, unit: Unit, cell: Cell) -> None:
        self.host, self.unit, self.cell = host, unit, cell
        self.entry = host.setup.plan.attacks[cell.attack]
        self.defence = host.setup.plan.defences[cell.defence]
        self.victim = host.victim(cell.defence)
        self.task = get_task(host.setup.plan.task)

    def records(self, items: Sequence[Crafted]) -> list[Record]:
        """Records of the images of one restart."""
        started = time.monotonic()
        host = self.host
        samples = [host.sample(item.image_id) for item in items]
        references = [host.reference(self.cell.defence, s.image_id, "truth") for s in samples]
        # The clean images first: what is slow once, as a first call on a GPU, is not in the time of a purification.
        clean = host.baselines.clean(self.cell.defence, self.victim, samples, references)
        adversarial = host.evaluator.read(self.victim, samples, [i.x_adv_CHW for i in items], references)
        if self.victim.purifier is not None:
            host.evaluator.clock.note(self.cell.defence_label, [r.purify_seconds for row in adversarial for r in row])
        control = self._control(samples, items)
        noise = host.baselines.noise(self.cell.defence, self.victim, samples, references, control)
        degraded = host.evaluator.input_quality(samples)
        seconds = (time.monotonic() - started) / len(items)
        scores = [
            [Scores(degraded[n], noise[n], clean[n][draw], adversarial[draw][n]) for draw in range(self.victim.samples)]
            for n in range(len(items))
        ]
        return [
            self._record(item, draw, one, seconds + item.seconds)
            for item, draws in zip(items, scores, strict=True)
            for draw, one in enumerate(draws)
        ]

    def _control(self, samples: Sequence[Sample], items: Sequence[Crafted]) -> Control:
        attack = self.entry.attack
        if attack.eps is not None:
            return Control(norm=attack.norm, sizes=(attack.eps,) * len(items))
        size = linf_norm if attack.norm == "linf" else l2_norm
        reached = [float(size((i.x_adv_CHW.double() - s.degraded)[None])) for i, s in zip(items, samples, strict=True)]
        return Control(norm=attack.norm, sizes=tuple(reached))

    def _record(self, item: Crafted, draw: int, scores: Scores, seconds: float) -> Record:
        sample = self.host.sample(item.image_id)
        delta = (item.x_adv_CHW.double() - sample.degraded)[None]
        has_truth = sample.truth is not None
        columns = cell_columns(self.host.setup, self.cell) | self.task.columns(scores, has_truth) | _noticed(item)
        if item.allowed is not None:
            columns["budget"] = item.allowed
        return Record(
            **columns,
            image_id=sample.image_id,
            sample=draw,
            restart=item.restart,
            linf=float(linf_norm(delta)),
            l2=float(l2_norm(delta)),
            queries=item.queries,
            queries_harness=2 * self.victim.samples + CONTROL_DRAWS,
            queries_reexecuted=0,
            queries_from_memory=item.from_memory,
            grad_evals=item.grad_evals,
            nfe=scores.adversarial.nfe,
            guide_calls=scores.adversarial.guide_calls,
            success=self.task.success(scores, has_truth, self.host.setup.spec.success),
            stop_reason=item.stop_reason,
            seconds=seconds,
            host=self.host.name,
        )


def _noticed(item: Crafted) -> dict[str, Any]:
    """The columns that tell how an attack by gradients went on its way."""
    seen = item.diagnostics
    if seen is None:
        return {}
    return {
        "grad_zero_share": seen.zero_share,
        "grad_dead_steps": seen.dead_steps,
        "loss_move": seen.moved_last,
        "lost": seen.lost,
    }


def _kept(host: Host, unit: Unit, crafted: list[Crafted], records: list[Record]) -> list[Adversarial]:
    """The attacked images that the spec wants kept, under the cell that they were made for."""
    save = host.setup.spec.run.save
    own = [c for c in unit.cells if c.grad_mode != "blind"]
    if save == "none" or not own:
        return []
    cell, quality = own[0], get_task(host.setup.plan.task).quality
    ours = [(r.key, getattr(r, quality)) for r in records if r.cell == cell.id]
    chosen = crafted if save == "all" else [_worst(items, ours) for items in _by_image(crafted)]
    return [
        Adversarial(
            cell=cell.id,
            image_id=item.image_id,
            restart=item.restart,
            x=host.sample(item.image_id).degraded.numpy(),
            x_adv=item.x_adv_CHW.numpy(),
        )
        for item in chosen
    ]


def _by_image(crafted: list[Crafted]) -> list[list[Crafted]]:
    groups: dict[str, list[Crafted]] = defaultdict(list)
    for item in crafted:
        groups[item.image_id].append(item)
    return list(groups.values())


def _worst(items: list[Crafted], qualities: list[tuple[RecordKey, float | None]]) -> Crafted:
    """The restart with the lowest attacked quality, mean over samples."""

    def quality(item: Crafted) -> float:
        rows = [value for key, value in qualities if key[1:3] == (item.image_id, item.restart)]
        known = [value for value in rows if value is not None]
        return sum(known) / len(known) if known else float("inf")

    return min(items, key=quality)
