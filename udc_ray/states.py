"""States of query chains as files of the run, so that a raised budget or a resume goes on where they ended."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udc_ray.attacks.oracle import ChainKey
from udc_ray.attacks.query import State
from udc_ray.storage import Storage

FOLDER, DOCUMENT = "state", "state.json"
_ARRAY, _TENSOR, _TUPLE = "__array__", "__tensor__", "__tuple__"


def state_file(cell: str, key: ChainKey) -> str:
    """Name of the file of one chain."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    return f"{FOLDER}/chain-{cell}-{digest}.npz"


def save_state(storage: Storage, cell: str, key: ChainKey, state: State) -> None:
    """Write the state of a chain, in place of an older one."""
    storage.write(state_file(cell, key), encode_state(state))


def find_state(storage: Storage, cell: str, key: ChainKey) -> State | None:
    """The state of a chain; None where there is none, or one that cannot be read: then it begins anew."""
    data = storage.find(state_file(cell, key))
    try:
        state = None if data is None else decode_state(data)
    except Exception:  # whatever zipfile, zlib, numpy or json make of damaged bytes
        return None
    return state if isinstance(state, dict) else None


def encode_state(state: State) -> bytes:
    """A state as the bytes of an .npz file: one JSON document, and the arrays that it refers to."""
    arrays: dict[str, np.ndarray] = {}
    document = json.dumps(_packed(state, arrays))
    sink = io.BytesIO()
    arrays[DOCUMENT] = np.frombuffer(document.encode(), dtype=np.uint8)
    np.savez_compressed(sink, allow_pickle=False, **arrays)
    return sink.getvalue()


def decode_state(data: bytes) -> State:
    """What `encode_state` wrote, to the bit."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        document = json.loads(file[DOCUMENT].tobytes())
        state: State = _unpacked(document, file)
    return state


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = value.cpu().numpy() if isinstance(value, Tensor) else value
        return {_TENSOR if isinstance(value, Tensor) else _ARRAY: name}
    if isinstance(value, dict):
        return {str(key): _packed(item, arrays) for key, item in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_packed(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any, arrays: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return torch.from_numpy(arrays[value[_TENSOR]])
    if _ARRAY in value:
        return arrays[value[_ARRAY]]
    if _TUPLE in value:
        return tuple(_unpacked(item, arrays) for item in value[_TUPLE])
    return {key: _unpacked(item, arrays) for key, item in value.items()}
