"""summary.json: exactly what the console prints, as a document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from udc_ray.checks.base import CheckResult
from udc_ray.errors import RunDirectoryError
from udc_ray.records import SCHEMA_VERSION, Record
from udc_ray.report.accounts import make_accounts
from udc_ray.report.table import Row, make_rows
from udc_ray.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The report's numbers, and what they are about.

    Attributes:
        fingerprint: of the run.
        model, data, objective, protocol: as recorded; the objective tells what for the model is.
        seed: the run's seed.
        images: number of images that were asked for.
        rows: one a cell and metric, in the order of printing; behind them those of whole defences.
    """

    fingerprint: str
    model: str
    data: str
    objective: str
    protocol: str
    seed: int
    images: int
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes null, as JSON has no NaN."""
        plain = asdict(self)
        rows = [{k: _plain(v) for k, v in row.items()} for row in plain.pop("rows")]
        return {"schema_version": SCHEMA_VERSION, **plain, "rows": rows}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Summary:
        """Read back what `to_json` wrote; keys of later versions are left out."""
        try:
            rows = tuple(_read_row(row) for row in document["rows"])
            values = {k: v for k, v in document.items() if k in cls.__dataclass_fields__}
            return cls(**{**values, "rows": rows})
        except (KeyError, TypeError, AttributeError) as error:
            raise RunDirectoryError(
                f"summary.json cannot be read: {error}",
                "it was written by another version or changed by hand",
                "remove it and give `udc-ray report RUN`, which makes it again from the parts",
            ) from error


def dumps(document: dict[str, Any]) -> str:
    """JSON text of a document; refuses NaN and infinity."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def build_summary(
    records: Sequence[Record],
    spec: RunSpec,
    checks: Sequence[CheckResult] = (),
    times: Mapping[str, float] | None = None,
) -> Summary:
    """Summarise a run; the same records give the same summary, in any order.

    Args:
        records: the run's records, those of failed units included; at least one.
        spec: gives the seed, and the order of attacks and defences.
        checks: mark the numbers of the cells that failed one.
        times: seconds of one purification, by label of the defence; None where nothing was measured.
    """
    if not records:
        raise RunDirectoryError("the run has no results yet", "no unit has finished", "resume the run first")
    ordered = sorted(records, key=lambda r: (r.label, r.key))
    head = ordered[0]
    return Summary(
        fingerprint=head.run_fingerprint,
        model=head.model,
        data=head.data,
        objective=spec.objective,
        protocol=head.protocol,
        seed=spec.seed,
        images=len({r.image_id for r in ordered}),
        rows=(
            *make_rows(ordered, spec, checks),
            *(() if spec.campaign else make_accounts(ordered, spec, checks, times)),
        ),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def _read_row(values: dict[str, Any]) -> Row:
    known = {k: v for k, v in values.items() if k in Row.__dataclass_fields__}
    return Row(**{**known, "failed_checks": tuple(known.get("failed_checks", ()))})
