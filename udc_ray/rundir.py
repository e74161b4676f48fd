"""The run directory: created or resumed, never mixed up, never half-written.

- ``spec.yaml``: the spec, with `fingerprint:` and, once probed, `resolved:`
- ``fingerprint.json``: what the fingerprint is the hash of
- ``environment.json``: with what, where and how
- ``selection.json``: how noise levels were chosen, where they were
- ``lock``: the live writer
- ``parts/``: one part per finished unit
- ``state/``: curves of query attacks, by part, and the states that a raised budget goes on from, by chain
- ``artifacts/``: attacked images, by part
- ``results.parquet``: all parts, compacted
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from udc_ray import environment, partfiles
from udc_ray.compaction import compact, done_keys, quarantined_keys
from udc_ray.config import RECORDED_KEYS, dump_yaml, spec_values
from udc_ray.errors import RunDirectoryError, SpecError
from udc_ray.fingerprint import first_difference, hash_document
from udc_ray.lock import LOCK, RunLock
from udc_ray.plan import RecordKey
from udc_ray.records import Record
from udc_ray.redact import redact_values
from udc_ray.results import Adversarial, UnitResult
from udc_ray.spec import RunSpec, canonical_json, parse_spec
from udc_ray.states import save_state, state_file
from udc_ray.storage import Storage, is_temporary
from udc_ray.yaml_text import load_yaml

SPEC, DOCUMENT, ENVIRONMENT, RESULTS = "spec.yaml", "fingerprint.json", "environment.json", "results.parquet"
SELECTION = "selection.json"
_BEFORE_SPEC = frozenset({LOCK, DOCUMENT, ENVIRONMENT})
"""All that a start that was cut short can leave behind."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What spec.yaml says.

    Attributes:
        spec: the run.
        fingerprint: its fingerprint.
        resolved: what the probes settled; None before they have run.
    """

    spec: RunSpec
    fingerprint: str
    resolved: dict[str, Any] | None


def default_out(fingerprint: str, root: str = "runs", time: datetime | None = None) -> str:
    """Where a run goes unless told: ``runs/UTC-fingerprint8``."""
    stamp = (time or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    return f"{root}/{stamp}-{fingerprint[:8]}"


class RunDirectory:
    """A run on disk; make one with `open` to write, or with `read` to look.

    Attributes:
        storage: where its files are.
        header: what spec.yaml says.
        resumed: whether the run was there before.
        warnings: what should be said on a resume.
        damaged: parts that could not be read, with the reason; filled by `records`.
    """

    def __init__(self, storage: Storage, header: Header, *, lock: RunLock | None = None, resumed: bool = True) -> None:
        self.storage, self.header, self.resumed = storage, header, resumed
        self.warnings: list[str] = []
        self.damaged: dict[str, str] = {}
        self._read: dict[str, list[Record]] = {}
        self._lock = lock

    @classmethod
    def open(
        cls,
        out: str,
        spec: RunSpec,
        document: Mapping[str, Any],
        session: Mapping[str, Any],
        *,
        patience: float = 0.0,
        note: Callable[[str], None] | None = None,
        job: str | None = None,
    ) -> RunDirectory:
        """Create the run, or go on with it when the fingerprint is the same.

        Args:
            out: a local path, or a URI that pyarrow opens.
            spec: the validated run.
            document: `udc_ray.fingerprint.fingerprint_document` of it.
            session: `udc_ray.environment.describe_session`.
            patience: seconds to wait for a writer that may be dead; see `RunLock.acquire`.
            note: is told once that it waits.
            job: id of the cluster job that writes, for those who find the lock.

        Raises:
            RunDirectoryError: another run lies there, or something that is no run; a live writer; a
                disk that cannot be written. Nothing is left behind then.
        """
        storage = Storage(out)
        cls._find(storage, document)  # refused before anything is created
        lock = RunLock(storage, job=job)
        lock.acquire(patience, note)
        try:
            found = cls._find(storage, document)  # again, as another writer may just have ended
            resolved = found.resolved if found is not None else None
            header = Header(spec=spec, fingerprint=hash_document(document), resolved=resolved)
            run = cls(storage, header, lock=lock, resumed=found is not None)
            run._begin(document, session)
        except BaseException:  # whatever it was, Ctrl-C too, nothing half-begun stays
            _remove_beginnings(storage)
            lock.release()
            _remove_if_empty(storage)
            raise
        return run

    @classmethod
    def read(cls, out: str) -> RunDirectory:
        """Open an existing run to look at it; no lock is taken, and no part can be written."""
        storage = Storage(out)
        if not storage.exists(SPEC):
            raise RunDirectoryError(f"{out} is no run directory", "a wrong path, or a run that never began")
        return cls(storage, _read_header(storage))

    @property
    def message(self) -> str:
        """One line on what `open` did."""
        return f"resuming {self.storage}" if self.resumed else f"writing to {self.storage}"

    def resolve(self, values: Mapping[str, Any]) -> None:
        """Keep what the probes settled; every resume uses it again."""
        header = self.header
        self.header = Header(spec=header.spec, fingerprint=header.fingerprint, resolved=dict(values))
        self._write_spec()

    def append(self, result: UnitResult) -> str:
        """Store a finished unit; the first answer wins, so the same unit stored again changes nothing.

        The part comes last: a unit counts only when all of it is there.

        Returns:
            The name of its part; empty where it has no records.
        """
        self._check_writer()
        self.keep(result)
        if not result.records:
            return ""
        name = partfiles.append(self.storage, result)
        for key in {(r.image_id, r.restart) for r in result.records if r.cell == result.chain_cell} - set(
            result.states
        ):
            self.storage.delete(state_file(result.chain_cell, key))  # kept on the way, of a chain that has ended
        return name

    def keep(self, result: UnitResult) -> None:
        """Keep the states of query chains that can go on."""
        for key, state in result.states.items():
            save_state(self.storage, result.chain_cell, key, state)

    def records(self) -> list[Record]:
        """One record a key from all parts; what cannot be read is put into `damaged`."""
        return [record for record, _ in self._kept()]

    def done_keys(self, budgets: Mapping[str, int | None]) -> set[RecordKey]:
        """Record keys that need no more work; see `compaction.done_keys`."""
        return done_keys(self._all(), budgets)

    def quarantined(self, budgets: Mapping[str, int | None]) -> set[RecordKey]:
        """Record keys of failed units, which only an explicit resume tries again."""
        return quarantined_keys(self._all(), budgets)

    def compact(self) -> list[Record]:
        """Write results.parquet from all parts."""
        self._check_writer()
        records = self.records()
        self.storage.write(RESULTS, partfiles.encode_records(records))
        return records

    def images(self, wanted: Collection[tuple[str, str]] | None = None) -> Iterator[Adversarial]:
        """Attacked images that were kept, of the records that count.

        Args:
            wanted: cells and image ids; the files of others are not read. All unless given.
        """
        counted = (pair for pair in self._kept() if wanted is None or pair[0].key[:2] in wanted)
        owners = {(r.cell, r.image_id, r.restart, part): None for r, part in counted}
        parts = dict.fromkeys(part for *_, part in owners)
        for part, images in partfiles.read_images(self.storage, parts):
            for image in images:
                if (image.cell, image.image_id, image.restart, part) in owners:
                    yield image

    def curves(self) -> partfiles.Curves:
        """``cell/image/restart`` to (queries, best score), of the records that count."""
        owners = {f"{r.cell}/{r.image_id}/{r.restart}": part for r, part in self._kept()}
        found = partfiles.read_curves(self.storage, dict.fromkeys(owners.values()))
        return {name: found[part][name] for name, part in owners.items() if name in found.get(part, ())}

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the run, or None where it is missing."""
        data = self.storage.find(name)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise RunDirectoryError(f"{self.storage}/{name} is no JSON", "it was changed by hand") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run; NaN and infinity are refused."""
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, f"{text}\n".encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write any file of the run, such as ``figures/psf.png``."""
        if self._lock is not None:
            self._check_writer()
        self.storage.write(name, data)

    def update_environment(self, **values: Any) -> None:
        """Add to environment.json (devices, probes, executed, end), with secrets masked."""
        document = self.read_json(ENVIRONMENT) or {}
        self.write_json(ENVIRONMENT, {**document, **redact_values(values)})

    def discard(self) -> None:
        """Take a new run back that has no results; a resumed one, or one with parts, stays."""
        if self.resumed or self.storage.names("parts"):
            return
        self.close()
        for name in (SPEC, ENVIRONMENT, DOCUMENT, SELECTION):
            self.storage.delete(name)
        _remove_beginnings(self.storage)

    def close(self) -> None:
        """Let other writers in."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def _find(cls, storage: Storage, document: Mapping[str, Any]) -> Header | None:
        """The header of the same run; None where there is room for a new one."""
        folder = storage.folder
        if folder is not None and folder.exists() and not folder.is_dir():
            raise RunDirectoryError(f"{storage} is a file", change="give --out with the path of a folder")
        if not storage.exists(SPEC):
            others = [n for n in storage.names() if n not in _BEFORE_SPEC and not is_temporary(n)]
            if others:
                raise RunDirectoryError(
                    f"{storage} is not empty and no run: it holds {others[0]!r}", change="give --out a new folder"
                )
            return None
        header = _read_header(storage)
        if header.fingerprint != hash_document(document):
            _refuse_other_run(storage, document)
        return header

    def _begin(self, document: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        for folder in ("", "parts", "state", "artifacts"):
            for name in self.storage.names(folder):
                if is_temporary(name):
                    self.storage.delete(f"{folder}/{name}" if folder else name)
        if not self.resumed:
            self.write_json(DOCUMENT, document)
        old = self.read_json(ENVIRONMENT) if self.resumed else None
        self.warnings += environment.changed_versions(old, session)
        self.write_json(ENVIRONMENT, environment.add_session(old, session))
        self._write_spec()  # last: it makes the folder a run

    def _write_spec(self) -> None:
        self._check_writer()
        header = self.header
        values = {**spec_values(header.spec), "fingerprint": header.fingerprint}
        if header.resolved is not None:
            values["resolved"] = json.loads(canonical_json(header.resolved))  # YAML knows no tuples
        self.storage.write(SPEC, dump_yaml(values).encode())

    def _check_writer(self) -> None:
        if self._lock is None:
            raise RunDirectoryError(f"{self.storage} was opened to be read", change="open it with its spec to write")
        self._lock.check()

    def _all(self) -> list[Record]:
        return [record for records in self._parts().values() for record in records]

    def _parts(self) -> dict[str, list[Record]]:
        self._read, self.damaged = partfiles.read_all(self.storage, self.header.fingerprint, self._read)
        return self._read

    def _kept(self) -> list[tuple[Record, str]]:
        """The records that count, in the order of their keys, with the part that each comes from."""
        parts = self._parts()
        owner = {id(record): part for part, records in parts.items() for record in records}
        kept = compact(record for records in parts.values() for record in records)
        return [(record, owner[id(record)]) for record in kept]


def _read_header(storage: Storage) -> Header:
    try:
        values = load_yaml(storage.read(SPEC).decode("utf-8"), f"{storage}/{SPEC}")
        spec = parse_spec({key: value for key, value in values.items() if key not in RECORDED_KEYS})
        fingerprint = str(values["fingerprint"])
    except (SpecError, UnicodeDecodeError, AttributeError, KeyError) as error:
        raise RunDirectoryError(
            f"{storage}/{SPEC} cannot be read: {str(error).splitlines()[0]}",
            "it was changed by hand, or written by another version",
            "give --out a new folder",
        ) from error
    return Header(spec=spec, fingerprint=fingerprint, resolved=values.get("resolved"))


def _refuse_other_run(storage: Storage, document: Mapping[str, Any]) -> None:
    field = None
    with suppress(ValueError, RunDirectoryError):
        # through JSON on both sides, so that a tuple equals a list
        field = first_difference(json.loads(storage.read(DOCUMENT)), json.loads(canonical_json(dict(document))))
    raise RunDirectoryError(
        f"{storage} holds another run" + (f": it differs in {field}" if field else ""),
        "the spec, a file it names, or the device changed since",
        "give --out a new folder, or go back to what the run was made with",
    )


def _remove_beginnings(storage: Storage) -> None:
    """Take back what an `open` that failed has made; the lock goes by its own way."""
    with suppress(RunDirectoryError):
        names = storage.names()
        for name in names if SPEC not in names else ():
            if name in _BEFORE_SPEC - {LOCK} or is_temporary(name):
                storage.delete(name)


def _remove_if_empty(storage: Storage) -> None:
    if storage.folder is not None:
        with suppress(OSError):
            storage.folder.rmdir()
