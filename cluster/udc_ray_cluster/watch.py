"""Which hosts are hung: no answer to their pulse, or counters that stand still. Pure: times are handed in."""

from __future__ import annotations

from dataclasses import dataclass

from udc_ray.meter import Pulse

LEAST_ANSWER_SECONDS = 30.0
"""No host is given up sooner for a pulse that does not answer: a network may be away for a while."""


@dataclass
class _Chart:
    """What was heard of one host."""

    asked: float | None = None
    moved: float = 0.0
    latest: Pulse | None = None
    at: float = 0.0
    busy: float = 0.0


class Watch:
    """Remembers the pulses of all hosts.

    Args:
        silence_s: seconds in which the counters of a host at work may stand still; a tenth of it (30 s
            at least) is how long a pulse may take to answer.
    """

    def __init__(self, silence_s: float) -> None:
        self.silence_s, self.answer_s = silence_s, max(LEAST_ANSWER_SECONDS, silence_s / 10)
        self._charts: dict[str, _Chart] = {}

    def enter(self, name: str, now: float) -> None:
        """A host is there."""
        self._charts[name] = _Chart(moved=now, at=now)

    def leave(self, name: str) -> None:
        """A host is gone."""
        self._charts.pop(name, None)

    def asked(self, name: str, now: float) -> None:
        """A pulse was asked for."""
        self._charts[name].asked = now

    def heard(self, name: str, pulse: Pulse, now: float) -> None:
        """A pulse answered."""
        chart = self._charts[name]
        before = chart.latest
        if before is None or (before.steps, before.calls) != (pulse.steps, pulse.calls):
            chart.moved = now
        if before is not None and now > chart.at:
            chart.busy = min(1.0, max(0.0, pulse.busy_s - before.busy_s) / (now - chart.at))
        chart.latest, chart.at, chart.asked = pulse, now, None

    def rested(self, name: str, now: float) -> None:
        """A host holds nothing at this moment, so its counters may stand still."""
        self._charts[name].moved = now

    def trouble(self, name: str, now: float) -> str | None:
        """Why a host is taken for hung, or None."""
        chart = self._charts[name]
        if chart.asked is not None and now - chart.asked > self.answer_s:
            return f"its pulse has not answered for {now - chart.asked:.0f} s"
        if now - chart.moved > self.silence_s:
            return f"no forward pass came back for {now - chart.moved:.0f} s"
        return None

    def busy(self, name: str) -> float:
        """Share of the time between the last two pulses in which a host was at work."""
        return self._charts[name].busy

    def useful_share(self) -> float | None:
        """Useful share of all batch slots of the hosts that are there; None before the first."""
        pulses = [c.latest for c in self._charts.values() if c.latest is not None]
        slots = sum(p.slots for p in pulses)
        return sum(p.useful for p in pulses) / slots if slots else None
