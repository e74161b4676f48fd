"""Starting Ray quietly: loopback only, no usage report, no dashboard, no stray lines."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from udc_ray.errors import UserError

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Off Linux, Ray keeps a local cluster on 127.0.0.1; this asks for the same here. With the
    # default every socket of a plain ray.init() listens on 0.0.0.0.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


@contextmanager
def session(hosts: int, address: str | None = None) -> Iterator[None]:
    """Connect to Ray, or start it on this machine, and leave it again.

    Args:
        hosts: hosts that will be asked for, to size a local cluster.
        address: an existing cluster (``host:port``, ``ray://...`` or ``auto``); a local one
            is started unless given.

    Raises:
        UserError: Ray cannot be reached.
    """
    os.environ.update({k: v for k, v in LOCAL_ENVIRONMENT.items() if k not in os.environ})
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(**_arguments(hosts, address))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"cannot {'reach Ray at ' + address if address else 'start Ray here'}: {error}",
                "no cluster listens there, or its token is missing" if address else "too little memory or disk in /tmp",
                "check RAY_ADDRESS, or give --in-process to run without Ray",
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


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
