"""What `udc-ray doctor` found, as a table and as a document: pure functions of the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from udc_ray.doctor import Finding
from udc_ray.records import SCHEMA_VERSION

STYLES = {"ok": "green", "info": "dim", "warn": "yellow", "fail": "bold red"}


def render(findings: Sequence[Finding]) -> RenderableType:
    """One table a machine, this one first, and a last line that counts.

    Args:
        findings: in the order in which they are shown.
    """
    parts: list[RenderableType] = []
    for node in dict.fromkeys(f.node for f in findings):
        parts += [_table(node, [f for f in findings if f.node == node]), Text()]
    counts = Counter(f.verdict for f in findings)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("ok", "info", "warn", "fail") if counts[verdict])
    return Group(*parts, Text(f"Findings: {tally or 'none'}", style="bold"))


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON values."""
    return {"schema_version": SCHEMA_VERSION, "findings": [asdict(f) for f in findings]}


def failed(findings: Sequence[Finding]) -> bool:
    """Whether something has to be mended before a run can work."""
    return any(f.verdict == "fail" for f in findings)


def _table(node: str, findings: Sequence[Finding]) -> Table:
    title = f"Node {node}" if node else "This machine"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("advice", overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=STYLES[finding.verdict])
        # plain text: what a machine reports may hold square brackets, which are no markup here
        table.add_row(verdict, Text(finding.name), Text(finding.value), Text(finding.advice))
    return table
