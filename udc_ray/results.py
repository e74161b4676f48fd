"""What a host sends back for a unit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from udc_ray.attacks.oracle import ChainKey
from udc_ray.attacks.query import State
from udc_ray.records import Record

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """One attacked image, as it is kept under artifacts/."""

    cell: str
    image_id: str
    restart: int
    x: Floats
    """Untouched input, C x H x W."""
    x_adv: Floats


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """Records, attacked images, and the curves of query attacks."""

    records: list[Record]
    images: list[Adversarial] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """``cell/image/restart`` to (queries asked, best score)."""
    executed: dict[str, int] = field(default_factory=dict)
    """Forward passes really executed, by purpose."""
    states: dict[ChainKey, State] = field(default_factory=dict)
    """States of chains that can go on; a result without records holds nothing else."""
    chain_cell: str = ""
    """The cell under which the states are kept."""

    @property
    def queries(self) -> int:
        """Queries that the attack asked for; blind cells and samples repeat the counts of a triple."""
        counted = {r.key[:3]: r.queries or 0 for r in self.records if r.grad_mode != "blind"}
        return sum(counted.values())
