"""Live progress in the terminal; silent where there is no terminal to draw on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from udc_ray.pool import Outcome


@contextmanager
def training_progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar with the smoothed loss; yields the callback for the training loop."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=steps, loss=0.0)
        smooth: float | None = None

        def update(step: int, loss: float) -> None:
            nonlocal smooth
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            bar.update(task, completed=step, loss=smooth)

        yield update


class RunProgress:
    """Units, images, queries a second and time left of a run, on stderr."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("units  {task.fields[images]} images  {task.fields[rate]:.0f} queries/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.console = Console(stderr=True)
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task: TaskID | None = None
        self.images = self.queries = 0
        self.started = time.monotonic()

    def note(self, text: str) -> None:
        """Say something above the bar."""
        # as it is: a path that is wrapped, or read as markup, is no path any more
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, units: int) -> None:
        """Show the bar."""
        self.task = self.bar.add_task("evaluating", total=units, images=0, rate=0.0)
        self.started = time.monotonic()
        self.bar.start()

    def unit(self, outcome: Outcome) -> None:
        """Count a finished unit."""
        if self.task is None:
            return
        self.images += len(outcome.unit.image_ids)
        if outcome.result is not None:
            counted = {r.key[:3]: r.queries or 0 for r in outcome.result.records if r.grad_mode != "blind"}
            self.queries += sum(counted.values())
        rate = self.queries / max(1e-9, time.monotonic() - self.started)
        self.bar.update(self.task, advance=1, images=self.images, rate=rate)

    def end(self) -> None:
        """Take the bar away."""
        self.bar.stop()
