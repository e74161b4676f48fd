"""What a host needs to know of a run."""

from __future__ import annotations

from dataclasses import dataclass

from udc_ray.data.base import Dataset
from udc_ray.plan import Plan
from udc_ray.probe import Resolved
from udc_ray.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class HostSetup:
    """All that a host needs to know of a run; small and picklable."""

    spec: RunSpec
    plan: Plan
    dataset: Dataset
    fingerprint: str
    model_name: str
    resolved: Resolved
    out: str | None = None
    """The run directory, for whoever looks for saved states."""
