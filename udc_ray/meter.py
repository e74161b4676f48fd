"""What a host has done so far, in plain numbers that another thread may read at any time.

A heartbeat asks whether these numbers still move: a forward pass that never returns moves none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from udc_ray.models.base import Restorer


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """A reading of a host's meter.

    Attributes:
        steps: forward passes that returned, of the restorer and of the networks of purifiers.
        calls: calls that the host has ended.
        busy_s: seconds in which it was at work.
        slots: batch slots that went through the restorer.
        useful: how many of them held an image that was wanted; the others were padding.
        unit: the unit at work, or an empty text.
    """

    steps: int = 0
    calls: int = 0
    busy_s: float = 0.0
    slots: int = 0
    useful: float = 0.0
    unit: str = ""


class Meter:
    """Counts; written by the thread that computes, read by any other."""

    def __init__(self) -> None:
        self._steps = self._calls = self._slots = 0
        self._busy_s = self._useful = 0.0
        self._since: float | None = None
        self._unit, self._share = "", 1.0

    @contextmanager
    def work(self, unit: str = "", share: float | None = None) -> Iterator[None]:
        """Count the time inside as busy; calls may nest.

        Args:
            unit: what is worked on; that of the outer call unless given.
            share: useful share of the slots of the forward passes inside.
        """
        before, outermost = (self._unit, self._share), self._since is None
        self._unit, self._share = unit or self._unit, self._share if share is None else share
        if outermost:
            self._since = time.monotonic()
        try:
            yield
        finally:
            self._unit, self._share = before
            if outermost and self._since is not None:
                self._busy_s += time.monotonic() - self._since
                self._since = None
                self._calls += 1

    def step(self, slots: int = 0) -> None:
        """A forward pass of so many batch slots returned."""
        self._steps += 1
        self._slots += slots
        self._useful += slots * self._share

    def read(self) -> Pulse:
        """The numbers now; the call at work counts up to this moment."""
        since, busy_s = self._since, self._busy_s
        return Pulse(
            steps=self._steps,
            calls=self._calls,
            busy_s=busy_s + (time.monotonic() - since if since is not None else 0.0),
            slots=self._slots,
            useful=self._useful,
            unit=self._unit,
        )


class Counted:
    """A restorer whose forward passes are counted.

    Args:
        inner: the restorer.
        meter: counts.
    """

    def __init__(self, inner: Restorer, meter: Meter) -> None:
        self.inner, self.meter, self.descriptor = inner, meter, inner.descriptor

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Restore a batch; see `Restorer`."""
        output = self.inner(x_BCHW)
        self.meter.step(len(x_BCHW))
        return output

    def to(self, device: str) -> Counted:
        """Move to a device."""
        return Counted(self.inner.to(device), self.meter)


def count_networks(prepared: Any, meter: Meter) -> None:
    """Count the forward passes of the networks that a purifier prepared: itself a module, or with modules in it."""
    from torch import nn

    own = vars(prepared).values() if hasattr(prepared, "__dict__") else ()
    held = [prepared] if isinstance(prepared, nn.Module) else [*own, getattr(prepared, "network", None)]
    for network in {id(value): value for value in held if isinstance(value, nn.Module)}.values():
        network.register_forward_hook(lambda *_: meter.step())
