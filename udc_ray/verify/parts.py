"""Parts against their names, against one another, and against results.parquet."""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa

from udc_ray import partfiles
from udc_ray.records import VOLATILE, Record
from udc_ray.rundir import RESULTS
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence

COLUMNS = tuple(f.name for f in fields(Record))


def check_parts(evidence: Evidence) -> Finding:
    """Every part is whole, is this run's, and has the name of its content; results.parquet is all of them."""
    audit = Audit("parts and results.parquet")
    for file, reason in evidence.damaged.items():
        audit.holds(f"parts/{file}", False, reason)
    for part, records in evidence.parts.items():
        audit.same(
            f"parts/{part}.parquet", part, partfiles.part_name(records), "holds other records than its name says"
        )
    if evidence.clash:
        audit.holds("parts", False, evidence.clash)
    else:
        _results(evidence, audit)
    audit.gap(f"columns {', '.join(VOLATILE)}", len(VOLATILE) * len(evidence.records), "measured once, in the run")
    return audit.finding()


def _results(evidence: Evidence, audit: Audit) -> None:
    data = evidence.run.storage.find(RESULTS)
    if data is None:
        audit.gap(RESULTS, len(evidence.records) * len(COLUMNS), "the run has not come to its end")
        return
    try:
        published = {record.key: record for record in partfiles.decode_records(data)}
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        audit.holds(RESULTS, False, f"cannot be read: {type(error).__name__}")
        return
    there = {record.key: record for record in evidence.records}
    for key in sorted(published.keys() | there.keys()):
        where = f"{RESULTS}: {key[1]} restart {key[2]} sample {key[3]} of cell {key[0]}"
        if audit.holds(where, key in there, "no part holds this record: a part is missing") and audit.holds(
            where, key in published, "a part holds a record that is not in the results"
        ):
            for column in COLUMNS:
                audit.same(f"{where}, {column}", getattr(published[key], column), getattr(there[key], column))
