"""What a job tells the console that follows it: JSON text sequences (RFC 7464) in its log.

The log is all that Ray carries from a driver to a client, and it is replayed from its start for
every client that attaches. A user's model may print into it as well, so an event begins with the
record separator, which no text holds, and ends with a newline.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from udc_ray.pool import Outcome

SEPARATOR = "\x1e"
Event = dict[str, Any]

FASTEST_SECONDS = 1.0
"""Progress is told at most so often, and less often the longer the job runs: a log of a week stays short."""
SLOWER_BY = 2000
BEAT_SECONDS = 20.0
"""A sign of life follows so much silence: a client tells a lost connection from a long unit by it."""


def encode(kind: str, **values: Any) -> str:
    """One event as text; `kind` and whatever belongs to it."""
    return f"{SEPARATOR}{json.dumps({'event': kind, **values}, separators=(',', ':'))}\n"


class Decoder:
    """Turns the text of a log, in pieces of any size, into events and the lines between them.

    A log that is replayed from its start after a lost connection continues where it was cut:
    characters that were seen before are passed over.
    """

    def __init__(self) -> None:
        self._seen = self._replayed = 0
        self._rest = ""

    def replay(self) -> None:
        """The log is about to come from its start again."""
        self._replayed = 0

    def feed(self, text: str) -> Iterator[Event | str]:
        """Events, and lines that are none, as they are complete."""
        known = min(len(text), self._seen - self._replayed)
        self._replayed += len(text)
        self._seen = max(self._seen, self._replayed)
        *lines, self._rest = (self._rest + text[known:]).split("\n")
        for line in lines:
            plain, mark, document = line.partition(SEPARATOR)
            if plain:
                yield plain
            if mark:
                yield _parse(document)


def describe(event: Event) -> str:
    """An event as a line for people; empty where it says nothing to them."""
    match event["event"]:
        case "note":
            return str(event.get("text", ""))
        case "begin":
            return f"{event.get('units')} units to do"
        case "progress":
            rate = event.get("queries", 0) / max(1e-9, event.get("seconds", 0))
            return f"{event.get('units')} units, {event.get('images')} images, {rate:.0f} queries/s"
        case "report":
            return f"finished: {event['finished'].get('where')}"
        case "exit":
            return "\n".join(filter(None, [*(event.get("error") or ()), f"exit code {event.get('code')}"]))
    return ""


def _parse(document: str) -> Event | str:
    try:
        event = json.loads(document)
    except ValueError:  # two writers into one log: better shown than lost
        return document
    return event if isinstance(event, dict) and "event" in event else document


class Teller:
    """A listener (see `udc_ray.run.Listener`) that writes events; progress is thinned out.

    Args:
        stream: the job's standard output.
        beat: seconds of silence after which a sign of life is written.
    """

    def __init__(self, stream: TextIO | None = None, *, beat: float = BEAT_SECONDS) -> None:
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self._started = self._told = time.monotonic()
        self._totals = {"units": 0, "images": 0, "queries": 0}
        self._stop = threading.Event()
        self._beat = beat
        self._thread = threading.Thread(target=self._beats, name="events", daemon=True)
        self._thread.start()

    def tell(self, kind: str, **values: Any) -> None:
        """Write an event now."""
        with self._lock:
            self._told = time.monotonic()
            self._stream.write(encode(kind, at=round(time.time(), 1), **values))
            self._stream.flush()

    def note(self, text: str) -> None:
        """See `Listener`."""
        self.tell("note", text=text)

    def begin(self, units: int) -> None:
        """See `Listener`."""
        self._started = time.monotonic()
        self.tell("begin", units=units)

    def unit(self, outcome: Outcome) -> None:
        """See `Listener`; totals are told, so that one lost line loses nothing."""
        self._totals["units"] += 1
        self._totals["images"] += len(outcome.unit.image_ids)
        self._totals["queries"] += outcome.result.queries if outcome.result is not None else 0
        now = time.monotonic()
        if now - self._told >= max(FASTEST_SECONDS, (now - self._started) / SLOWER_BY):
            self._progress()

    def end(self) -> None:
        """See `Listener`."""
        self._progress()
        self.tell("end")

    def close(self) -> None:
        """No more signs of life."""
        self._stop.set()
        self._thread.join()

    def _progress(self) -> None:
        self.tell("progress", seconds=round(time.monotonic() - self._started, 1), **self._totals)

    def _beats(self) -> None:
        while not self._stop.wait(self._beat / 4):
            if time.monotonic() - self._told > self._beat:
                self._progress()
