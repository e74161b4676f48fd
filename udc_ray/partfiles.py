"""The files of one finished unit: its records, curves and attacked images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from udc_ray.compaction import failed
from udc_ray.errors import RunDirectoryError
from udc_ray.records import Record, from_table, to_table
from udc_ray.redact import redact
from udc_ray.results import Adversarial, UnitResult
from udc_ray.spec import canonical_json
from udc_ray.storage import Storage

PARTS, STATE, ARTIFACTS = "parts", "state", "artifacts"
Curves = dict[str, list[tuple[int, float]]]
"""``cell/image/restart`` to (queries, best score)."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RunDirectoryError)


def part_name(records: Sequence[Record]) -> str:
    """Hash of the keys and budgets of a unit; its failure has another name than its success."""
    facts = sorted([*r.key, r.budget or 0, failed(r)] for r in records)
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:20]


def append(storage: Storage, result: UnitResult) -> str:
    """Write a unit, its part last; a readable part of the same name stays as it is."""
    name = part_name(result.records)
    path = f"{PARTS}/{name}.parquet"
    if _is_readable(storage.find(path)):
        return name
    for file, images in _by_size(name, result.images).items():
        storage.write(f"{ARTIFACTS}/{file}", _encode_images(images))
    if result.curves:
        storage.write(f"{STATE}/{_curves_file(name)}", json.dumps(result.curves).encode())
    clean = [r if r.error is None else replace(r, error=redact(r.error)) for r in result.records]
    storage.write(path, encode_records(clean))
    return name


def encode_records(records: Sequence[Record]) -> bytes:
    """Records as the bytes of a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(records), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_records(data: bytes) -> list[Record]:
    """Records of the bytes of a parquet file."""
    return from_table(pq.read_table(pa.BufferReader(data)))


def read_all(
    storage: Storage, fingerprint: str, known: Mapping[str, list[Record]]
) -> tuple[dict[str, list[Record]], dict[str, str]]:
    """Records by part; and what could not be read, with the reason (it does not stop the run).

    Args:
        storage: the run directory.
        fingerprint: of the run.
        known: parts that were read before; one that was written never changes.
    """
    parts: dict[str, list[Record]] = {}
    damaged: dict[str, str] = {}
    files = [file for file in storage.names(PARTS) if file.endswith(".parquet")]
    unread = [file for file in files if file.removesuffix(".parquet") not in known]
    found = dict(zip(unread, storage.each(lambda file: _read_part(storage, file, fingerprint), unread), strict=True))
    for file in files:
        name = file.removesuffix(".parquet")
        records = found.get(file, known.get(name, []))
        if isinstance(records, str):
            damaged[file] = records
        else:
            parts[name] = records
    return parts, damaged


def _read_part(storage: Storage, file: str, fingerprint: str) -> list[Record] | str:
    """Records of a part, or why there are none."""
    try:
        records = decode_records(storage.read(f"{PARTS}/{file}"))
    except _UNREADABLE as error:
        return f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return "belongs to another run" if any(r.run_fingerprint != fingerprint for r in records) else records


def read_images(storage: Storage, parts: Iterable[str]) -> Iterator[tuple[str, list[Adversarial]]]:
    """Attacked images, with the part that they belong to, in the order of the parts; a file at a time."""
    files: dict[str, list[str]] = {}
    for file in storage.names(ARTIFACTS):
        files.setdefault(file.partition(".")[0].partition("-")[0], []).append(file)
    wanted = [(part, file) for part in parts for file in files.get(part, ())]
    yield from storage.each(lambda item: (item[0], _decode_images(storage, f"{ARTIFACTS}/{item[1]}")), wanted)


def read_curves(storage: Storage, parts: Iterable[str]) -> dict[str, Curves]:
    """Curves by part, of the parts that have any."""
    there = set(storage.names(STATE))
    wanted = [part for part in parts if _curves_file(part) in there]
    return dict(zip(wanted, storage.each(lambda part: _read_curves(storage, part), wanted), strict=True))


def _curves_file(part: str) -> str:
    return f"curves-{part}.json"


def _read_curves(storage: Storage, part: str) -> Curves:
    name = f"{STATE}/{_curves_file(part)}"
    try:
        values: dict[str, Any] = json.loads(storage.read(name))
        return {key: [(int(q), float(s)) for q, s in curve] for key, curve in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunDirectoryError(f"{storage}/{name} cannot be read: {error}", "it was changed by hand") from error


def _is_readable(part: bytes | None) -> bool:
    if part is None:
        return False
    try:
        decode_records(part)
    except _UNREADABLE:
        return False
    return True


def _by_size(name: str, images: Sequence[Adversarial]) -> dict[str, list[Adversarial]]:
    """Files for the images, one H x W a file."""
    sizes: dict[tuple[int, ...], list[Adversarial]] = {}
    for image in images:
        sizes.setdefault(image.x.shape, []).append(image)
    if len(sizes) == 1:
        return {f"{name}.npz": list(images)}
    return {f"{name}-{'x'.join(map(str, shape))}.npz": group for shape, group in sizes.items()}


def _encode_images(images: Sequence[Adversarial]) -> bytes:
    sink = io.BytesIO()
    np.savez(
        sink,
        x=np.stack([i.x for i in images]).astype(np.float32),
        x_adv=np.stack([i.x_adv for i in images]).astype(np.float32),
        cell=np.array([i.cell for i in images]),
        image_id=np.array([i.image_id for i in images]),
        restart=np.array([i.restart for i in images], dtype=np.int64),
    )
    return sink.getvalue()


def _decode_images(storage: Storage, name: str) -> list[Adversarial]:
    try:
        with np.load(io.BytesIO(storage.read(name)), allow_pickle=False) as file:
            columns = [file[key] for key in ("cell", "image_id", "restart", "x", "x_adv")]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise RunDirectoryError(f"{storage}/{name} cannot be read: {error}", "it was changed by hand") from error
    return [
        Adversarial(cell=str(cell), image_id=str(image_id), restart=int(restart), x=x, x_adv=x_adv)
        for cell, image_id, restart, x, x_adv in zip(*columns, strict=True)
    ]
