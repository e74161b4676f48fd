"""What every defence costs and what it gives back: against the undefended model, and against JPEG. Pure.

All of them are paired: differences per image, with an interval of their own. A gain is measured against the worst,
on the undefended model, of the very attacks that the defence met, so that a defence that met fewer of them gains
nothing by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from udc_ray.checks.base import CheckResult, Threat, lowest, scale_of
from udc_ray.metrics.statistics import CellRecords, PerImage, difference, mean_of
from udc_ray.records import Record
from udc_ray.report.marks import NO_MARKS, Marks
from udc_ray.report.table import Row, blank_row, by_threat, describe_threat, filled, ordered_cells, worst_row
from udc_ray.spec import RunSpec
from udc_ray.tasks import task_of

LOST = "lost"
"""Clean quality of the undefended model, less that behind the defence."""
ADAPTIVE = "adaptive"
"""The worst over all attacks that knew of the defence, in whatever gradient mode."""
RECOVERED = {"blind": "recovered_blind", "adaptive": "recovered_adaptive"}
"""The worst behind the defence, less that of the same attacks on the undefended model."""
PER_CALL = "recovered_adaptive_per_nfe"
"""What an adaptive attack leaves of the gain, divided by the calls of the denoiser."""
OVER_JPEG = {"blind": "over_jpeg_blind", "adaptive": "over_jpeg_adaptive"}
"""The worst behind the defence, less that behind JPEG, over the attacks that met both."""
TIME = "purify_seconds"
"""Seconds of one purification of one image."""
JPEG = "jpeg"


def named(kind: str, quality: str) -> str:
    """The metric of a kind of row where the attacked quality is measured so: ``psnr_adv`` or ``score_adv``."""
    return f"{kind}_{quality.removesuffix('_adv')}"


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The cells of one defence under one threat that share a way of being attacked."""

    cells: tuple[CellRecords, ...]

    @property
    def entries(self) -> set[tuple[str, str]]:
        """The attacks, whatever the mode in which they were made."""
        return {_entry(cell) for cell in self.cells}

    def of(self, entries: set[tuple[str, str]]) -> _Side:
        """Those of some attacks."""
        return _Side(cells=tuple(cell for cell in self.cells if _entry(cell) in entries))

    @property
    def worst(self) -> PerImage:
        """Per image the worst over them."""
        return lowest(cell.per_image(scale_of(cell).attacked) for cell in self.cells)


def _entry(cell: CellRecords) -> tuple[str, str]:
    return (cell.attack_label, cell.head.objective)


KINDS: Mapping[str, Callable[[CellRecords], bool]] = {
    "adaptive": lambda cell: cell.adaptive,
    "blind": lambda cell: not cell.adaptive,
}


def make_accounts(
    records: Iterable[Record],
    spec: RunSpec,
    checks: Sequence[CheckResult] = (),
    times: Mapping[str, float] | None = None,
) -> list[Row]:
    """Rows of every defence of a run; without the undefended model there are only those of its own worst.

    Args:
        records: the run's records.
        spec: the run.
        checks: mark the rows.
        times: seconds of one purification, by label of the defence, as far as they were measured.
    """
    marks, cells = Marks.read(checks, spec), ordered_cells(records, spec)
    bare = [cell for cell in cells if cell.head.defense == "none"]
    rows: list[Row] = []
    for defense in dict.fromkeys(cell.head.defense for cell in cells if cell.head.defense != "none"):
        mine = [cell for cell in cells if cell.head.defense == defense]
        rows += [_time(mine, times[defense])] if times and defense in times else []
        rows += _lost(mine, bare, spec.seed)
        for threat, attacked in by_threat(mine).items():
            account = _Account(threat=threat, cells=attacked, bare=_under(bare, threat), seed=spec.seed, marks=marks)
            rows += account.rows(_jpegs(cells, threat, defense))
    return rows


def _under(cells: Sequence[CellRecords], threat: Threat) -> list[CellRecords]:
    return by_threat(cells).get(threat, [])


def _jpegs(cells: Sequence[CellRecords], threat: Threat, defense: str) -> dict[str, list[CellRecords]]:
    """Cells of every JPEG of the run under a threat; of none where the defence is one itself."""
    found: dict[str, list[CellRecords]] = {}
    if defense.split()[0] != JPEG:
        for cell in _under(cells, threat):
            if cell.head.defense.split()[0] == JPEG:
                found.setdefault(cell.head.defense, []).append(cell)
    return found


def _time(mine: Sequence[CellRecords], seconds: float) -> Row:
    row = blank_row(mine, TIME, NO_MARKS)
    note = "over all purifications of attacked images, in full micro-batches"
    return replace(row, label=f"time | {row.defense}", norm="", eps=None, mean=seconds, n=row.of, note=note)


def _lost(mine: Sequence[CellRecords], bare: Sequence[CellRecords], seed: int) -> list[Row]:
    """Clean quality does not depend on the attack, so every cell tells that of its images."""
    scale = scale_of(mine[0])
    values = difference(_together(bare, scale.clean), _together(mine, scale.clean))
    if not values:
        return []
    quality = task_of(mine[0].head.objective).quality
    row = blank_row(mine, named(LOST, quality), NO_MARKS)
    row = replace(row, label=f"clean | {row.defense}", norm="", eps=None)
    return [filled(row, values, seed)]


def _together(cells: Sequence[CellRecords], column: str) -> PerImage:
    found: PerImage = {}
    for cell in cells:
        found = cell.per_image(column) | found
    return found


@dataclass(frozen=True, kw_only=True)
class _Account:
    """One defence under one threat."""

    threat: Threat
    cells: Sequence[CellRecords]
    bare: Sequence[CellRecords]
    seed: int
    marks: Marks

    def rows(self, jpegs: Mapping[str, list[CellRecords]]) -> list[Row]:
        """Its rows, as far as there is something to compare with."""
        rows: list[Row] = []
        for kind in KINDS:
            side = _side(self.cells, kind)
            if not side.cells:
                continue
            if kind == "adaptive":
                rows.append(worst_row(side.cells, self._named(ADAPTIVE), self.seed, self.marks))
            base = _Side(cells=tuple(self.bare)).of(side.entries)
            gain = difference(side.worst, base.worst)
            rows += self._row(RECOVERED[kind], side, gain)
            calls = max((r.nfe or 0 for cell in side.cells for r in cell.measured), default=0)
            if kind == "adaptive" and calls:
                rows += self._row(PER_CALL, side, {image: value / calls for image, value in gain.items()})
        rows += self._over_jpeg(jpegs)
        head = self.cells[0].head
        label = f"{describe_threat(self.threat)} | {head.defense}"
        return [replace(row, label=f"{row.metric.rpartition('_')[0].replace('_', ' ')} {label}") for row in rows]

    def _over_jpeg(self, jpegs: Mapping[str, list[CellRecords]]) -> list[Row]:
        """Against the best JPEG, adaptive where both were attacked so, else blind."""
        for kind in KINDS:
            side = _side(self.cells, kind)
            rivals = [_side(cells, kind) for cells in jpegs.values()]
            rivals = [rival for rival in rivals if rival.entries & side.entries]
            if rivals:
                best = max(rivals, key=lambda rival: mean_of(rival.of(side.entries).worst))
                mine = side.of(best.entries)
                return self._row(OVER_JPEG[kind], mine, difference(mine.worst, best.of(side.entries).worst))
        return []

    def _row(self, kind: str, side: _Side, values: PerImage) -> list[Row]:
        if not values:
            return []
        row = blank_row(side.cells, self._named(kind), self.marks)
        return [filled(row, values, self.seed, self.marks.bound(side.cells))]

    def _named(self, kind: str) -> str:
        return named(kind, task_of(self.cells[0].head.objective).quality)


def _side(cells: Sequence[CellRecords], kind: str) -> _Side:
    return _Side(cells=tuple(cell for cell in cells if KINDS[kind](cell)))
