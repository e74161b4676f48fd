"""The parts of the console's report that are about whole defences."""

from __future__ import annotations

import io
from typing import Any

import pytest
from record_factory import make_cell, make_record
from rich.console import Console

from udc_ray.checks import CheckResult
from udc_ray.records import Record
from udc_ray.report.console import print_report
from udc_ray.report.summary import build_summary
from udc_ray.spec import parse_spec

SPEC = parse_spec({"attacks": ["pgd"], "defenses": ["none", "jpeg", "ddim"]})


def _print(records: list[Record], checks: list[CheckResult] | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, no_color=True, force_terminal=False)
    print_report(console, build_summary(records, SPEC, checks or [], {"ddim": 0.0431, "jpeg": 1e-3}), checks or [])
    return out.getvalue()


def _run(n: int, gain: float = 0.0, **ddim: Any) -> list[Record]:
    """PGD on a bare model, behind JPEG, and behind a chain that is `gain` dB better than JPEG, give or take 0.5."""
    bare = [15.0 + 0.5 * i for i in range(n)]
    cells = [*make_cell(bare)]
    for mode, more in (("blind", 5.0), ("bpda", 2.0)):
        cells += make_cell([v + more for v in bare], defense="jpeg", grad_mode=mode, psnr_clean=27.0)
    columns = {"psnr_clean": 25.5, "nfe": 5, "guide_calls": 10} | ddim
    for mode, more in (("blind", 7.0), ("full", 2.0 + gain)):
        values = [v + more + (0.5 if i % 2 else -0.5) for i, v in enumerate(bare)]
        cells += make_cell(values, defense="ddim", grad_mode=mode, **columns)
    return cells


def _line(text: str, defense: str) -> str:
    """The line of a defence, without its breaks."""
    tail = text.split("\nDefences\n")[1].split("\n\n")[0]
    tail = " ".join(tail.split())
    return next(part for part in tail.replace(" ddim:", "\nddim:").splitlines() if part.startswith(f"{defense}:"))


@pytest.mark.parametrize(
    ("gain", "words"), [(0.0, "no better than JPEG"), (3.0, "better than JPEG"), (-3.0, "worse than JPEG")]
)
def test_a_verdict_is_read_from_the_paired_interval(gain: float, words: str) -> None:
    line = _line(_print(_run(8, gain)), "ddim")
    assert f"; {words} (adaptive: {gain:.2f} dB [" in line
    assert "costs 2.50 dB [2.50,2.50] on clean images, 43 ms an image." in line
    assert f"recovers 7.00 dB [6.62,7.38] blind and {2 + gain:.2f} dB [" in line
    assert "too few" not in line


def test_below_eight_images_there_are_numbers_and_no_verdict() -> None:
    line = _line(_print(_run(7)), "ddim")
    assert "JPEG (adaptive:" not in line and "better than" not in line
    assert "over JPEG (adaptive) -0.07 dB [" in line
    assert line.endswith("n = 7, too few for a claim.")


def test_an_unconverged_gain_says_so_until_both_checks_pass() -> None:
    words = "adaptive (upper bound on robustness, not converged)"
    assert words in _line(_print(_run(8)), "ddim")
    cell = "id of pgd linf 8/255 | ddim full"
    passed = [CheckResult(check=name, cell=cell, verdict="pass") for name in ("09-eot", "16-converged")]
    assert words not in _line(_print(_run(8), passed), "ddim")


def test_a_failed_check_withdraws_the_line() -> None:
    failed = CheckResult(check="05-gradient", cell="id of pgd linf 8/255 | ddim full", verdict="fail")
    assert "Not to be believed: 05-gradient failed." in _line(_print(_run(8), [failed]), "ddim")


def test_a_run_without_jpeg_says_that_nothing_was_compared() -> None:
    text = _print([r for r in _run(8) if r.defense != "jpeg"])
    assert "; not compared with JPEG." in _line(text, "ddim")
    assert "JPEG" not in _line(_print(_run(8)), "jpeg").removeprefix("jpeg")


def test_the_frontier_has_calls_time_and_quality_of_every_defence() -> None:
    text = _print(_run(8))
    table = text.split("Robustness per call of the denoiser, linf 8/255")[1].split("Damage and cost")[0]
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line[1:2].isalpha()}
    assert rows["none"][1:] == ["0", "0", "0", "28.00", "-", "16.75†", "-"]
    assert rows["jpeg"][1:] == ["0", "-", "1.0", "27.00", "21.75", "18.75†", "-"]
    assert rows["ddim"][1:] == ["5", "10", "43", "25.50", "23.75", "18.75†", "0.40†"]


def test_no_defence_leaves_no_part_about_defences() -> None:
    text = _print(make_cell([15.0] * 8))
    assert "Robustness per call" not in text and "\nDefences\n" not in text and "fresh purifications" not in text


def test_fused_outputs_have_a_table_of_their_own() -> None:
    fused = {
        f"psnr_{how}_output_{side}": base
        for how, side, base in (
            ("mean", "clean", 27.5), ("mean", "adv", 21.25), ("median", "clean", 27.0), ("median", "adv", 21.0)
        )
    }  # fmt: skip
    draws = [
        make_record(defense="ddim", grad_mode="full", sample=s, psnr_adv=18.0 + s, psnr_clean=26.0 + s, **fused)
        for s in range(3)
    ]
    text = _print([make_record(), *draws])
    single = text.split("ddim: each of 3 fresh purifications")[1].split("made into one output")[0]
    other = text.split("3 purifications made into one output")[1].split("Robustness per call")[0]
    assert "pgd full 27.00 26.00 19.00† 18.00†" in " ".join(single.split())
    for number in ("27.50", "21.25†", "27.00", "21.00†"):
        assert number in other
    assert "not to be compared" in other and "21.25" not in single
    assert max(map(len, text.splitlines())) <= 100


def test_an_incomplete_gradient_says_so_in_its_column() -> None:
    records = [make_record(), make_record(defense="ddim", grad_mode="full-no-guide")]
    assert "(gradient incomplete)" in _print(records)
