"""Which host a run needs: one with a model of our own, or one that asks a metered target."""

from __future__ import annotations

from udc_ray.host import Host
from udc_ray.metered.endpoint import is_target
from udc_ray.models.base import Restorer
from udc_ray.setup import HostSetup


def make_host(setup: HostSetup, *, device: str = "cpu", name: str = "local", restorer: Restorer | None = None) -> Host:
    """Make the host of a run.

    Args:
        setup: the run.
        device: ``cpu`` or ``cuda``.
        name: name in the records.
        restorer: an already loaded restorer.
    """
    if is_target(setup.spec.model.name):
        from udc_ray.metered.host import MeteredHost  # needs httpx, which runs of our own models do not

        return MeteredHost(setup, name=name)
    return Host(setup, device=device, name=name, restorer=restorer)
