"""Starting Ray quietly: loopback only, no usage report, no dashboard, no stray lines."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from udc_ray.errors import UserError
from udc_ray_cluster.tokens import HOW_TO_SET, no_entry

QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def session(hosts: int = 2, address: str | None = None, runtime_env: dict[str, object] | None = None) -> Iterator[None]:
    """Connect to Ray, or start it on this machine, and leave it again.

    Args:
        hosts: hosts that will be asked for, to size a local cluster.
        address: an existing cluster (``host:port``, ``ray://...`` or ``auto``); a local one
            is started unless given.
        runtime_env: what the workers of an existing cluster need; a job's own holds unless given.

    Raises:
        UserError: Ray cannot be reached.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None:
        _stay_on_loopback()
    _hush()
    import ray

    arguments = _arguments(hosts, address) | ({} if runtime_env is None else {"runtime_env": runtime_env})
    with warnings.catch_warnings(), _workers_find_what_we_find():
        warnings.simplefilter("ignore")
        try:
            ray.init(**arguments)
        except ray.exceptions.AuthenticationError as error:
            raise no_entry(error) from error
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"cannot {'reach Ray at ' + address if address else 'start Ray here'}: {first}",
                "no cluster listens there, or its token is missing" if address else "too little memory or disk in /tmp",
                f"check the address; {HOW_TO_SET}" if address else "give --in-process to run without Ray",
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _workers_find_what_we_find() -> Iterator[None]:
    """Let the processes of a local cluster import from where this one does (a user's model factory)."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, [os.getcwd(), *sys.path])))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _hush() -> None:
    """Send what Ray's daemons report to our log; Ray prints it on stdout, whatever log_to_driver says."""
    from ray._private import worker

    def to_log(data: dict[str, object], ignore_prefix: bool) -> None:
        logging.getLogger(__name__).debug("%s: %s", data.get("pid"), data.get("lines"))

    worker.print_to_stdstream = to_log


def _stay_on_loopback() -> None:
    """Keep every socket of a local cluster on 127.0.0.1; a plain ray.init() listens on 0.0.0.0.

    Off Linux, Ray does so by itself; the variable asks for the same here. Its processes read it
    when they start, but this one may have imported Ray before, so the constant is set as well.
    """
    os.environ[LOOPBACK_VARIABLE] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def _arguments(hosts: int, address: str | None) -> dict[str, object]:
    quiet: dict[str, object] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": True,
        "namespace": "udc-ray",
    }
    if address:
        return quiet | {"address": address}
    return quiet | {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": max(hosts, 2),
        "object_store_memory": 256 * 1024**2,
        "_node_ip_address": "127.0.0.1",
    }
