"""cluster/slurm.sh on this machine: srun runs its command here, ray and udc-ray only note what they are told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"
JOB = "4242"
ADDRESS = "127.0.0.1"

HELPERS = """
note() { echo "$*" >> FOLDER/notes; }
# on_term TEXT CODE: when told to end, note it and exit
on_term() { trap "kill \\$child 2>/dev/null; sleep 0.2; note '$1'; exit $2" TERM; }
stay() { sleep 30 & child=$!; wait; }
"""
SRUN = """
node=''
while [[ ${1:-} == --* ]]; do
    case $1 in --nodelist=*) node=${1#*=} ;; esac
    shift
done
export NODE=$node
exec "$@"
"""
SCONTROL = '[[ "$1 $2" == "show hostnames" ]] && printf "%s\\n" ${3//,/ }'
HOSTNAME = f'echo "{ADDRESS} 10.9.9.9"'
# A start stays until it is told to end, and notes that it was.
RAY = """
on_term "ray@$NODE ended" 0
note "ray@$NODE $*"
stay
"""
PYTHON = """
cat > /dev/null
until [[ $(grep --count "^ray@.* start" FOLDER/notes) == 3 ]]; do sleep 0.05; done
note "python $*"
exit ${PYTHON_EXIT:-0}
"""
UDC_RAY = """
on_term "udc-ray drained" 143
note "udc-ray $*"
mode=$(stat -c %a "$RAY_AUTH_TOKEN_PATH") size=$(wc -c < "$RAY_AUTH_TOKEN_PATH")
note "token $mode $size $RAY_AUTH_MODE ${RAY_AUTH_TOKEN:-unset}"
note "storage $UDC_RAY_STORAGE"
[[ -z ${UDC_RAY_WAITS:-} ]] || stay
exit ${UDC_RAY_EXIT:-0}
"""
TOOLS = {
    "srun": SRUN,
    "scontrol": SCONTROL,
    "hostname": HOSTNAME,
    "ray": RAY,
    "python": PYTHON,
    "udc-ray": UDC_RAY,
}


@dataclass
class Allocation:
    """A job of three nodes in `folder`, which all of them share."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[bytes]:
        with (self.folder / "stderr").open("w") as errors:
            # env(1) restores what bash could not trap if it had been ignored where pytest began
            command = ["env", "--default-signal=TERM,USR1", "bash", SCRIPT, *arguments]
            return subprocess.Popen(command, env=self.environment | changes, cwd=self.folder, stderr=errors)

    def run(self, *arguments: str, **changes: str) -> int:
        (self.folder / "notes").unlink(missing_ok=True)
        return self.start(*arguments, **changes).wait(timeout=60)

    @property
    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def noted(self, beginning: str) -> list[str]:
        return [line for line in self.notes if line.startswith(beginning)]

    def wait_for(self, beginning: str) -> None:
        end = time.monotonic() + 60
        while not self.noted(beginning):
            assert time.monotonic() < end, self.notes
            time.sleep(0.05)

    @property
    def token_is_gone(self) -> bool:
        return not list(self.folder.glob(".udc-ray-*"))


@pytest.fixture
def job(tmp_path: Path) -> Allocation:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in TOOLS.items():
        tool = tools / name
        tool.write_text("#!/bin/bash" + (HELPERS + body).replace("FOLDER", str(tmp_path)))
        tool.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_", "UDC_RAY_"))}
    slurm = {
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NODELIST": "n1,n2,n3",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_PER_TASK": "6",
    }
    return Allocation(tmp_path, kept | slurm | {"PATH": f"{tools}:{os.environ['PATH']}"})


def option(call: str, name: str) -> str:
    (value,) = [word.split("=", 1)[1] for word in call.split() if word.startswith(f"--{name}=")]
    return value


def test_one_head_and_a_worker_on_every_other_node(job: Allocation) -> None:
    assert job.run() == 0
    (head,) = job.noted("ray@n1 start")
    port = option(head, "port")
    assert " --head " in head and option(head, "node-ip-address") == ADDRESS
    assert option(head, "include-dashboard") == "false"
    assert option(head, "ray-client-server-port") != port
    for node in ("n2", "n3"):
        (worker,) = job.noted(f"ray@{node} start")
        assert option(worker, "address") == f"{ADDRESS}:{port}"
        assert option(worker, "node-ip-address") == ADDRESS
        assert option(worker, "num-cpus") == "6"


def test_the_run_begins_when_all_nodes_have_joined(job: Allocation) -> None:
    job.run()
    (waited,) = job.noted("python")
    assert waited.endswith(" 3")
    assert job.notes.index(waited) < job.notes.index(job.noted("udc-ray")[0])


def test_arguments_reach_udc_ray_as_they_are(job: Allocation) -> None:
    job.run("--preset", "full", "--set", "data.size=64", "--out", "a folder")
    (call,) = job.noted("udc-ray evaluate")
    port = option(job.noted("ray@n1 start")[0], "port")
    wanted = f"udc-ray evaluate --cluster --address {ADDRESS}:{port} --preset full --set data.size=64 --out a folder"
    assert call == wanted


def test_the_token_is_a_file_of_its_own(job: Allocation) -> None:
    job.run(RAY_AUTH_TOKEN="of-another-cluster")
    assert job.noted("token") == ["token 600 64 token unset"]
    assert job.token_is_gone


def test_runs_lie_on_the_shared_folder(job: Allocation) -> None:
    job.run()
    assert job.noted("storage") == [f"storage {job.folder}/runs"]
    job.run(UDC_RAY_STORAGE="s3://bucket/runs")
    assert job.noted("storage") == ["storage s3://bucket/runs"]


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_exit_code_is_that_of_the_run(job: Allocation, code: int) -> None:
    assert job.run(UDC_RAY_EXIT=str(code)) == code
    assert job.token_is_gone


def test_all_nodes_are_let_go(job: Allocation) -> None:
    job.run(UDC_RAY_EXIT="1")
    assert sorted(line for line in job.notes if line.endswith("ended")) == [
        f"ray@{n} ended" for n in ("n1", "n2", "n3")
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_drains_the_run_before_ray_ends(job: Allocation, number: signal.Signals) -> None:
    process = job.start(UDC_RAY_WAITS="yes")
    job.wait_for("storage")
    process.send_signal(number)
    assert process.wait(timeout=60) == 143
    ended = [line for line in job.notes if line.endswith(("drained", "ended"))]
    assert ended[0] == "udc-ray drained" and len(ended) == 4
    assert job.token_is_gone


def test_nodes_that_do_not_join_end_the_job(job: Allocation) -> None:
    assert job.run(PYTHON_EXIT="1") == 1
    assert not job.noted("udc-ray")
    assert len([line for line in job.notes if line.endswith("ended")]) == 3
    assert job.token_is_gone


def test_a_taken_port_is_passed_over(job: Allocation) -> None:
    job.run()
    first = int(option(job.noted("ray@n1 start")[0], "port"))
    with socket.create_server((ADDRESS, first)):
        job.run()
    (head,) = job.noted("ray@n1 start")
    assert int(option(head, "port")) > first
    assert option(head, "ray-client-server-port") != option(head, "port")


def test_jobs_begin_at_different_ports(job: Allocation) -> None:
    ports = set()
    for number in ("4242", "4243"):
        job.run(SLURM_JOB_ID=number)
        ports.add(option(job.noted("ray@n1 start")[-1], "port"))
    assert len(ports) == 2


def test_outside_slurm_it_says_how_it_is_run(job: Allocation) -> None:
    del job.environment["SLURM_JOB_ID"]
    assert job.run() != 0
    assert "sbatch" in (job.folder / "stderr").read_text()
    assert not job.notes
