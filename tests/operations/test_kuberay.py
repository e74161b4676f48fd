"""cluster/kuberay.yaml: the fields of a RayJob, Kubernetes' own schema of its pods, and what we rely on.

The whole schema of KubeRay is used as well where its file is at hand: UDC_RAY_RAYJOB_CRD names
`helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml` of a KubeRay release.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from rayjob_fields import RAY_JOB

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "kuberay.yaml"
KUBERNETES = "1.33"


@pytest.fixture
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return copy.deepcopy(loaded)  # anchors are one object; a change in one place shall stay there


def cluster(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["rayClusterSpec"]
    return found


def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Head and worker groups by name."""
    workers = {group["groupName"]: group for group in cluster(job)["workerGroupSpecs"]}
    return {"head": cluster(job)["headGroupSpec"], **workers}


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: group["template"]["spec"] for name, group in groups(job).items()}


def complaints(value: object, schema: dict[str, Any]) -> list[str]:
    return [f"{e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def check_pod(spec: dict[str, Any]) -> None:
    """Kubernetes' schema, unknown fields refused; a pod of its own is the smallest thing that holds the spec."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def whole_schema(node: Any) -> Any:
    """A CRD's schema as the API server applies it with strict validation: unknown fields are refused."""
    if isinstance(node, list):
        return [whole_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: whole_schema(value) for key, value in node.items() if key != "properties"}
    if "properties" in node:
        made["properties"] = {name: whole_schema(field) for name, field in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    return made


def test_fields_of_the_job(job: dict[str, Any]) -> None:
    assert complaints(job, RAY_JOB) == []


@pytest.mark.parametrize("group", ["head", "gpu", "cpu"])
def test_kubernetes_accepts_the_pods(job: dict[str, Any], group: str) -> None:
    assert set(groups(job)[group]["template"]) <= {"metadata", "spec"}
    check_pod(pods(job)[group])


def test_unknown_fields_are_refused(job: dict[str, Any]) -> None:
    cluster(job)["enableInTreeAutoscalling"] = True
    assert complaints(job, RAY_JOB)
    pod = pods(job)["gpu"]
    pod["containers"][0]["lifecycle"]["preStopp"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pod(pod)


@pytest.mark.cluster
def test_the_whole_schema_of_kuberay(job: dict[str, Any]) -> None:
    path = os.environ.get("UDC_RAY_RAYJOB_CRD")
    if not path:
        pytest.skip("UDC_RAY_RAYJOB_CRD names no ray.io_rayjobs.yaml of a KubeRay release")
    crd = yaml.load(Path(path).read_text(), Loader=yaml.CSafeLoader)
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == job["apiVersion"].removeprefix("ray.io/")]
    schema = whole_schema(version["schema"]["openAPIV3Schema"])
    assert complaints(job, schema) == []
    cluster(job)["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert len(complaints(job, schema)) == 1


def test_every_group_asks_for_the_token(job: dict[str, Any]) -> None:
    assert cluster(job)["authOptions"] == {"mode": "token", "secretName": "udc-ray-token"}
    text = FILE.read_text()
    assert "create secret generic udc-ray-token --from-literal=auth_token=" in text
    assert not re.search(r"^kind: Secret|\b[0-9a-fA-F]{32,}\b", text, re.MULTILINE)


def test_no_work_on_the_head_and_no_way_in_from_outside(job: dict[str, Any]) -> None:
    head = cluster(job)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["serviceType"] == "ClusterIP"
    assert not head.get("enableIngress")


def test_workers_come_and_go(job: dict[str, Any]) -> None:
    assert cluster(job)["enableInTreeAutoscaling"] is True
    assert cluster(job)["autoscalerOptions"]["version"] == "v2"
    for group in cluster(job)["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    limits = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods(job).items()}
    assert [name for name, limit in limits.items() if "nvidia.com/gpu" in limit] == ["gpu"]


def test_workers_drain_within_their_grace(job: dict[str, Any]) -> None:
    recipe = (ROOT / "cluster" / "Dockerfile").read_text()
    for name, pod in pods(job).items():
        if name != "head":
            command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            tool, seconds = shlex.split(command[-1])
            assert int(seconds) < pod["terminationGracePeriodSeconds"]
            assert f"/usr/local/bin/{tool}\n" in recipe


def test_all_see_the_same_storage(job: dict[str, Any]) -> None:
    for pod in pods(job).values():
        (container,) = pod["containers"]
        root = {entry["name"]: entry["value"] for entry in container["env"]}["UDC_RAY_STORAGE"]
        (mount,) = [m for m in container["volumeMounts"] if root.startswith(m["mountPath"])]
        assert mount["name"] in {volume["name"] for volume in pod["volumes"]}


def test_pods_are_not_root(job: dict[str, Any]) -> None:
    for pod in pods(job).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_versions_are_those_of_the_package(job: dict[str, Any]) -> None:
    images = {pod["containers"][0]["image"] for pod in pods(job).values()}
    assert images == {f"registry.example.com/udc-ray:{metadata.version('udc-ray')}"}
    wanted = [Requirement(text) for text in metadata.requires("udc-ray") or []]
    (ray,) = [requirement for requirement in wanted if requirement.name == "ray"]
    assert cluster(job)["rayVersion"] in ray.specifier
