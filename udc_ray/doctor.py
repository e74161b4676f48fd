"""What `udc-ray doctor` finds out on one machine: versions, devices, memory, access, storage, speed.

A finding is data; it is rendered by `udc_ray.report.findings`, and made for every node of a cluster by
`udc_ray_cluster.doctor`. Nothing here needs Ray.
"""

from __future__ import annotations

import os
import platform
import resource
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from udc_ray import machine
from udc_ray.environment import versions
from udc_ray.errors import UdcRayError
from udc_ray.speed import Speed, measure
from udc_ray.storage import Storage

Verdict = Literal["ok", "warn", "fail", "info"]

GIB = 2**30
HOST_MEMORY = 1.5 * GIB
"""Bytes that a host needs for the default restorer and prior at 128 px, libraries included."""
SMALL_DISK, FULL_DISK = 5 * GIB, GIB
SMALL_SHM = 2 * GIB
"""Ray keeps its objects in /dev/shm; below this it falls back to files in /tmp, which is slow."""
FEW_FILES = 8192
"""Open files: a head needs several for every worker of its cluster."""
DEFAULT_RUN_GRADIENTS = 3600
"""The default run costs as much as so many images through the default restorer and back."""
START_SECONDS = 15
"""Ray, models and probes, before the first unit."""
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What was looked at, such as ``memory``."""
    value: str
    """What was found, with its unit."""
    verdict: Verdict
    advice: str = ""
    """What to change; empty where all is well."""
    node: str = ""
    """Name of the node of a cluster; empty for the machine of the command."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is looked at."""

    out: str = "runs"
    """Where runs would be written: a local path or a URI."""
    seconds: float = 10.0
    """How long the throughput probe measures; 0 leaves it out."""
    hosts: int = 2
    """Hosts of a run on this machine."""
    threads: int = 1
    """Torch threads of a host."""


def examine(what: Examination) -> list[Finding]:
    """Look at this machine; nothing is changed, and files of the probes are removed.

    Args:
        what: paths, durations and sizes.
    """
    return [
        *describe_versions(versions()),
        *describe_devices(machine.usable_cpus(), machine.gpus(), what),
        describe_memory(machine.memory(), what.hosts),
        *describe_disks(what.out),
        describe_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        describe_names(socket.gethostname(), machine.addresses()),
        describe_access(os.environ),
        probe_storage(what.out),
        *probe_speed(what),
    ]


def describe_versions(found: Mapping[str, str]) -> list[Finding]:
    """Versions; what a run needs and is missing fails."""
    findings = []
    for name, advice in (
        ("udc-ray", "install it: pip install . in its folder"),
        ("torch", "install udc-ray anew: pip install ."),
        ("ray", "pip install 'ray[default]'; without it only --in-process runs"),
    ):
        if name in found:
            findings.append(Finding(name=name, value=found[name], verdict="ok"))
        else:
            verdict: Verdict = "warn" if name == "ray" else "fail"
            findings.append(Finding(name=name, value="missing", verdict=verdict, advice=advice))
    others = ", ".join(f"{k} {v}" for k, v in found.items() if k not in {"udc-ray", "torch", "ray"})
    return [*findings, Finding(name="other versions", value=others, verdict="info")]


def describe_devices(cpus: int, gpus: Iterable[machine.Gpu], what: Examination) -> list[Finding]:
    """Cores against what a run would use, and GPUs against what torch can use."""
    wanted = what.hosts * what.threads
    value = f"{cpus} usable of {os.cpu_count() or cpus}, {platform.machine()}"
    too_many = f"{what.hosts} hosts x {what.threads} threads want {wanted} cores: give --set run.hosts={cpus} or less"
    cores = Finding(name="cores", value=value, verdict="ok")
    if wanted > cpus:
        cores = Finding(name="cores", value=value, verdict="warn", advice=too_many)
    found = [
        Finding(
            name=f"GPU {n}",
            value=f"{gpu.name}, {gpu.free / GIB:.1f} of {gpu.memory / GIB:.1f} GiB free, driver {gpu.driver}",
            verdict="ok",
        )
        for n, gpu in enumerate(gpus)
    ]
    return [cores, *found, _cuda(len(found), torch.version.cuda, torch.cuda.is_available())]


def _cuda(gpus: int, built_for: str | None, available: bool) -> Finding:
    if gpus and built_for is None:
        advice = "torch was built without CUDA: install a CUDA build from https://download.pytorch.org/whl"
        return Finding(name="torch and CUDA", value="CPU build beside a GPU", verdict="warn", advice=advice)
    if gpus and not available:
        advice = f"the driver is older than CUDA {built_for} needs, or CUDA_VISIBLE_DEVICES hides the GPUs"
        return Finding(name="torch and CUDA", value=f"CUDA {built_for}, no device", verdict="warn", advice=advice)
    value = f"CUDA {built_for}" if available else "no GPU, runs on the CPU"
    return Finding(name="torch and CUDA", value=value, verdict="ok" if available else "info")


def describe_memory(found: machine.Memory, hosts: int) -> Finding:
    """Memory against what the hosts of a run need."""
    value = f"{found.available / GIB:.1f} of {found.total / GIB:.1f} GiB available"
    if found.limit is not None:
        value += f", control group limited to {found.limit / GIB:.1f} GiB"
    fits = int(found.usable // HOST_MEMORY)
    if fits >= hosts:
        return Finding(name="memory", value=value, verdict="ok")
    advice = f"{hosts} hosts want {hosts * HOST_MEMORY / GIB:.1f} GiB: give --set run.hosts={max(1, fits)}"
    return Finding(name="memory", value=value, verdict="warn" if fits else "fail", advice=advice)


def describe_disks(out: str) -> list[Finding]:
    """Space where runs go, in /tmp where Ray spills and logs, and in /dev/shm where it keeps objects."""
    places = [("disk at /tmp", Path("/tmp"), "Ray writes its logs there: free some space, or RAY_TMPDIR elsewhere")]
    with suppress(UdcRayError):  # the storage probe says what is wrong with the address
        folder = Storage(out).folder
        if folder is not None:
            places.insert(0, (f"disk at {out}", folder, "free some space, or give --out on another disk"))
    findings = [_space(name, path, advice) for name, path, advice in places]
    if Path("/dev/shm").is_dir():
        free, total = machine.disk_free(Path("/dev/shm"))
        advice = "Ray keeps its objects there: give a container --shm-size=4g, or a memory volume at /dev/shm"
        small = total < SMALL_SHM
        findings.append(_gibibytes("/dev/shm", free, total, "warn" if small else "ok", advice))
    return findings


def _space(name: str, path: Path, advice: str) -> Finding:
    free, total = machine.disk_free(path)
    verdict: Verdict = "fail" if free < FULL_DISK else "warn" if free < SMALL_DISK else "ok"
    return _gibibytes(name, free, total, verdict, advice)


def _gibibytes(name: str, free: int, total: int, verdict: Verdict, advice: str) -> Finding:
    value = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return Finding(name=name, value=value, verdict=verdict, advice="" if verdict == "ok" else advice)


def describe_files(soft: int, hard: int) -> Finding:
    """Limits on open files; Ray raises the soft one itself, up to the hard one."""
    value = "unlimited" if hard == resource.RLIM_INFINITY else f"{soft} (at most {hard})"
    if hard == resource.RLIM_INFINITY or hard >= FEW_FILES:
        return Finding(name="open files", value=value, verdict="ok")
    advice = "enough for one machine; before `ray start` on a head, raise it: ulimit -n 65536"
    return Finding(name="open files", value=value, verdict="warn", advice=advice)


def describe_names(name: str, addresses: tuple[str, ...]) -> Finding:
    """The machine's name, and whether others could reach it by that name."""
    if not addresses:
        advice = "the name does not resolve: add it to /etc/hosts, or give `ray start --node-ip-address`"
        return Finding(name="network name", value=name, verdict="warn", advice=advice)
    value = f"{name} ({', '.join(addresses)})"
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        advice = "only this machine reaches that address; for a cluster give `ray start --node-ip-address`"
        return Finding(name="network name", value=value, verdict="info", advice=advice)
    return Finding(name="network name", value=value, verdict="ok")


def describe_access(environment: Mapping[str, str]) -> Finding:
    """Token authentication of Ray as this process would use it; the token itself is never shown.

    Args:
        environment: variables, as in ``os.environ``.
    """
    mode = environment.get(_MODE, "").lower()
    shown, where, trouble = mode or "not set", _token_place(environment), ""
    if mode == "disabled":
        trouble = f"anyone who reaches the ports of a cluster can run code on it: set {_MODE}=token"
    elif isinstance(where, Path) and stat.S_IMODE(where.stat().st_mode) & 0o077:
        trouble = f"others on this machine can read the token: chmod 600 {where}"
    value = f"{_MODE} {shown}, token {'missing' if where is None else f'in {where}'}"
    if trouble:
        return Finding(name="authentication", value=value, verdict="warn", advice=trouble)
    if where is None:
        advice = f"set {_TOKEN}, or put the cluster's token into ~/.ray/auth_token or the file that {_TOKEN_PATH} names"
        verdict: Verdict = "fail" if mode == "token" or environment.get(_TOKEN_PATH) else "info"
        note = advice if verdict == "fail" else f"needed for --cluster only: {advice}"
        return Finding(name="authentication", value=value, verdict=verdict, advice=note)
    return Finding(name="authentication", value=value, verdict="ok")


def _token_place(environment: Mapping[str, str]) -> str | Path | None:
    """Where Ray would take the token from, in its own order; None where there is none."""
    if environment.get(_TOKEN):
        return _TOKEN
    named = environment.get(_TOKEN_PATH)
    path = Path(named) if named else Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    try:
        return path if path.is_file() and path.stat().st_size else None
    except OSError:
        return None


def probe_storage(out: str) -> Finding:
    """Write, read back, list and delete a small file where runs would go; folders it makes are removed.

    Args:
        out: a local path or a URI.
    """
    try:
        storage = Storage(out)
        made = machine.missing_folders(storage.folder)
        try:
            took = _use(storage, f"doctor-{secrets.token_hex(8)}.probe")
        finally:
            machine.remove_folders(made)
    except UdcRayError as error:
        what, *rest = str(error).splitlines()
        return Finding(name="storage", value=what, verdict="fail", advice="; ".join(rest))
    shown = ", ".join(f"{verb} {1000 * seconds:.0f} ms" for verb, seconds in took.items())
    return Finding(name="storage", value=f"{out}: {shown}", verdict="ok")


def _use(storage: Storage, name: str) -> dict[str, float]:
    """Seconds of every operation on a small file, which is gone afterwards."""
    content = secrets.token_bytes(1024)
    try:
        return {
            "write": _timed(lambda: storage.write(name, content)),
            "read": _timed(lambda: _check(storage.read(name) == content, "what is read is not what was written")),
            "list": _timed(lambda: _check(name in storage.names(), "the file that was written is not listed")),
            "delete": _timed(lambda: storage.delete(name)),
        }
    except UdcRayError:
        with suppress(UdcRayError):  # what went wrong first is what matters
            storage.delete(name)
        raise


def _check(fine: bool, what: str) -> None:
    if not fine:
        raise UdcRayError(what)


def _timed(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def probe_speed(what: Examination) -> list[Finding]:
    """How fast the default restorer is here, and how long the default run would take."""
    if what.seconds <= 0:
        return []
    try:
        speed = measure(seconds=what.seconds, threads=what.threads)
    except UdcRayError as error:
        return [Finding(name="throughput", value=str(error).splitlines()[0], verdict="fail")]
    return describe_speed(speed, min(what.hosts, max(1, machine.usable_cpus() // what.threads)))


def describe_speed(speed: Speed, hosts: int) -> list[Finding]:
    """Images per second, and the minutes of the default run on so many hosts."""
    value = f"{speed.forward:.1f} images/s forward, {speed.gradient:.1f} with gradient"
    value += f" (128 px, {speed.device}, {speed.threads} thread{'s' * (speed.threads > 1)})"
    minutes = (START_SECONDS + DEFAULT_RUN_GRADIENTS / (speed.gradient * hosts)) / 60
    hint = "" if minutes < 10 else "fewer images with --limit 1, or a machine with a GPU"
    return [
        Finding(name="throughput", value=value, verdict="ok"),
        Finding(
            name="default run",
            value=f"about {minutes:.1f} minutes here",
            verdict="ok" if minutes < 10 else "info",
            advice=hint,
        ),
    ]
