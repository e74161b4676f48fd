"""``udc-ray doctor``: is this machine, or this cluster, fit for a run?"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from udc_ray_cli import options
from udc_ray_cli.way import is_http, required_address

if TYPE_CHECKING:
    from udc_ray.doctor import Examination, Finding

SOME_FAIL = 1


def doctor(
    cluster: options.Cluster = False,
    address: options.Address = None,
    out: Annotated[str | None, typer.Option(help="Where runs would be written.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of the throughput probe; 0 leaves it out.", min=0)] = 10.0,
    as_json: options.AsJson = False,
) -> None:
    """Look at versions, devices, memory, access, storage and speed, and say what to change."""
    from udc_ray.places import absolute
    from udc_ray.report import findings as report

    with redirect_stdout(sys.stderr):
        found = _examine(address, None if out is None else absolute(out), seconds, cluster=cluster)
    if as_json:
        from udc_ray.report.summary import dumps

        sys.stdout.write(dumps(report.document(found)))
    else:
        from udc_ray_cli.show import stdout_console

        stdout_console().print(report.render(found))
    if report.failed(found):
        raise typer.Exit(SOME_FAIL)


def _examine(address: str | None, out: str | None, seconds: float, *, cluster: bool) -> list[Finding]:
    from udc_ray.doctor import Examination, examine
    from udc_ray_cluster.driver import storage_root

    if not cluster:
        return examine(Examination(out=out or storage_root(), seconds=seconds))
    address = required_address(address)
    if is_http(address):
        return _by_job(address, out, seconds)
    return _attached(address, Examination(out=out or storage_root(), seconds=seconds))


def _attached(address: str, what: Examination) -> list[Finding]:
    from udc_ray_cluster.doctor import examine_cluster
    from udc_ray_cluster.session import session
    from udc_ray_cluster.shipping import EXCLUDES, own_code

    with session(address=address, runtime_env={"py_modules": own_code(), "excludes": list(EXCLUDES)}):
        return examine_cluster(what)


def _by_job(address: str, out: str | None, seconds: float) -> list[Finding]:
    from udc_ray.doctor import Finding
    from udc_ray_cli.submission import follow
    from udc_ray_cluster.request import STORAGE_VARIABLE, Request

    request = Request(
        command="doctor",
        out=out,
        storage=os.environ.get(STORAGE_VARIABLE),
        fallback=os.path.abspath("runs"),
        options={"seconds": seconds},
    )
    return [Finding(**values) for values in follow(address, request)["findings"]]
