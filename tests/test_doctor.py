"""The findings of the doctor: verdicts and advice, one trouble at a time."""

from __future__ import annotations

import io
import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from udc_ray import doctor, machine, speed
from udc_ray.doctor import Examination, Finding
from udc_ray.library import load
from udc_ray.report.findings import document, failed, render
from udc_ray.storage import Storage

GIB = 2**30
GPU = machine.Gpu(name="NVIDIA L4", memory=24 * GIB, free=20 * GIB, driver="570.86")
SECRET = "a-token-that-nobody-may-see"


def test_versions() -> None:
    fine = doctor.describe_versions({"udc-ray": "0.1", "torch": "2.13", "ray": "2.60", "numpy": "2.4"})
    assert [f.verdict for f in fine] == ["ok", "ok", "ok", "info"]
    assert fine[-1].value == "numpy 2.4"
    without_ray = doctor.describe_versions({"udc-ray": "0.1", "torch": "2.13"})[2]
    assert without_ray.verdict == "warn" and "--in-process" in without_ray.advice
    assert doctor.describe_versions({"ray": "2.60"})[1].verdict == "fail"


@pytest.mark.parametrize(("cores", "verdict"), [(1, "warn"), (3, "warn"), (4, "ok"), (16, "ok")])
def test_threads_of_all_hosts_against_cores(cores: int, verdict: str) -> None:
    finding = doctor.describe_devices(cores, (), Examination(hosts=2, threads=2))[0]
    assert finding.verdict == verdict
    assert bool(finding.advice) == (verdict == "warn")


def test_a_gpu_beside_a_cpu_build_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    *_, card, build = doctor.describe_devices(4, (GPU,), Examination())
    assert "20.0 of 24.0 GiB free, driver 570.86" in card.value
    assert build.verdict == "warn" and "without CUDA" in build.advice


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "driver is older" in doctor.describe_devices(4, (GPU,), Examination())[-1].advice
    assert doctor.describe_devices(4, (), Examination())[-1].verdict == "info"


@pytest.mark.parametrize(("available", "verdict"), [(1, "fail"), (2, "warn"), (3, "ok")])
def test_memory_of_all_hosts(available: int, verdict: str) -> None:
    found = machine.Memory(total=64 * GIB, available=available * GIB)
    assert doctor.describe_memory(found, hosts=2).verdict == verdict
    confined = machine.Memory(total=64 * GIB, available=60 * GIB, limit=available * GIB)
    assert doctor.describe_memory(confined, hosts=2).verdict == verdict
    assert "limited" in doctor.describe_memory(confined, hosts=2).value


@pytest.mark.parametrize(("free", "verdict"), [(GIB // 2, "fail"), (2 * GIB, "warn"), (50 * GIB, "ok")])
def test_disks(free: int, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "disk_free", lambda path: (free, 100 * GIB))
    found = {f.name: f.verdict for f in doctor.describe_disks(str(tmp_path))}
    assert found[f"disk at {tmp_path}"] == found["disk at /tmp"] == verdict


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "disk_free", lambda path: (64 * 2**20, 64 * 2**20))
    found = {f.name: f for f in doctor.describe_disks(str(tmp_path))}
    if Path("/dev/shm").is_dir():
        assert found["/dev/shm"].verdict == "warn" and "--shm-size" in found["/dev/shm"].advice


def test_a_store_has_no_disk_here() -> None:
    assert all("mock:" not in f.name for f in doctor.describe_disks("mock://bucket/runs"))


def test_open_files() -> None:
    assert doctor.describe_files(1024, 65536).verdict == "ok"
    assert doctor.describe_files(1024, resource.RLIM_INFINITY).verdict == "ok"
    few = doctor.describe_files(1024, 4096)
    assert few.verdict == "warn" and "ulimit -n" in few.advice


def test_network_names() -> None:
    assert doctor.describe_names("node", ("10.0.0.5",)).verdict == "ok"
    assert doctor.describe_names("laptop", ("127.0.1.1", "::1")).verdict == "info"
    assert doctor.describe_names("lost", ()).verdict == "warn"


def token_file(folder: Path, mode: int = 0o600) -> Path:
    path = folder / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SECRET)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, "info", "--cluster only"),
        ({"RAY_AUTH_MODE": "token"}, "fail", "RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled"}, "warn", "can run code"),
        ({"RAY_AUTH_TOKEN": SECRET}, "ok", ""),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": SECRET}, "warn", "can run code"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "fail", "RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_access_without_a_token_file(changes: dict[str, str], verdict: str, said: str, tmp_path: Path) -> None:
    finding = doctor.describe_access({"HOME": str(tmp_path)} | changes)
    assert (finding.verdict, said in finding.advice) == (verdict, True)
    assert SECRET not in repr(finding)


def test_access_by_a_token_file(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    for environment in ({"HOME": str(tmp_path)}, {"HOME": "/", "RAY_AUTH_TOKEN_PATH": str(path)}):
        finding = doctor.describe_access(environment | {"RAY_AUTH_MODE": "token"})
        assert finding.verdict == "ok" and str(path) in finding.value
        assert SECRET not in repr(finding)


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    token_file(tmp_path, 0o644)
    finding = doctor.describe_access({"HOME": str(tmp_path)})
    assert finding.verdict == "warn" and "chmod 600" in finding.advice


def test_storage_leaves_nothing_behind(tmp_path: Path) -> None:
    finding = doctor.probe_storage(str(tmp_path / "deep" / "runs"))
    assert finding.verdict == "ok"
    assert all(verb in finding.value for verb in ("write", "read", "list", "delete"))
    assert list(tmp_path.iterdir()) == []


def test_storage_behind_a_uri(tmp_path: Path) -> None:
    assert doctor.probe_storage(f"file://{tmp_path}").verdict == "ok"
    assert list(tmp_path.iterdir()) == []


def test_storage_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = doctor.probe_storage(str(tmp_path / "file" / "runs"))
    assert finding.verdict == "fail" and finding.advice


def test_a_secret_in_the_address_is_not_repeated() -> None:
    findings = [doctor.probe_storage(f"s3://user:{SECRET}@bucket/runs")]
    findings += doctor.describe_disks(f"s3://user:{SECRET}@bucket/runs")
    assert findings[0].verdict == "fail"
    assert SECRET not in repr(findings)


def test_storage_that_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "read", lambda self, name: b"")
    assert "not what was written" in doctor.probe_storage(str(tmp_path)).value
    assert list(tmp_path.iterdir()) == []


def test_speed_is_measured_with_the_threads_that_were_asked_for() -> None:
    before = torch.get_num_threads()
    measured = speed.measure(seconds=0.0, threads=1, restorer=load("identity"))
    assert measured.forward > 0 and measured.gradient > 0
    assert torch.get_num_threads() == before


def test_the_default_run_is_estimated_from_the_speed() -> None:
    measured = speed.Speed(device="cpu", threads=1, forward=50.0, gradient=20.0)
    throughput, run = doctor.describe_speed(measured, hosts=2)
    assert "20.0 with gradient" in throughput.value
    assert run.value == "about 1.8 minutes here"
    _, slow = doctor.describe_speed(replace(measured, gradient=0.5), hosts=1)
    assert slow.verdict == "info" and slow.advice


def test_a_machine_as_a_whole(tmp_path: Path) -> None:
    found = doctor.examine(Examination(out=str(tmp_path), seconds=0))
    names = [f.name for f in found]
    assert len(set(names)) == len(names)
    assert {"torch", "cores", "memory", "authentication", "storage"} <= set(names)
    assert "throughput" not in names
    assert list(tmp_path.iterdir()) == []


FINDINGS = [
    Finding(name="memory", value="3 GiB [of 4]", verdict="ok"),
    Finding(name="storage", value="refused", verdict="fail", advice="give another", node="10.0.0.5 ab"),
]


def test_rendered() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(render(FINDINGS))
    text = out.getvalue()
    assert text.index("This machine") < text.index("3 GiB [of 4]") < text.index("Node 10.0.0.5 ab") < text.index("give")
    assert "Findings: 1 ok, 1 fail" in text


def test_document() -> None:
    made = json.loads(json.dumps(document(FINDINGS)))
    assert set(made) == {"schema_version", "findings"}
    assert [Finding(**entry) for entry in made["findings"]] == FINDINGS


def test_what_fails() -> None:
    assert failed(FINDINGS) and not failed(FINDINGS[:1])
