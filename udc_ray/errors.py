"""The errors of udc-ray.

UdcRayError
+-- UserError            bad input: one message, exit code 2
|   +-- SpecError        a spec, preset or flag that cannot be used
|   +-- DataError        images or data sets
|   +-- WeightsError     checkpoints
|   +-- RunDirectoryError  the run directory
+-- UnitError            one unit of work failed; the run goes on
|   +-- DeviceMemoryError  the device is too small for the micro-batch
+-- Interrupted          Ctrl-C or SIGTERM; the run can be resumed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class UdcRayError(Exception):
    """Base of every error that udc-ray raises on purpose."""


class UserError(UdcRayError):
    """The user can mend this.

    Args:
        what: what happened.
        cause: the likely cause.
        change: what to change.
    """

    ends_run: ClassVar[bool] = False
    """Whether a run ends when a unit raises it, as every other unit would meet it too."""

    def __init__(self, what: str, cause: str = "", change: str = "") -> None:
        super().__init__(what)
        self.what, self.cause, self.change = what, cause, change

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.what, self.cause, self.change)

    def __str__(self) -> str:
        lines = [self.what]
        if self.cause:
            lines.append(f"likely cause: {self.cause}")
        if self.change:
            lines.append(f"what to change: {self.change}")
        return "\n".join(lines)


class SpecError(UserError):
    """A spec, a preset or a flag cannot be used."""


class DataError(UserError):
    """An image or a data set cannot be used."""


class WeightsError(UserError):
    """A checkpoint cannot be used."""


class RunDirectoryError(UserError):
    """A run directory cannot be read, written or resumed."""


class UnitError(UdcRayError):
    """A unit of work failed."""


class DeviceMemoryError(UnitError):
    """The device cannot hold the micro-batch."""


class Interrupted(UdcRayError):
    """The run was asked to stop.

    Args:
        signal_number: the signal that asked for it.
        where: the run directory, once there is one.
    """

    def __init__(self, signal_number: int, where: str | None = None) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number, self.where = signal_number, where

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str | None]]:
        return type(self), (self.signal_number, self.where)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the known names nearest to a misspelt word, or list them all."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
