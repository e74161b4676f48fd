"""Reference numbers of the published networks, and the rule by which their weights are filled."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent / "data" / "networks"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def fixture(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What is known of a network, and its input and outputs (`network_input` is always there)."""
    info: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return info, {"network_input": arrays["input"], **arrays}


def fill(network: nn.Module, info: dict[str, Any]) -> None:
    """Give a network the weights of the rule; what follows from its geometry stays."""
    state = network.state_dict()
    for key in set(state) - set(info["integer_keys"]) - set(info["left_as_made"]):
        shape = tuple(state[key].shape)
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        if len(shape) >= 2:
            w = info["gain"] * z / max(1, np.prod(shape[1:])) ** 0.5
        else:
            w = 0.05 * z if key.endswith(("bias", "running_mean")) else abs(1 + 0.05 * z)
        state[key] = torch.from_numpy(np.asarray(w, np.float32))
    network.load_state_dict(state)
