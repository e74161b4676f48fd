"""A run on the Ray that this process is connected to: as the driver of a job, or attached from a shell."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import ray

from udc_ray.errors import UserError
from udc_ray.metered.model import endpoint_of
from udc_ray.places import places_of
from udc_ray.prepare import Prepared, prepare
from udc_ray.run import Finished, Listener, Settings, execute
from udc_ray.rundir import RunDirectory
from udc_ray.setup import HostSetup
from udc_ray.spec import RunSpec
from udc_ray.stores import child
from udc_ray_cluster.metrics import Metered
from udc_ray_cluster.placement import place, place_metered
from udc_ray_cluster.pool import RayPool
from udc_ray_cluster.request import STORAGE_VARIABLE
from udc_ray_cluster.session import session
from udc_ray_cluster.sharing import refuse_unshared
from udc_ray_cluster.shipping import EXCLUDES, Freight, own_code


def storage_root() -> str:
    """The storage root that is set here, else ``runs/`` of this folder."""
    return os.environ.get(STORAGE_VARIABLE) or os.path.abspath("runs")


def evaluate_on_this_machine(spec: RunSpec, listener: Listener, settings: Settings) -> Finished:
    """Evaluate on a Ray that is started here and ends with the run; see `evaluate_here`."""
    prepared = prepare(spec)
    with session(spec.run.hosts):
        return _execute(prepared, listener, settings, existing=False)


def evaluate_attached(
    spec: RunSpec, listener: Listener, settings: Settings, *, address: str, root: str | None
) -> Finished:
    """Evaluate on the cluster at `address`, with this process as the driver; see `evaluate_here`."""
    with tempfile.TemporaryDirectory(prefix="udc-ray-") as folder:
        freight = Freight(Path(folder), root)
        freight.take_code(spec.model.name)
        for entry in spec.defenses:
            freight.take_code(str(entry.params.get("weights", "")))
        freight.check_size()
        runtime_env: dict[str, object] = {"working_dir": folder, "py_modules": own_code(), "excludes": list(EXCLUDES)}
        with session(address=address, runtime_env=runtime_env):
            return evaluate_here(spec, listener, settings, root)


def evaluate_here(spec: RunSpec | None, listener: Listener, settings: Settings, root: str | None) -> Finished:
    """Evaluate on the cluster that this process is connected to.

    Args:
        spec: the run; None to go on with the run directory `settings.out`.
        listener: is told how it goes.
        settings: how it is carried out.
        root: storage root, a folder that all nodes share or a URI; a run without `settings.out` goes
            to ``ROOT/fingerprint8``, or with None to ``runs/UTC-fingerprint8`` here.

    Raises:
        UserError: something cannot be used; among others, a path that the nodes do not share.
        Interrupted: a signal came; what was done is kept.
    """
    spec = spec or RunDirectory.read(_required(settings.out)).header.spec
    refuse_unshared(settings.out or root or os.getcwd(), places_of(spec))
    prepared = prepare(spec, device=device_of_cluster(spec.run.device))
    if settings.out is None and root is not None:
        settings = replace(settings, out=child(root, prepared.setup.fingerprint[:8]))
    return _execute(prepared, listener, settings, existing=True)


def _execute(prepared: Prepared, listener: Listener, settings: Settings, *, existing: bool) -> Finished:
    gpus = 0.0 if existing else ray.cluster_resources().get("GPU", 0.0)
    run, endpoint = prepared.setup.spec.run, endpoint_of(prepared.setup.spec)
    room = place(run, prepared.device, existing=existing, gpus=gpus)
    if endpoint is not None:
        room = place_metered(run, endpoint.concurrency)

    def make_pool(setup: HostSetup) -> RayPool:
        return RayPool(setup, room, prepared.device, note=listener.note)

    return execute(prepared, make_pool, Metered(listener), settings)


def device_of_cluster(wanted: str) -> str:
    """``auto`` takes GPUs where the cluster has any, or can start nodes that have."""
    gpus = _gpus_now_or_later()
    if wanted == "cuda" and not gpus:
        raise UserError(
            "run.device is cuda, but the cluster has no GPU",
            "its nodes have none, or Ray was started there without them",
            "start workers with --num-gpus, or give --set run.device=cpu",
        )
    return "cuda" if wanted == "cuda" or (wanted == "auto" and gpus) else "cpu"


def _gpus_now_or_later() -> bool:
    if ray.cluster_resources().get("GPU", 0) > 0:
        return True
    if ray.util.client.ray.is_connected():  # through ray:// the head's state cannot be asked for
        return False
    config = ray._private.state.state.get_cluster_config()  # what an autoscaler may start; None without one
    return config is not None and any(group.resources.get("GPU", 0) > 0 for group in config.node_group_configs)


def _required(out: str | None) -> str:
    if out is None:
        raise UserError("neither a spec nor a run to go on with", change="give a spec, or --resume RUN")
    return out
