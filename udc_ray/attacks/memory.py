"""Answers that a chain has had before: of use only where a target is deterministic, and only where asked for.

Square sends about half of its late candidates twice. A candidate that was answered before is still a
query that the attack asked for, and counts against its budget; it is not sent again.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from udc_ray.attacks.query import Answer, Wanted

HASH_BYTES = 16


class Memory:
    """Scores and events of one chain, by the candidate's bytes and what was wanted.

    Attributes:
        hits: queries that were answered from here.
    """

    def __init__(self) -> None:
        self.hits = 0
        self._known: dict[bytes, float] = {}

    def name(self, x_CHW: Tensor, wanted: Wanted) -> bytes | None:
        """What an answer is remembered by; None where it is not: maps are large, and never asked for twice."""
        if wanted.kind == "tile-sums":
            return None
        digest = hashlib.blake2b(x_CHW.contiguous().numpy().tobytes(), digest_size=HASH_BYTES, key=wanted.kind.encode())
        return digest.digest()

    def find(self, name: bytes | None) -> Answer | None:
        """An answer that was had before; it counts as a hit."""
        known = None if name is None else self._known.get(name)
        self.hits += known is not None
        return known

    def recall(self, name: bytes | None) -> Answer:
        """An answer that is known to be here; a hit too."""
        self.hits += 1
        return self._known[name or b""]

    def keep(self, name: bytes | None, answer: Answer) -> None:
        """Remember an answer."""
        if name is not None and isinstance(answer, float):
            self._known[name] = answer

    def state(self) -> dict[str, Any]:
        """Plain data."""
        names = np.frombuffer(b"".join(self._known), dtype=np.uint8).reshape(-1, HASH_BYTES)
        return {"hits": self.hits, "names": names, "answers": np.array(list(self._known.values()), dtype=np.float64)}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.hits = int(state["hits"])
        rows = zip(state["names"], state["answers"].tolist(), strict=True)
        self._known = {name.tobytes(): answer for name, answer in rows}
