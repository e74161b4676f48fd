"""Namespaces are hosts: they meet one another and nobody else, lose one another, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from network import NAMESPACES, TEMPORARY, Host, Network, NetworkError, remove_leftovers

HERE = Path(__file__).parent
PORT = 5000


@pytest.fixture(scope="module")
def pair() -> Iterator[Network]:
    with Network("left", "right") as network:
        yield network


def greets(caller: Host, address: str, greeter: Host) -> bool:
    """Whether a connection from one host to an address reaches a server on another."""
    with greeter.inside(lambda: socket.create_server(("0.0.0.0", PORT))) as server:
        server.settimeout(5)

        def call() -> socket.socket | None:
            try:
                return socket.create_connection((address, PORT), timeout=1.5)
            except OSError:
                return None

        connection = caller.inside(call)
        if connection is None:
            return False
        with connection, server.accept()[0] as accepted:
            accepted.sendall(b"hello")
            return connection.recv(5) == b"hello"


def namespaces_of(process: int) -> list[str]:
    return [path.name for path in NAMESPACES.iterdir() if path.name.split("-")[1:2] == [str(process)]]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even where nobody has asked for its exit code yet."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_hosts_reach_each_other(pair: Network) -> None:
    left, right = pair["left"], pair["right"]
    assert left.address != right.address
    assert greets(left, right.address, right)
    assert greets(right, left.address, left)


def test_a_process_has_its_hosts_name_and_knows_the_others(pair: Network) -> None:
    code = "import socket; print(socket.gethostname(), socket.gethostbyname('left'), socket.gethostbyname('localhost'))"
    answer = pair["right"].run([sys.executable, "-c", code])
    assert answer.stdout.split() == ["right", pair["left"].address, "127.0.0.1"], answer.stderr


def test_cut_and_mend(pair: Network) -> None:
    left, right = pair["left"], pair["right"]
    pair.cut(right)
    assert not greets(left, right.address, right)
    assert not greets(right, left.address, left)
    assert greets(right, "127.0.0.1", right)
    pair.mend(right)
    assert greets(left, right.address, right)


def test_networks_do_not_meet(pair: Network) -> None:
    with Network("left") as other:
        assert other["left"].address != pair["left"].address
        assert not greets(other["left"], pair["left"].address, pair["left"])


def test_a_private_folder_is_empty_and_stays_the_hosts_own(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("everybody's")
    with Network("plain") as network:
        alone = network.add("alone", private=[tmp_path])
        assert alone.run(["ls", tmp_path]).stdout == ""
        alone.run(["touch", tmp_path / "mine"])
        assert alone.run(["ls", tmp_path]).stdout == "mine\n"
        assert network["plain"].run(["ls", tmp_path]).stdout == "shared\n"
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_process_keeps_its_id_output_and_exit_code(pair: Network) -> None:
    code = "import os, sys; print(os.getpid(), os.environ['SAID']); print('aside', file=sys.stderr); sys.exit(3)"
    out = pair.folder / "out"
    with out.open("wb") as stream:
        process = pair["left"].popen(
            [sys.executable, "-c", code], env={"SAID": "hello"}, stdout=stream, stderr=subprocess.DEVNULL
        )
    assert process.wait(30) == 3
    assert out.read_text().split() == [str(process.pid), "hello"]


def test_a_program_that_takes_too_long_is_killed(pair: Network) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        pair["left"].run(["sleep", "60"], timeout=0.5)
    assert pair["left"].pids() == []


def test_an_exception_leaves_nothing_behind() -> None:
    before = set(NAMESPACES.iterdir())
    with pytest.raises(ZeroDivisionError), Network("a", "b") as network:
        # The grandchild has left its parent and its session: only its namespace tells whose it is.
        orphan = network["a"].run(["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 & echo $!"])
        child, folder = network["b"].popen(["sleep", "300"]), network.folder
        assert psutil.pid_exists(int(orphan.stdout))
        raise ZeroDivisionError
    assert set(NAMESPACES.iterdir()) == before
    assert child.returncode == -signal.SIGKILL
    assert is_gone(int(orphan.stdout))
    assert not folder.exists()
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "veth" not in links
    assert "bridge" not in links


def test_leftovers_of_a_dead_process_are_removed_and_those_of_a_living_one_kept(pair: Network) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(HERE)!r}); from network import Network\n"
        "network = Network('lost').__enter__(); print(network['lost'].popen(['sleep', '300']).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        sleeper = int(process.communicate(timeout=30)[0])
    assert len(namespaces_of(process.pid)) == 2
    remove_leftovers()
    assert namespaces_of(process.pid) == []
    assert is_gone(sleeper)
    assert not list(TEMPORARY.glob(f"udcnet-{process.pid}-*"))
    assert {host.namespace for host in pair.hosts.values()} <= set(namespaces_of(os.getpid()))


def test_a_name_is_given_once(pair: Network) -> None:
    with pytest.raises(NetworkError, match="'left' is no name for a new host"):
        pair.add("left")
