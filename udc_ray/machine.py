"""What this machine has: cores, memory, disks, GPUs, names, as far as this process may use them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_NO_LIMIT = 2**60
"""cgroup v1 writes a number near 2^63 where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory in bytes; `limit` is the control group's, None where there is none."""

    total: int
    available: int
    limit: int | None = None

    @property
    def usable(self) -> int:
        """What may still be taken, bytes."""
        return self.available if self.limit is None else min(self.available, self.limit)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its driver sees it; memory in bytes."""

    name: str
    memory: int
    free: int
    driver: str


def usable_cpus(root: Path = ROOT) -> int:
    """Cores that this process may use: its affinity and the quota of its control groups, at least 1.

    Args:
        root: where ``proc`` and ``sys`` lie; another than ``/`` in tests.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([cores, *quotas])))


def memory(root: Path = ROOT) -> Memory:
    """Memory of the machine and the limit of the control group; see `usable_cpus`."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _memory_limit(folder)) is not None]
    facts = _meminfo(root / "proc/meminfo")
    page = os.sysconf("SC_PAGE_SIZE")
    total = facts.get("MemTotal") or page * os.sysconf("SC_PHYS_PAGES")
    return Memory(total=total, available=facts.get("MemAvailable", total), limit=min(limits, default=None))


def disk_free(path: Path) -> tuple[int, int]:
    """Free and total bytes of the disk that holds a path, which need not exist yet."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def gpus() -> tuple[Gpu, ...]:
    """GPUs that the driver's own tool names; none where there is no such tool."""
    query = "--query-gpu=name,memory.total,memory.free,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(gpu for line in answer.stdout.splitlines() if (gpu := _read_gpu(line)) is not None)


def addresses(name: str | None = None) -> tuple[str, ...]:
    """Addresses that a host name, this machine's unless given, resolves to; empty where it does not."""
    try:
        found = socket.getaddrinfo(name or socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(sorted({str(entry[4][0]) for entry in found}))


def missing_folders(folder: Path | None) -> list[Path]:
    """The folders that making this one would make, innermost first."""
    if folder is None:
        return []
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove folders that are empty, innermost first."""
    for path in folders:
        with suppress(OSError):  # somebody else's file is in it by now, or it never came to be
            path.rmdir()


def _read_gpu(line: str) -> Gpu | None:
    """One line of nvidia-smi; None where a field is no number, such as ``[N/A]``."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 4 or not fields[1].isdigit() or not fields[2].isdigit():
        return None
    return Gpu(name=fields[0], memory=int(fields[1]) * 2**20, free=int(fields[2]) * 2**20, driver=fields[3])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that hold this process, from its own up to the root; v2, then v1."""
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # A container may see itself as /docker/ID while its folder is mounted as the top: all are looked at.
        top = root / "sys/fs/cgroup" / (controllers and controller)
        inner = top / group.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))


def _cpu_quota(folder: Path) -> float | None:
    v2 = (_text(folder / "cpu.max") or "").split()
    if len(v2) == 2:
        return None if v2[0] == "max" else int(v2[0]) / int(v2[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _memory_limit(folder: Path) -> int | None:
    found = (_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes"))
    return next((limit for limit in found if limit is not None and limit < _NO_LIMIT), None)


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name."""
    lines = (line.split() for line in (_text(path) or "").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) >= 2 and words[1].isdigit()}
