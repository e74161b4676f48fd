"""The README's section about clusters, followed line by line: on a head, two workers and a laptop."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluations import wait_until
from network import Host, Network

README = Path(__file__).parents[2] / "README.md"
BIN = Path(sys.executable).parent
SHORT = "--limit 1 --set data.size=48 --attack fgsm --defense none --set run.max_hosts=2"
FEW = os.environ.get("UDC_RAY_README_WORDS", SHORT)
"""Put behind every evaluation, so that it is short; UDC_RAY_README_WORDS= runs what is printed."""
RAY_FOLDER = Path("/tmp/ray")


def blocks() -> list[list[str]]:
    """Lines of the section's code blocks, without comments."""
    section = README.read_text().split("## On a cluster\n")[1].split("\n## ")[0]
    code = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return [[line.split(" #")[0].rstrip() for line in block.splitlines()] for block in code]


class Shell:
    """Somebody's shell on one host; what was exported stays."""

    def __init__(self, host: Host, head: str) -> None:
        self.host, self.home = host, host.folder / "home"
        self.home.mkdir()
        self.exports = [f"export HEAD={head}"]

    def do(self, line: str) -> subprocess.CompletedProcess[str]:
        """Type a line and wait for its end."""
        if line.startswith("export "):
            self.exports.append(line)
            return subprocess.CompletedProcess([], 0, "", "")
        place = {"HOME": str(self.home), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
        done = self.host.run(["bash", "-c", "\n".join([*self.exports, line])], 900, env=place, cwd=self.home)
        sys.stderr.write(f"{self.host.name}$ {line}\n{done.stdout}{done.stderr}\n")  # shown where a test fails
        return done


@pytest.fixture
def shells() -> Iterator[list[Shell]]:
    """Head, two workers and a laptop, each with a /tmp/ray of its own."""
    RAY_FOLDER.mkdir(exist_ok=True)
    with Network() as network:
        names = ("head", "worker-1", "worker-2", "laptop")
        hosts = [network.add(name, private=[RAY_FOLDER]) for name in names]
        yield [Shell(host, hosts[0].address) for host in hosts]


def start(shells: list[Shell], lines: list[str]) -> None:
    """Follow the first block on the nodes, and copy the token as its comment says."""
    head, *others = shells
    for shell in shells[:-1]:
        for line in lines:
            if shell is head and line.startswith("ray start --address"):
                continue
            if shell is not head and (line.startswith("ray start --head") or "get-auth-token" in line):
                continue
            assert shell.do(line).returncode == 0, line
            if "get-auth-token" in line:
                for other in others:
                    (other.home / ".ray").mkdir()
                    shutil.copy(head.home / ".ray" / "auth_token", other.home / ".ray")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_section_is_followed_line_by_line(shells: list[Shell], tmp_path: Path) -> None:
    on_nodes, on_laptop = blocks()
    start(shells, on_nodes)
    laptop, job = shells[-1], ""
    for line in on_laptop:
        typed = line.replace("/shared/runs", str(tmp_path)).replace("JOB", job)
        if "udc-ray evaluate" in typed:
            typed = f"{typed} {FEW}"
        if typed.startswith("udc-ray report"):
            run = wait_until(lambda: sorted(tmp_path.glob("*/summary.json")), "a finished run")[0].parent
            typed = typed.replace(str(tmp_path / "RUN"), str(run))
        done = laptop.do(typed)
        if typed.startswith("udc-ray stop"):  # it had ended when its log was followed to the end
            assert done.returncode == 2 and "has ended already" in done.stderr
            continue
        assert done.returncode == 0, typed
        if typed.startswith("udc-ray jobs"):
            job = re.findall(r"udc-[0-9a-f]+-\d+", done.stdout)[-1]
            assert len(set(re.findall(r"udc-[0-9a-f]+-\d+", done.stdout))) == 3  # doctor and two runs
    assert "run:" in done.stdout
