"""States of query chains against the records of the chains that they belong to."""

from __future__ import annotations

import zipfile

from udc_ray.attacks.query import State
from udc_ray.errors import RunDirectoryError
from udc_ray.records import Record
from udc_ray.states import FOLDER, decode_state, state_file
from udc_ray.verify.base import Audit, Finding
from udc_ray.verify.evidence import Evidence, Triple, name_of


def check_states(evidence: Evidence) -> Finding:
    """A state goes on from its record: as many queries or more, and the curve begins alike."""
    audit = Audit("states of query chains")
    there = {f"{FOLDER}/{name}" for name in evidence.run.storage.names(FOLDER) if name.startswith("chain-")}
    owners = {state_file(t[0], (t[1], t[2])): t for t in evidence.triples}
    owned = [name for name in sorted(there) if name in owners]
    for name, state in zip(owned, evidence.run.storage.each(lambda n: _read(evidence, n), owned), strict=True):
        if audit.holds(name, state is not None, "cannot be read; the chain would begin anew") and state is not None:
            _state(audit, evidence, owners[name], state)
    audit.gap("states of chains without a record", len(there - owners.keys()), "they are still under way")
    return audit.finding()


def _state(audit: Audit, evidence: Evidence, triple: Triple, state: State) -> None:
    where, record = f"state: {name_of(triple)}", evidence.triples[triple][0]
    asked, curve = state.get("asked"), state.get("curve")
    if not isinstance(asked, int) or not isinstance(curve, list):
        audit.gap("states of an attack's own kind", 1, "they hold neither a count nor a curve")
        return
    behind = f"it has asked {asked} queries, its record {record.queries}"
    audit.holds(where, asked >= (record.queries or 0), behind)
    if asked == record.queries:
        _curve(audit, evidence, triple, record, [(int(q), float(v)) for q, v in curve])


def _curve(audit: Audit, evidence: Evidence, triple: Triple, record: Record, curve: list[tuple[int, float]]) -> None:
    try:
        recorded = evidence.curves.get("/".join(map(str, triple)), [])
    except RunDirectoryError:
        return  # said where the curves are audited
    audit.same(f"curve: {name_of(triple)}", recorded, curve, "differs from the state of the chain")


def _read(evidence: Evidence, name: str) -> State | None:
    try:
        return decode_state(evidence.run.storage.read(name))
    except (RunDirectoryError, ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        return None
