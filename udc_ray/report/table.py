"""From records to rows: one row per cell and metric, and the worst over attacks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from udc_ray.checks.base import CheckResult, Threat, lowest, threat_of
from udc_ray.metrics.statistics import (
    CLAIM_SIZE,
    CellRecords,
    Estimate,
    PerImage,
    difference,
    estimate,
    group_cells,
    wilson,
)
from udc_ray.plan import describe_eps
from udc_ray.records import Record
from udc_ray.report.marks import UPPER_BOUND, Marks
from udc_ray.spec import RunSpec
from udc_ray.tasks import task_of

METRICS = (
    "psnr_degraded",
    "psnr_clean",
    "psnr_noise",
    "psnr_adv",
    "worst_psnr_clean",
    "worst_psnr_adv",
    "psnr_mean_output_clean",
    "psnr_mean_output_adv",
    "psnr_median_output_clean",
    "psnr_median_output_adv",
    "ssim_clean",
    "ssim_adv",
    "lpips_clean",
    "lpips_adv",
    "score_clean",
    "score_noise",
    "score_adv",
    "drop_psnr",
    "drop_score",
    "queries",
    "grad_evals",
    "nfe",
    "guide_calls",
    "seconds",
)
OF_DEFENCES = frozenset({"nfe", "guide_calls"})
"""Metrics that say nothing of the undefended model."""
REPEAT = "clean-repeat"
"""A control that changes nothing, and so says nothing of what an attacker reaches."""
ROBUST, ROBUST_SCORE = "robust_psnr", "robust_score"
"""Metrics of the worst over attacks: of restoration, and of other tasks."""
_SPENT = frozenset({"queries", "grad_evals", "seconds", *OF_DEFENCES})
_HIGH_IS_WORST = frozenset({"lpips_clean", "lpips_adv", "drop_psnr", "drop_score", *_SPENT})
_SCORES = frozenset({"score_clean", "score_noise", "score_adv", "robust_score", "adaptive_score"})
_ATTACKED = frozenset({m for m in METRICS if m.endswith("_adv")} | {"drop_psnr", "drop_score"})
MODES = ("blind", "full")
"""Gradient modes that stand first, side by side: what a defence looks like, and what it is."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the report, with all that is said beside it.

    Attributes:
        cell: the cell; None for a worst over several.
        label: for people.
        metric: a results column, ``drop_psnr`` or ``drop_score`` (clean minus attacked), ``success`` (rate),
            ``worst_psnr_*`` (the worst of N fresh purifications), ``robust_psnr`` or ``robust_score``; those of
            whole defences are in `udc_ray.report.accounts`.
        mean, ci_low, ci_high: None where unknown; the interval from two images on.
        n, of: images that the number stands on, and images that were asked for.
        worst, worst_image: the worst image's value.
        grad_mode: None for the worst over all the gradient modes of a defence.
        note: what must be read with the number.
        failed_checks: names of the checks of this cell that failed.
        samples: N, fresh purifications an image that the number stands on.
    """

    cell: str | None
    label: str
    metric: str
    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    of: int
    worst: float | None = None
    worst_image: str | None = None
    attack: str | None
    norm: str
    eps: float | None
    budget: int | None = None
    defense: str
    grad_mode: str | None
    note: str = ""
    failed_checks: tuple[str, ...] = ()
    samples: int = 1

    @property
    def upper_bound(self) -> bool:
        """Whether a longer attack may end lower."""
        return UPPER_BOUND in self.note

    @property
    def attack_label(self) -> str:
        """The attack and its threat, without the defence."""
        return self.label.partition(" | ")[0]


def make_rows(records: Iterable[Record], spec: RunSpec, checks: Sequence[CheckResult] = ()) -> list[Row]:
    """All rows, defences and attacks in the order of the spec, the robust rows of a defence last.

    A cell's number is the mean of its per-image values (mean over samples, worst over restarts);
    queries and seconds are what all restarts of an image spent together. A score that is found or missed is a
    rate: its interval is Wilson's, as a bootstrap of eight images that are all found would have no width.
    """
    marks, cells, rows = Marks.read(checks, spec), ordered_cells(records, spec), list[Row]()
    for defense in dict.fromkeys(c.head.defense for c in cells):
        mine = [c for c in cells if c.head.defense == defense]
        rows += [row for c in mine for row in _cell_rows(c, spec.seed, marks)]
        rows += _robust_rows(mine, spec.seed, marks)
    return rows


def ordered_cells(records: Iterable[Record], spec: RunSpec) -> list[CellRecords]:
    """The cells of a run in the order of its spec; blind ones before those of full gradients, then the others."""
    return sorted(group_cells(records), key=lambda c: _order(c, spec))


def _order(cell: CellRecords, spec: RunSpec) -> tuple[object, ...]:
    head = cell.head
    defenses = ["none", *(e.name for e in spec.defenses if e.name != "none")]
    attacks = [e.name for e in spec.attacks]
    return (
        defenses.index(name) if (name := head.defense.split()[0]) in defenses else len(defenses),
        head.defense,
        attacks.index(head.attack) if head.attack in attacks else len(attacks),
        head.norm != "linf",
        head.eps or 0.0,
        cell.attack_label,
        MODES.index(head.grad_mode) if head.grad_mode in MODES else len(MODES),
        head.grad_mode,
        head.cell,
    )


def _cell_rows(cell: CellRecords, seed: int, marks: Marks) -> list[Row]:
    head, of = cell.head, len(cell.images)
    empty = Row(
        cell=head.cell,
        label=head.label,
        metric="",
        mean=None,
        ci_low=None,
        ci_high=None,
        n=0,
        of=of,
        attack=head.attack,
        norm=head.norm,
        eps=head.eps,
        budget=head.budget,
        defense=head.defense,
        grad_mode=head.grad_mode,
        failed_checks=marks.failed(cell),
        samples=cell.draws,
    )
    of_it = [m for m in METRICS if head.defense != "none" or m not in OF_DEFENCES]
    bound = marks.bound([cell])
    rows = [
        filled(replace(empty, metric=metric), _values(cell, metric), seed, bound if metric in _ATTACKED else "")
        for metric in of_it
    ]
    # A cell whose units all failed still says so: psnr_adv, 0 of N.
    kept = [row for row in rows if row.mean is not None or row.metric == task_of(head.objective).quality]
    return kept + _success_row(replace(empty, metric="success"), cell.per_image("success"))


def _values(cell: CellRecords, metric: str) -> PerImage:
    if metric == "drop_score":
        return difference(cell.per_image("score_clean"), cell.per_image("score_adv"))
    return cell.per_image(metric)


def _estimate(metric: str, values: PerImage, seed: int) -> Estimate | None:
    if metric in _SCORES and values and set(values.values()) <= {0.0, 1.0}:
        return wilson(round(sum(values.values())), len(values))
    return estimate(values, seed)


def filled(row: Row, values: PerImage, seed: int, remark: str = "") -> Row:
    """The row with the mean of per-image values, its interval, and what must be read with it."""
    found = _estimate(row.metric, values, seed)
    if found is None:
        return replace(row, note=_note(0, row.of))
    pick = max if row.metric in _HIGH_IS_WORST else min
    image = pick(sorted(values), key=lambda i: values[i])
    row = replace(_with(row, found), worst=values[image], worst_image=image)
    return replace(row, note="; ".join(filter(None, [remark, row.note])))


def _success_row(row: Row, values: PerImage) -> list[Row]:
    """Share of images that the attack harmed, by the mean over samples; Wilson interval.

    Images of which it is unknown are left out: of a classifier, those that it missed before the attack.
    """
    return [_with(row, wilson(sum(v >= 0.5 for v in values.values()), len(values)))] if values else []


def _with(row: Row, found: Estimate) -> Row:
    return replace(
        row, mean=found.mean, ci_low=found.ci_low, ci_high=found.ci_high, n=found.n, note=_note(found.n, row.of)
    )


def _note(n: int, of: int) -> str:
    parts = [f"{n} of {of} images"] if n < of else []
    parts += [f"n = {n}, too few for a claim"] if n < CLAIM_SIZE else []
    return "; ".join(parts)


def _robust_rows(cells: Sequence[CellRecords], seed: int, marks: Marks) -> list[Row]:
    """Per threat and gradient mode of one defence, the per-image worst over attacks and restarts.

    Minimum-norm attacks have no radius and are left out. A defence with several gradient modes
    gets one more row, over all of them: an attacker may choose.
    """
    rows = []
    for threat, mine in by_threat(cells).items():
        modes: list[str | None] = list(dict.fromkeys(c.head.grad_mode for c in mine))
        for mode in modes + ([None] if len(modes) > 1 else []):
            group = [c for c in mine if mode in (None, c.head.grad_mode)]
            metric = ROBUST if task_of(group[0].head.objective).quality == "psnr_adv" else ROBUST_SCORE
            row = worst_row(group, metric, seed, marks)
            shield = "none" if row.defense == "none" else f"{row.defense} {mode or 'any'}"
            rows.append(replace(row, label=f"robust {describe_threat(threat)} | {shield}", grad_mode=mode))
    return rows


def by_threat(cells: Sequence[CellRecords]) -> dict[Threat, list[CellRecords]]:
    """Cells by norm and radius, without those that have no radius and controls that change nothing."""
    found: dict[Threat, list[CellRecords]] = {}
    for cell in cells:
        if cell.head.eps is not None and cell.head.attack != REPEAT:
            found.setdefault(threat_of(cell), []).append(cell)
    return found


def describe_threat(threat: Threat) -> str:
    """Norm and radius for people."""
    return f"{threat[0]} {describe_eps(threat[1] or 0.0)}"


def worst_row(cells: Sequence[CellRecords], metric: str, seed: int, marks: Marks) -> Row:
    """The per-image worst over some cells of one defence and threat; without label and mode."""
    row = blank_row(cells, metric, marks)
    parts = [c.per_image(task_of(cells[0].head.objective).quality) for c in cells]
    lacking = sum(any(i not in part for part in parts) for i in {i for c in cells for i in c.images})
    extra = f"{lacking} images lack an attack" if lacking else ""
    return filled(row, lowest(parts), seed, "; ".join(filter(None, [extra, marks.bound(cells)])))


def blank_row(cells: Sequence[CellRecords], metric: str, marks: Marks) -> Row:
    """A row about several cells of one defence and threat, without a number."""
    head = cells[0].head
    return Row(
        cell=None,
        label="",
        metric=metric,
        mean=None,
        ci_low=None,
        ci_high=None,
        n=0,
        of=len({i for c in cells for i in c.images}),
        attack=None,
        norm=head.norm,
        eps=head.eps,
        defense=head.defense,
        grad_mode=None,
        failed_checks=marks.failed(*cells),
        samples=max(c.draws for c in cells),
    )
