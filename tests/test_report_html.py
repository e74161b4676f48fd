"""The report as a page: the console's words, every picture, and nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

from record_factory import QUERY, make_cell
from rich.console import Console

from udc_ray.checks import CheckResult
from udc_ray.report.campaign import build_campaign_summary
from udc_ray.report.console import print_report
from udc_ray.report.html import WIDTH, page
from udc_ray.report.summary import build_summary
from udc_ray.spec import parse_spec

SPEC = parse_spec({"attacks": ["pgd"], "defenses": ["none", "ddim"]})
CHECKS = [CheckResult(check="05-gradient", cell="id of pgd linf 8/255 | ddim full", verdict="fail", message="cut")]


class Page(HTMLParser):
    """Its text, what it refers to, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.report, self.sources, self.titles = "", list[str](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.report += data
        if self.open[-1:] == ["h1"]:
            self.titles.append(data)


def test_the_page_says_what_the_console_says() -> None:
    records = [
        *make_cell([15.0, 16.0], model="a<b>", data="x & y"),
        *make_cell([18.0, 19.0], defense="ddim", grad_mode="full", model="a<b>", data="x & y"),
    ]
    summary = build_summary(records, SPEC, CHECKS)
    out = io.StringIO()
    print_report(Console(file=out, width=WIDTH, no_color=True, force_terminal=False), summary, CHECKS, "runs/demo")
    parsed = Page(page(summary, CHECKS, "runs/demo"))
    assert parsed.open == []
    shown = [line.rstrip() for line in out.getvalue().splitlines()]
    assert [line.rstrip() for line in parsed.report.splitlines()] == shown
    assert "".join(parsed.titles) == "udc-ray: a<b> on x & y"


def test_pictures_are_inside_and_nothing_else_is_referred_to() -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    text = page(build_summary(make_cell([15.0]), SPEC), [], pictures={'ddim-"worst".png': png, "b.png": b"2"})
    parsed = Page(text)
    assert parsed.open == [] and len(parsed.sources) == 2
    head, _, data = parsed.sources[0].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == png
    assert "http" not in text.replace("http-equiv", "")


def test_a_campaign_has_its_own_report() -> None:
    spec = SPEC.model_copy(update={"campaign": True})
    summary = build_campaign_summary(make_cell([15.0, 16.0], **QUERY), {}, spec)
    assert "campaign on default" in Page(page(summary, [])).report
