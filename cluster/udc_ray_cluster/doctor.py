"""What `udc-ray doctor --cluster` finds out: every node of a connected cluster, and how they fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import ray

from udc_ray.doctor import Examination, Finding, Verdict, examine
from udc_ray.environment import versions
from udc_ray.errors import UserError
from udc_ray_cluster.everywhere import Answer, ask_every_node, living_nodes
from udc_ray_cluster.sharing import Unshared, first_lines, unshared_nodes

DECISIVE = ("python", "ray", "torch", "udc-ray")
"""Where these differ, objects do not travel (Python, Ray) or numbers differ (torch, udc-ray)."""
NODE_SECONDS = 90.0
"""How long a node may take beyond its throughput probe: a new worker, torch, the weights, the store."""


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What one node tells of itself."""

    versions: dict[str, str]
    findings: tuple[Finding, ...]


def examine_cluster(what: Examination, timeout: float = NODE_SECONDS) -> list[Finding]:
    """Look at every node of the cluster that this process is connected to.

    Args:
        what: as on one machine; every node measures for as long, at the same time.
        timeout: seconds that a node may take beyond its measurement.

    Returns:
        Findings about the cluster, then those of every node under its name.
    """
    answers = ask_every_node(look_around, (what,), timeout + what.seconds)
    reports = {a.node: a.value for a in answers if a.error is None}
    return [
        describe_nodes(answers),
        describe_resources(ray.cluster_resources(), ray.available_resources()),
        describe_draining(draining_nodes()),
        *describe_skew(versions(), {node: report.versions for node, report in reports.items()}),
        probe_sharing(what.out, timeout),
        *(finding for report in reports.items() for finding in _named(*report)),
    ]


def look_around(what: Examination) -> NodeReport:
    """Examine the machine of this process; runs as a task on every node."""
    return NodeReport(versions=versions(), findings=tuple(examine(what)))


def describe_nodes(answers: Sequence[Answer]) -> Finding:
    """How many nodes answered."""
    silent = [Unshared(a.node, a.error) for a in answers if a.error is not None]
    value = f"{len(answers) - len(silent)} of {len(answers)} answered"
    if not silent:
        return Finding(name="nodes", value=value, verdict="ok" if answers else "fail")
    return Finding(name="nodes", value=value, verdict="fail", advice=first_lines(silent))


def describe_resources(total: Mapping[str, float], free: Mapping[str, float]) -> Finding:
    """CPUs, GPUs and memory of the cluster, and what is not taken."""
    shown = [f"{free.get(k, 0):g} of {total[k]:g} {k}" for k in ("CPU", "GPU") if total.get(k)]
    memory = total.get("memory", 0) / 2**30
    value = ", ".join([*shown, f"{memory:.1f} GiB memory"]) + " free"
    if any(total.get(k) for k in ("CPU", "GPU")):
        return Finding(name="resources", value=value, verdict="ok")
    advice = "only a head without CPUs is up: workers join once work is queued, or `ray start --address` on them"
    return Finding(name="resources", value=value, verdict="warn", advice=advice)


def draining_nodes() -> tuple[str, ...]:
    """Nodes that have announced their end."""
    from ray._private.state import state  # Ray has no public call for it

    names = living_nodes()
    return tuple(sorted(names.get(node, node) for node in state.get_draining_nodes()))


def describe_draining(nodes: Sequence[str]) -> Finding:
    """Nodes that take no new work."""
    if not nodes:
        return Finding(name="draining", value="no node", verdict="ok")
    advice = "they take no new units and leave the cluster; new ones take their place where it autoscales"
    return Finding(name="draining", value=", ".join(nodes), verdict="info", advice=advice)


def describe_skew(here: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Decisive versions that differ between this process and the nodes."""
    findings = []
    for name in DECISIVE:
        other: dict[str, list[str]] = {}
        for node, found in nodes.items():
            if found.get(name) != here.get(name):
                other.setdefault(found.get(name, "none"), []).append(node)
        if not other:
            continue
        where = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(other.items()))
        verdict: Verdict = "fail" if _travels_badly(name, here.get(name, ""), other) else "warn"
        value = f"{here.get(name, 'none')} here, {where}"
        findings.append(Finding(name=f"{name} versions", value=value, verdict=verdict, advice=_SAME))
    return findings or [Finding(name="versions", value="the same on every node", verdict="ok")]


_SAME = "install the same versions everywhere; objects and results travel between equals only"


def _travels_badly(name: str, here: str, other: Mapping[str, object]) -> bool:
    """Ray refuses another Ray, and another minor version of Python; the rest computes, but not alike."""
    if name == "python":
        return any(version.split(".")[:2] != here.split(".")[:2] for version in other)
    return name == "ray"


def probe_sharing(out: str, timeout: float) -> Finding:
    """Whether every node sees what is written to the output root here."""
    ask = partial(Finding, name="shared output")
    try:
        unshared = unshared_nodes(out, timeout)
    except UserError as error:
        return ask(value=f"{out} cannot be written here: {error.what}", verdict="fail", advice=error.change)
    if not unshared:
        return ask(value=f"{out}: every node reads what is written here", verdict="ok")
    advice = "give --out on a disk that all nodes mount at the same path, or a store such as s3://bucket/runs"
    return ask(value=first_lines(unshared), verdict="fail", advice=advice)


def _named(node: str, report: NodeReport) -> list[Finding]:
    """The findings of a node, under its name."""
    return [replace(finding, node=node) for finding in report.findings]
