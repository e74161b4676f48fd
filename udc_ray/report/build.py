"""The summary of a run, whatever kind of run it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from udc_ray.checks.base import CheckResult
from udc_ray.records import Record
from udc_ray.report.campaign import BILL, Sends, build_campaign_summary
from udc_ray.report.summary import Summary, build_summary
from udc_ray.rundir import ENVIRONMENT, RunDirectory
from udc_ray.status import read_accounts


def summarise(run: RunDirectory, records: Sequence[Record], checks: Sequence[CheckResult]) -> Summary:
    """Summarise what lies in a run directory; of a campaign with the readings of its curves, and the bill.

    Args:
        run: the run; the ledgers of its metered targets are closed.
        records: its records, at least one.
        checks: mark the numbers of the cells that failed one.
    """
    spec = run.header.spec
    if not spec.campaign:
        return build_summary(records, spec, checks, purification_times(run.read_json(ENVIRONMENT)))
    return build_campaign_summary(records, run.curves(), spec, checks, Sends.of(read_accounts(run.storage)))


def purification_times(environment: object) -> dict[str, float]:
    """Seconds of one purification of one image by label of the defence, over all hosts and sessions of a run.

    Args:
        environment: environment.json, or None where there is none; what cannot be read counts as missing.
    """
    sessions = [environment, *environment.get("earlier", ())] if isinstance(environment, dict) else []
    seconds: dict[str, float] = defaultdict(float)
    images: dict[str, float] = defaultdict(float)
    for session in sessions:
        devices = session.get("devices") if isinstance(session, dict) else None
        for facts in devices.values() if isinstance(devices, dict) else ():
            for label, spent in facts.get("purified", {}).items():
                seconds[label] += spent["seconds"]
                images[label] += spent["images"]
    return {label: seconds[label] / count for label, count in images.items() if count}


def is_campaign(summary: Summary) -> bool:
    """Whether a summary holds the bill of a campaign."""
    return any(row.metric in BILL for row in summary.rows)
