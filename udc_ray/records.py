"""Results: one record per cell, image, restart and purification sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1

_STRINGS = [
    "run_fingerprint",
    "cell",
    "label",
    "model",
    "data",
    "image_id",
    "attack",
    "norm",
    "defense",
    "grad_mode",
    "objective",
    "protocol",
    "perceptual",
    "stop_reason",
    "host",
    "error",
]
_INTEGERS = [
    "budget",
    "eot",
    "sample",
    "restart",
    "seed",
    "queries",
    "queries_harness",
    "queries_reexecuted",
    "queries_from_memory",
    "grad_evals",
    "grad_dead_steps",
    "nfe",
    "guide_calls",
    "retries",
]
_BOOLEANS = ["success", "lost"]

VOLATILE = ("seconds", "host", "retries", "queries_reexecuted")
"""Columns that may differ between two executions of the same run."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of ``results.parquet``; the design's section 4.6 defines every column.

    Unknown is None, never 0. Restoration fills the PSNR, SSIM and LPIPS columns. Other tasks fill ``score_*``: for
    a classifier 1.0 where the class is found, so that their means are accuracies. Its `success` is known for
    images that it classified correctly before the attack.

    A random victim is evaluated N times, one row each. ``psnr_mean_output_*`` and ``psnr_median_output_*`` belong to
    all N together, the PSNR of the pixel by pixel mean or median of the N outputs: the same value in each of the N
    rows, null unless N > 1. They measure another system than the single rows do, one that runs N times an image.
    """

    run_fingerprint: str
    cell: str
    label: str
    model: str
    data: str
    image_id: str
    attack: str
    norm: str
    eps: float | None
    budget: int | None
    defense: str
    grad_mode: str
    eot: int
    sample: int
    restart: int
    seed: int
    objective: str
    protocol: str
    perceptual: str | None = None
    psnr_degraded: float | None = None
    psnr_clean: float | None = None
    psnr_noise: float | None = None
    psnr_adv: float | None = None
    psnr_mean_output_clean: float | None = None
    psnr_mean_output_adv: float | None = None
    psnr_median_output_clean: float | None = None
    psnr_median_output_adv: float | None = None
    ssim_clean: float | None = None
    ssim_adv: float | None = None
    lpips_clean: float | None = None
    lpips_adv: float | None = None
    score_clean: float | None = None
    score_noise: float | None = None
    score_adv: float | None = None
    linf: float | None = None
    l2: float | None = None
    queries: int | None = None
    queries_harness: int | None = None
    queries_reexecuted: int | None = None
    queries_from_memory: int | None = None
    grad_evals: int | None = None
    grad_zero_share: float | None = None
    """Largest share, over the steps, of the gradient's values that were exactly 0 or not finite."""
    grad_dead_steps: int | None = None
    """Steps whose gradient was 0 everywhere, or not finite somewhere."""
    loss_move: float | None = None
    """Share of the whole rise of the best loss that came in the last ten steps."""
    lost: bool | None = None
    """Whether the attack returned another image than the best that it had seen."""
    nfe: int | None = None
    guide_calls: int | None = None
    """Calls of the network of a guide per purified image."""
    success: bool | None = None
    stop_reason: str = "error"
    seconds: float | None = None
    """Of this image: its share of the attack and of the scoring."""
    host: str = ""
    retries: int = 0
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What makes a record done: (cell, image, restart, sample)."""
        return (self.cell, self.image_id, self.restart, self.sample)


def _arrow_type(column: str) -> pa.DataType:
    if column in _STRINGS:
        return pa.string()
    if column in _INTEGERS:
        return pa.int64()
    return pa.bool_() if column in _BOOLEANS else pa.float64()


SCHEMA = pa.schema([(f.name, _arrow_type(f.name)) for f in fields(Record)])


def to_table(records: Iterable[Record]) -> pa.Table:
    """Records as an Arrow table."""
    return pa.Table.from_pylist([asdict(r) for r in records], schema=SCHEMA)


def from_table(table: pa.Table) -> list[Record]:
    """Records of an Arrow table; columns that this version does not know are left out."""
    known = {f.name for f in fields(Record)}
    rows: list[dict[str, Any]] = table.to_pylist()
    return [Record(**{name: value for name, value in row.items() if name in known}) for row in rows]
