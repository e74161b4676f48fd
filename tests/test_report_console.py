"""The console report against a golden file; UPDATE_GOLDEN=1 writes it anew, to be read before it is kept."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from record_factory import QUERY, make_cell, make_record
from rich.console import Console

from udc_ray.checks import CheckResult
from udc_ray.checks.integrity import sample_size
from udc_ray.checks.strength import white_box
from udc_ray.metrics.statistics import group_cells
from udc_ray.records import Record
from udc_ray.report.console import print_report
from udc_ray.report.summary import Summary, build_summary, dumps
from udc_ray.spec import parse_spec

GOLDEN = Path(__file__).parent / "golden" / "report_100.txt"
SPEC = parse_spec({"attacks": ["noise", "fgsm", "pgd", "square", "cw"], "defenses": ["none", "jpeg", "ddim"]})


def _records(n: int) -> list[Record]:
    tilt = [0.7 * i for i in range(n)]
    noise = {"attack": "noise", "grad_evals": 0, "success": False}
    blind = {"grad_mode": "blind", "psnr_clean": 26.0, "nfe": 3, "guide_calls": 0}
    records = [
        *make_cell([26.0 + t for t in tilt], **noise),
        *make_cell([19.0 + t for t in tilt], attack="fgsm"),
        *make_cell([15.0 + t for t in tilt]),
        *make_cell([16.0 + t for t in tilt], norm="l2", eps=5.0, l2=5.0),
        # Queries that beat gradients: check 13 fails, and the number is marked.
        *make_cell([14.0 + t for t in tilt], **QUERY),
        *make_cell([22.0 + t for t in tilt], attack="cw", norm="l2", eps=None, l2=1.25),
        *make_cell([20.0 + t for t in tilt], defense="jpeg", grad_mode="blind", psnr_clean=27.5),
        *make_cell([18.0 + t for t in tilt], defense="ddim", **blind),
        *make_cell([16.5 + t for t in tilt], defense="ddim", **blind | {"grad_mode": "full"}),
    ]
    failed = make_record(image_id="zz", attack="fgsm", psnr_adv=None, error="boom", stop_reason="error")
    return [*records, failed]


def _checks(records: list[Record]) -> list[CheckResult]:
    """A failed check, warnings, and one that explains; what all checks say is for their own tests."""
    cells = group_cells(sorted(records, key=lambda r: (r.label, r.key)))
    about = CheckResult(check="10-randomness", cell=cells[0].head.cell, verdict="info", message="random victim")
    return [*white_box(cells), *sample_size(cells), about]


def _print(summary: Summary, checks: list[CheckResult], width: int = 100) -> str:
    out = io.StringIO()
    print_report(Console(file=out, width=width, no_color=True, force_terminal=False), summary, checks, "runs/demo")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _report(n: int, width: int = 100) -> str:
    records = _records(n)
    checks = _checks(records)
    return _print(build_summary(records, SPEC, checks, {"ddim": 0.0431}), checks, width)


def test_the_report_equals_the_golden_file_at_width_100() -> None:
    text = _report(4)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_report_is_a_function_of_the_files() -> None:
    records = _records(4)
    checks = _checks(records)
    summary = build_summary(records, SPEC, checks)
    again = Summary.from_json(json.loads(dumps(summary.to_json())))
    checks_again = [CheckResult.from_json(json.loads(json.dumps(c.to_json()))) for c in checks]
    assert _print(again, checks_again) == _print(summary, checks)


@pytest.mark.parametrize("width", [100, 160])
def test_no_table_is_wider_than_the_console_or_breaks_a_number(width: int) -> None:
    text = _report(4, width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("16.05!†  0.400", "[15.35,16.75]", "11.95 [11.25,12.65]", "15.00! 0000"):
        assert number in text
    assert "…" not in text


def test_a_failed_check_marks_its_number_and_no_other() -> None:
    records = _records(4)
    checks = [CheckResult(check="13-white-box", cell="id of pgd linf 8/255 | none", verdict="fail", message="weak")]
    text = _print(build_summary(records, SPEC, checks), checks)
    assert "16.05!" in text
    assert "17.05!" not in text
    assert "! fail 13-white-box pgd linf 8/255 | none: weak" in text
    assert "!" not in _print(build_summary(records, SPEC), [])


def test_a_verdict_sentence_needs_eight_images() -> None:
    assert "keeps" not in _report(7)
    assert "Under linf 8/255 the undefended model keeps" in _report(8)
    assert "too few for a claim" not in _report(8).split("Checks:")[0]


def test_a_verdict_on_failed_checks_is_withdrawn() -> None:
    assert "Not to be believed: 13-white-box failed." in _report(8).replace("\n", " ")


def test_incomplete_cells_say_so() -> None:
    assert "4 of 5 images" in _report(4)


def test_a_run_of_failures_is_printed() -> None:
    records = [make_record(psnr_adv=None, psnr_clean=None, error="boom", stop_reason="error")]
    checks = _checks(records)
    text = _print(build_summary(records, SPEC, checks), checks)
    assert "0 of 1 images" in text


def test_names_with_brackets_are_not_markup() -> None:
    records = make_cell([15.0, 16.0], model="net[bold]", data="set[/x]")
    assert "model net[bold] · data set[/x]" in _print(build_summary(records, SPEC), [])


def test_long_names_and_many_modes_break_no_number_at_width_100() -> None:
    modes = ("blind", "bpda", "forward-noise", "full", "surrogate-5")
    records = [
        r
        for k, mode in enumerate(("full", *modes))
        for r in make_cell(
            {"ZTE_new_5/test/image-with-a-long-name": 115.0 + k, "b": 117.0},
            attack="my.package.attacks:Strongest",
            defense="none" if k == 0 else "gaussian-noise",
            grad_mode=mode,
            psnr_clean=-110.0,
        )
    ]
    text = _print(build_summary(records, SPEC), [])
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for k in range(1, 6):
        assert f"{(115.0 + k + 117.0) / 2:.2f}" in text
    assert text.count("[-227.00,-225.00]") == 1
    assert "purified surrogate-5" in text


def test_what_several_checks_say_alike_is_said_once_and_failures_never_shortened() -> None:
    records = [r for k in range(5) for r in make_cell([15.0], attack=f"a{k}")]
    cells = [c.head.cell for c in group_cells(records)]
    checks = [
        *(CheckResult(check=f"{n:02d}-x", cell=None, verdict="info", message="not made: no probe") for n in (5, 7, 11)),
        *(CheckResult(check="06-y", cell=c, verdict="fail", message=f"worse {k}") for k, c in enumerate(cells)),
        *(CheckResult(check="09-z", cell=c, verdict="warn", message=f"wanting {k}") for k, c in enumerate(cells)),
        *(CheckResult(check="10-r", cell=c, verdict="info", message=f"random {k}") for k, c in enumerate(cells)),
    ]
    text = _print(build_summary(records, SPEC, checks), checks).split("Checks:")[1]
    assert text.count("not made: no probe") == 1 and "info 05, 07, 11 not made: no probe" in text
    assert [text.count(word) for word in ("worse", "wanting", "random")] == [5, 3, 1]
    assert "09-z 2 more like this in checks.json" in text and "10-r 4 more like this" in text
