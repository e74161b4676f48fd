"""cluster/grafana.json: what Grafana requires, and every metric of ours shown under its own name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from udc_ray_cluster.metrics import METRICS

FILE = Path(__file__).parents[2] / "cluster" / "grafana.json"
EXPORTED = {metric.prometheus(name): metric for name, metric in METRICS.items()}
OF_RAY = {
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_node_network_receive_speed",
    "ray_node_network_send_speed",
    "ray_cluster_active_nodes",
    "ray_object_store_used_memory",
}
"""Names that Ray's own agent exports, read off a running node; see also its default dashboard."""


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(FILE.read_text())
    return loaded


def shown(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Expression and legend of every target."""
    return [(t["expr"], t["legendFormat"]) for panel in shown(dashboard) for t in panel["targets"]]


def names(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def test_python_reads_it_as_it_stands() -> None:
    result = subprocess.run([sys.executable, "-m", "json.tool", "--indent", "2", FILE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == FILE.read_text()


def test_has_the_fields_that_grafana_wants(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["title"] and dashboard["uid"]
    assert dashboard.get("id") is None  # Grafana gives the number; another one's would overwrite that dashboard
    assert {"time", "templating", "annotations", "panels"} <= set(dashboard)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in shown(dashboard):
        assert {"title", "type", "gridPos", "targets", "fieldConfig", "datasource", "description"} <= set(panel)
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
        assert all(target["expr"].strip() for target in panel["targets"])


def test_panels_lie_side_by_side(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_data_source_is_a_variable(dashboard: dict[str, Any]) -> None:
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in shown(dashboard):
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps([dashboard["panels"], dashboard["templating"]])))
    assert used - {"__all"} <= set(variables)


def test_shows_every_metric_of_ours_and_no_other(dashboard: dict[str, Any]) -> None:
    asked = set().union(*(names(expression) for expression, _ in queries(dashboard)))
    assert {name for name in asked if name.startswith("ray_udc_ray_")} == set(EXPORTED)
    assert {name for name in asked if not name.startswith("ray_udc_ray_")} <= OF_RAY
    assert {"ray_node_cpu_utilization", "ray_node_gpus_utilization", "ray_node_mem_used"} <= asked


def test_legends_and_sums_use_the_labels_that_metrics_have(dashboard: dict[str, Any]) -> None:
    for expression, legend in queries(dashboard):
        for name in names(expression) & set(EXPORTED):
            assert set(re.findall(r"{{(\w+)}}", legend)) == set(EXPORTED[name].tags)


def test_counters_are_shown_as_rates(dashboard: dict[str, Any]) -> None:
    for expression, _ in queries(dashboard):
        for name in names(expression) & set(EXPORTED):
            rated = re.search(rf"\b(rate|increase)\({name}", expression) is not None
            assert rated == (EXPORTED[name].kind == "counter"), expression


def test_brackets_close(dashboard: dict[str, Any]) -> None:
    for expression, _ in queries(dashboard):
        for left, right in ("()", "{}", "[]"):
            assert expression.count(left) == expression.count(right)
