"""The report as one self-contained page: what the console prints, and the pictures of the run below it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from string import Template

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from udc_ray.checks.base import CheckResult
from udc_ray.report.build import is_campaign
from udc_ray.report.campaign_console import print_campaign
from udc_ray.report.console import print_report
from udc_ray.report.summary import Summary
from udc_ray.rundir import RunDirectory

PAGE = "report.html"
WIDTH = 110
"""Columns of the report in the page."""
_INK = [(28, 32, 38), (176, 32, 32), (32, 120, 60), (146, 96, 0), (30, 80, 160), (120, 50, 130), (0, 110, 120)]
_THEME = TerminalTheme((255, 255, 255), (28, 32, 38), [*_INK, (90, 96, 104)])
_SEPARATOR = "\x00"
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: #fff; color: #1c2026;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
pre { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-x: auto; margin: 0; }
figure { margin: 0 0 1.5rem; }
img { max-width: 100%; height: auto; }
figcaption { color: #5a6068; font-size: .85rem; }
$stylesheet
</style>
</head>
<body>
<h1>$title</h1>
<pre>$report</pre>
$pictures</body>
</html>
""")


def page(
    summary: Summary, checks: Sequence[CheckResult], where: str = "", pictures: Mapping[str, bytes] | None = None
) -> str:
    """The page; it loads nothing from anywhere.

    Args:
        summary: the numbers.
        checks: results of the checks.
        where: where the run lies.
        pictures: PNG files by name, in the order in which they are shown.
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    (print_campaign if is_campaign(summary) else print_report)(console, summary, checks, where)
    code_format = "{stylesheet}" + _SEPARATOR + "{code}"
    stylesheet, _, report = console.export_html(theme=_THEME, code_format=code_format).partition(_SEPARATOR)
    shown = "".join(_picture(name, data) for name, data in (pictures or {}).items())
    return _PAGE.substitute(
        title=html.escape(f"udc-ray: {summary.model} on {summary.data}"),
        stylesheet=stylesheet,
        report="\n".join(line.rstrip() for line in report.splitlines()),
        pictures=f"<h2>Pictures</h2>\n{shown}" if shown else "",
    )


def write_page(run: RunDirectory, summary: Summary, checks: Sequence[CheckResult]) -> None:
    """Write report.html of a run, with the figures that lie in it."""
    found = {name: run.storage.find(f"figures/{name}") for name in sorted(run.storage.names("figures"))}
    pictures = {name: data for name, data in found.items() if data is not None}
    run.write_bytes(PAGE, page(summary, checks, run.storage.name, pictures).encode("utf-8"))


def _picture(name: str, data: bytes) -> str:
    title = html.escape(name)
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return f'<figure><img src="{source}" alt="{title}"><figcaption>{title}</figcaption></figure>\n'
