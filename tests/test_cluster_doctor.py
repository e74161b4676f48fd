"""Every node of a cluster examined: on local Ray, and the findings about many nodes as pure functions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from udc_ray.doctor import Examination
from udc_ray.errors import UserError
from udc_ray_cluster import doctor, sharing
from udc_ray_cluster.everywhere import Answer, ask_every_node, living_nodes
from udc_ray_cluster.session import session
from udc_ray_cluster.sharing import Unshared

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "udc-ray": "0.1.0"}


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(1):
        yield


def test_every_node_is_examined(ray_session: None, tmp_path: Path) -> None:
    found = doctor.examine_cluster(Examination(out=str(tmp_path / "runs"), seconds=0, hosts=1))
    (node,) = living_nodes().values()
    assert {f.node for f in found} == {"", node}
    about_all = {f.name: f.verdict for f in found if not f.node}
    assert about_all == dict.fromkeys(["nodes", "resources", "draining", "versions", "shared output"], "ok")
    assert {"cores", "storage", "authentication"} <= {f.name for f in found if f.node}
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_on_a_node_is_its_answer(ray_session: None) -> None:
    (answer,) = ask_every_node(fails, (), 60)
    assert answer.error == "what happened; likely cause: a cause; what to change: a change"
    (silent,) = ask_every_node(sleeps, (), 0.5)
    assert silent.error is not None and "did not answer" in silent.error


def fails() -> None:
    raise UserError("what happened", "a cause", "a change")


def sleeps() -> None:
    time.sleep(60)


def test_the_node_of_the_driver_can_be_left_out(ray_session: None) -> None:
    assert ask_every_node(fails, (), 60, but_here=True) == []


@pytest.mark.parametrize(
    ("name", "version", "verdict"),
    [
        ("python", "3.11.9", "warn"),
        ("python", "3.12.1", "fail"),
        ("ray", "2.59.0", "fail"),
        ("torch", "2.12.0", "warn"),
        ("udc-ray", "0.2.0", "warn"),
    ],
)
def test_skew(name: str, version: str, verdict: str) -> None:
    (finding,) = doctor.describe_skew(HERE, {"a": HERE, "b": HERE | {name: version}})
    assert (finding.name, finding.verdict) == (f"{name} versions", verdict)
    assert f"{HERE[name]} here, {version} on b" in finding.value


def test_no_skew() -> None:
    (finding,) = doctor.describe_skew(HERE, {"a": HERE})
    assert finding.verdict == "ok"


def test_a_silent_node_fails() -> None:
    finding = doctor.describe_nodes([Answer("a", 1, None), Answer("b", None, "did not answer within 9 s")])
    assert finding.verdict == "fail"
    assert finding.value == "1 of 2 answered" and "b: did not answer" in finding.advice


def test_resources() -> None:
    total = {"CPU": 8.0, "GPU": 2.0, "memory": 2.0**34}
    finding = doctor.describe_resources(total, {"CPU": 3.0, "GPU": 0.5})
    assert finding.value == "3 of 8 CPU, 0.5 of 2 GPU, 16.0 GiB memory free"
    assert doctor.describe_resources({"memory": 2.0**34}, {}).verdict == "warn"


def test_draining() -> None:
    assert doctor.describe_draining(()).verdict == "ok"
    assert doctor.describe_draining(("a", "b")).value == "a, b"


def test_a_folder_that_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Unshared(f"10.0.0.{n}", "there is no /runs there") for n in range(5)]
    monkeypatch.setattr(doctor, "unshared_nodes", lambda path, timeout: nodes)
    finding = doctor.probe_sharing("/runs", 1)
    assert finding.verdict == "fail"
    assert "10.0.0.2: there is no /runs there; and 2 more" in finding.value
    monkeypatch.setattr(sharing, "unshared_nodes", lambda path, timeout: nodes)
    with pytest.raises(UserError, match="do not share /runs: 10.0.0.0: there is no"):
        sharing.refuse_unshared("/runs")


def test_a_folder_that_cannot_be_written_here(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = doctor.probe_sharing(str(tmp_path / "file" / "runs"), 1)
    assert finding.verdict == "fail" and "cannot be written here" in finding.value
