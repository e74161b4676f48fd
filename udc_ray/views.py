"""The pictures that a report shows of one image."""

from __future__ import annotations

from dataclasses import dataclass

from udc_ray.results import Floats


@dataclass(frozen=True, kw_only=True)
class View:
    """Arrays C x H x W; outputs are unclamped. `purified` is None when undefended."""

    degraded: Floats
    restored: Floats
    attacked: Floats
    attacked_output: Floats
    purified: Floats | None
    truth: Floats | None
