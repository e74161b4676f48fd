"""Live progress in the terminal; silent where there is no terminal to draw on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
        self.units = self.images = self.queries = 0
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
        self.units += 1
        self.images += len(outcome.unit.image_ids)
        self.queries += outcome.result.queries if outcome.result is not None else 0
        self.show(self.units, self.images, self.queries, time.monotonic() - self.started)

    def show(self, units: int, images: int, queries: int, seconds: float) -> None:
        """Draw the totals so far."""
        if self.task is not None:
            self.bar.update(self.task, completed=units, images=images, rate=queries / max(1e-9, seconds))

    def end(self) -> None:
        """Take the bar away."""
        self.bar.stop()


class JobProgress(RunProgress):
    """The progress of a job on a cluster, as its log tells it."""

    def line(self, text: str) -> None:
        """Show a line of the job's log."""
        self.note(text)

    def begin(self, units: int) -> None:
        """Show a new bar; a job that goes on in another attempt begins again."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        super().begin(units)

    def progress(self, event: dict[str, Any]) -> None:
        """Draw what an event tells."""
        self.show(*(event.get(key, 0) for key in ("units", "images", "queries", "seconds")))
