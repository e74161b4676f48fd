"""Several hosts on one machine: Linux network namespaces that a bridge joins.

A `Network` is a switch (a namespace that holds nothing but a bridge) and hosts (a namespace each,
with loopback, an ``eth0`` at the bridge, and an address of its own). As the bridge is in no
namespace that anything else uses, networks neither meet one another nor the machine's own, and
its firewall has no say. A process of a host also has the host's name, ``/etc/hosts`` and, where
asked for, folders that no other host sees. Process ids and the rest of the disk are shared.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

Result = TypeVar("Result")
Output = IO[bytes] | IO[str] | int

PREFIX = "udcnet"
NAMESPACES = Path("/run/netns")
TEMPORARY = Path("/tmp")
"""Not TMPDIR: it may be long, and the paths of the Unix sockets below it have at most 107 characters."""
CLONE_NEWNET = 0x40000000
KEPT_OUT = re.compile(r"^(RAY_.*|.*_proxy)$", re.IGNORECASE)
"""Variables of this process that would lead a host elsewhere: another cluster, a proxy that it cannot reach."""
_numbers = itertools.count()


class NetworkError(RuntimeError):
    """A command that makes or changes a network failed."""


@dataclass
class Host:
    """One machine of the network.

    Attributes:
        name: name of the host, also its hostname.
        address: its IPv4 address.
        namespace: name of its network namespace.
        port: its port at the switch.
        folder: files of this host, on the real disk.
        private: paths where it has an empty folder of its own, as nodes that share no storage have.
    """

    name: str
    address: str
    namespace: str
    port: str
    folder: Path
    private: tuple[Path, ...] = ()
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: Output = subprocess.DEVNULL,
        stderr: Output = subprocess.STDOUT,
    ) -> subprocess.Popen[bytes]:
        """Start a program on this host; the process id is the program's own.

        Args:
            argv: the program and its arguments.
            env: variables on top of this process's (without Ray's and proxies).
            cwd: working directory.
            stdout: open file for the output.
            stderr: open file for the errors; with the output unless given.
        """
        kept = {name: value for name, value in os.environ.items() if not KEPT_OUT.match(name)}
        process = subprocess.Popen(
            self.command(argv),
            env=kept | dict(env or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(
        self,
        argv: Sequence[str | Path],
        timeout: float = 60.0,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; its output and errors as text.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = self.popen(argv, env=env, cwd=cwd, stdout=out, stderr=err)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
                process.wait()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([str(word) for word in argv], code, out.read(), err.read())

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs a program on this host, by steps that all replace one another."""
        steps = [
            f"echo {self.name} > /proc/sys/kernel/hostname",
            _bind(self.folder.parent / "hosts", Path("/etc/hosts")),
        ]
        steps += [_bind(self.folder / f"private-{n}", path) for n, path in enumerate(self.private)]
        script = " && ".join([*steps, 'exec "$@"'])
        inside = ["unshare", "--mount", "--uts", "sh", "-c", script, "sh", *map(str, argv)]
        return ["nsenter", f"--net={NAMESPACES / self.namespace}", *inside]

    def inside(self, function: Callable[[], Result]) -> Result:
        """Call a function with this host's network; sockets that it opens are the host's.

        Only the thread that it runs in is moved, so a library that opens its sockets in
        threads of its own (gRPC) stays outside.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def moved() -> None:
            try:
                with (NAMESPACES / self.namespace).open() as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")
                results.append(function())
            except BaseException as error:  # handed to the caller as it is
                errors.append(error)

        thread = threading.Thread(target=moved, name=f"inside-{self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def pids(self) -> list[int]:
        """Processes that live on this host, whoever started them."""
        return _pids(self.namespace)

    def kill(self) -> None:
        """SIGKILL every process of this host, as a power cut would."""
        _kill_all(self.namespace)
        for process in self.started:
            if process.poll() is None:  # one that was about to enter
                process.kill()
            process.wait()
        self.started.clear()


class Network:
    """A switch with hosts at it; a context manager that leaves nothing behind.

    Args:
        names: hosts to begin with; `add` makes more.
    """

    def __init__(self, *names: str) -> None:
        self.hosts: dict[str, Host] = {}
        self._names = names
        number = next(_numbers)
        self._id = f"{PREFIX}-{os.getpid()}-{number}"
        # Networks do not meet, so another one with the same addresses would do no harm: it is for the reader's sake.
        self.subnet = f"10.{64 + os.getpid() % 128}.{number % 256}"
        self.folder = TEMPORARY / self._id

    def __enter__(self) -> Network:
        remove_leftovers()
        try:
            self.folder.mkdir()
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
            for name in self._names:
                self.add(name)
        except BaseException:  # also Ctrl-C must leave nothing behind
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def add(self, name: str, *, private: Sequence[Path] = ()) -> Host:
        """Connect one more host.

        Args:
            name: its name, of letters, digits and ``-``.
            private: paths that exist and where this host sees an empty folder of its own.
        """
        if name in self.hosts or not re.fullmatch(r"[a-z0-9-]{1,40}", name):
            raise NetworkError(f"{name!r} is no name for a new host")
        number = len(self.hosts) + 1
        host = Host(
            name=name,
            address=f"{self.subnet}.{number}",
            namespace=f"{self._id}-{name}",
            port=f"port{number}",
            folder=self.folder / str(number),
            private=tuple(Path(path).resolve(strict=True) for path in private),
        )
        host.folder.mkdir()
        for index, _ in enumerate(host.private):
            (host.folder / f"private-{index}").mkdir()
        self.hosts[name] = host
        self._connect(host)
        with (self.folder / "hosts").open("a") as names:  # appended in place: processes have it mounted
            names.write(f"{host.address} {name}\n" if number > 1 else f"127.0.0.1 localhost\n{host.address} {name}\n")
        return host

    def cut(self, host: Host) -> None:
        """Pull the cable of a host: nothing comes or goes, its own loopback stays."""
        _ip("-n", self._switch, "link", "set", host.port, "down")

    def mend(self, host: Host) -> None:
        """Put the cable back."""
        _ip("-n", self._switch, "link", "set", host.port, "up")

    def close(self) -> None:
        """Kill what runs on the hosts, and remove them, the switch and their files."""
        with ExitStack() as last_first:  # goes on after an error
            last_first.callback(shutil.rmtree, self.folder, ignore_errors=True)
            last_first.callback(_remove, self._switch)
            for host in self.hosts.values():
                last_first.callback(_remove, host.namespace)
                last_first.callback(host.kill)
        self.hosts.clear()

    @property
    def _switch(self) -> str:
        return f"{self._id}-switch"

    def _connect(self, host: Host) -> None:
        inside, switch = ("-n", host.namespace), ("-n", self._switch)
        _ip("netns", "add", host.namespace)
        _ip(*switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip(*switch, "link", "set", host.port, "master", "bridge", "up")
        _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "link", "set", "eth0", "up")


def remove_leftovers() -> None:
    """Remove the networks of processes that died without doing so."""
    for namespace in _namespaces():
        found = re.match(rf"{PREFIX}-(\d+)-(\d+)-", namespace)
        if found and not Path(f"/proc/{found[1]}").exists():
            _kill_all(namespace)
            _remove(namespace)
    for folder in TEMPORARY.glob(f"{PREFIX}-*-*"):
        if not Path(f"/proc/{folder.name.split('-')[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def available() -> str | None:
    """Why there can be no network here; None where there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found: install iproute2 and util-linux"
    try:
        with Network("probe") as network:
            answer = network["probe"].run(["true"])
    except NetworkError as error:
        return f"no permission to make network namespaces: {error}"
    return f"no permission to enter a host: {answer.stderr.strip()}" if answer.returncode else None


def _bind(source: Path, target: Path) -> str:
    return f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(target))}"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"ip {shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _namespaces() -> list[str]:
    return sorted(path.name for path in NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []


def _remove(namespace: str) -> None:
    with suppress(NetworkError):  # it was never made, or is gone
        _ip("netns", "delete", namespace)


def _pids(namespace: str) -> list[int]:
    try:
        return [int(word) for word in _ip("netns", "pids", namespace).split()]
    except NetworkError:  # the namespace was never made
        return []


def _kill_all(namespace: str) -> None:
    """SIGKILL until nobody is left: a process may start another while we look."""
    deadline = time.monotonic() + 20
    while pids := _pids(namespace):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise NetworkError(f"processes {pids} in {namespace} cannot be killed")
        time.sleep(0.01)
