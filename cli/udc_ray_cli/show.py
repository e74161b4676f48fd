"""Prints the report of a run, in colour or as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console

from udc_ray.checks import CheckResult, measured, run_checks
from udc_ray.errors import RunDirectoryError
from udc_ray.report.build import is_campaign, summarise
from udc_ray.report.campaign_console import print_campaign
from udc_ray.report.console import print_report
from udc_ray.report.summary import Summary, dumps
from udc_ray.rundir import ENVIRONMENT, SELECTION, RunDirectory

PIPE_WIDTH = 100
"""Columns of a file or a pipe, which have no width of their own."""


def stdout_console() -> Console:
    """A console on stdout, as wide as the terminal or COLUMNS say."""
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if told else PIPE_WIDTH)


def show(summary: Summary, checks: Sequence[CheckResult], where: str, *, as_json: bool) -> None:
    """Print the report, after all that went to stderr: JSON alone on stdout, or the tables."""
    sys.stderr.flush()
    if as_json:
        sys.stdout.write(dumps(summary.to_json()))
    else:
        draw = print_campaign if is_campaign(summary) else print_report
        draw(stdout_console(), summary, checks, where)
    sys.stdout.flush()


def show_run(run: str, *, as_json: bool) -> None:
    """Print the report of a run from its files; of a run that has not ended, from the parts that are there."""
    directory = RunDirectory.read(run)
    document, checks = directory.read_json("summary.json"), directory.read_json("checks.json")
    if document is None:
        sys.stderr.write(f"{run} has not come to its end; this is what is there\n")
        records = directory.records()
        beside = measured(directory.read_json(ENVIRONMENT), directory.read_json(SELECTION))
        results = run_checks(records, directory.header.spec, beside)
        show(summarise(directory, records, results), results, run, as_json=as_json)
        return
    show(Summary.from_json(document), _read_checks(checks, run), run, as_json=as_json)


def _read_checks(document: object, run: str) -> list[CheckResult]:
    try:
        return [CheckResult.from_json(values) for values in document or []]  # type: ignore[attr-defined]  # or refused
    except (TypeError, AttributeError) as error:
        raise RunDirectoryError(
            f"{run}/checks.json cannot be read: {error}",
            "it was written by another version or changed by hand",
            f"remove it and {run}/summary.json; the report is then made again from the parts",
        ) from error
