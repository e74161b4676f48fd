"""What a campaign has done so far, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from udc_ray.metered.account import Account
    from udc_ray.status import Status


def status(run: str, as_json: bool) -> None:
    """Print what a run has done so far; it may be at work, finished or stopped."""
    from udc_ray.rundir import RunDirectory
    from udc_ray.status import read_status
    from udc_ray_cli.show import stdout_console

    found = read_status(RunDirectory.read(run))
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")
        return
    stdout_console().print(render(found))


def render(found: Status) -> RenderableType:
    """The status for people; needs 100 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cell", overflow="fold")
    for heading in ("images done", "failed", "cut short", "queries", "budget each"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in found.cells:
        counts = (f"{cell.done} of {cell.images}", *(str(n or "-") for n in (cell.failed, cell.cut, cell.queries)))
        table.add_row(Text(cell.label), *counts, "-" if cell.budget is None else str(cell.budget))
    lines = [Text(line, overflow="fold") for line in _lines(found)]
    return Group(Text(f"{found.where}: {_state(found)}", style="bold", overflow="fold"), table, *lines)


def _state(found: Status) -> str:
    if found.writer is not None:
        return "at work" if found.writer.alive else "its writer may be dead"
    if found.done < found.owed:
        return "stopped before its end" if not found.ended else "ended with images missing"
    return "finished" if found.ended else "all images are done, the report is not written"


def _lines(found: Status) -> list[str]:
    way = f", {found.under_way} of them in images under way" if found.under_way else ""
    lines = [f"{found.done} of {found.owed} images done, cells counted one by one"]
    lines.append(f"{found.queries} queries asked{way}; {found.largest} by the budgets at most")
    if found.rate is not None:
        left = (
            ""
            if found.done >= found.owed
            else f", about {_duration(found.left_s or 0.0)} left if all budgets are spent"
        )
        lines.append(f"{found.rate:.1f} queries a second in this session{left}")
    lines += [_account(account) for account in found.accounts]
    if found.writer is not None:
        job = f" (job {found.writer.job})" if found.writer.job else ""
        lines.append(f"lock: {found.writer.owner}{job}, last sign of life {_duration(found.writer.silent_s)} ago")
    if found.job is not None:
        end = found.job.get("end")
        lines.append(f"job {found.job.get('submission_id')}: {f'ended {end}' if end else 'has not ended'}")
    if found.damaged:
        lines.append(f"{len(found.damaged)} parts cannot be read and are done again by a resume")
    return lines


def _account(account: Account) -> str:
    """What was spent on a metered target, as far as the run's storage knows."""
    budget = "no budget" if account.budget is None else f"budget {account.budget}"
    return (
        f"{account.target}: {account.answered} answered, {account.unknown} unknown, "
        f"{account.in_flight} leased or under way, {budget}"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
