"""Small runs for tests: a prepared spec on the tiny network, hosts, listeners and pools that are stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from udc_ray.attacks.oracle import Row, ScoreRequest, pack
from udc_ray.config import Overrides, build_spec
from udc_ray.errors import Interrupted
from udc_ray.host import Host
from udc_ray.in_process import InProcessPool
from udc_ray.models.base import Restorer
from udc_ray.plan import Unit
from udc_ray.pool import Keep, Outcome, Stop, keep_nothing, never
from udc_ray.prepare import Prepared, prepare
from udc_ray.records import VOLATILE, Record
from udc_ray.results import UnitResult


def small_run(
    *sets: str, attacks: tuple[str, ...] = ("fgsm",), defenses: tuple[str, ...] = ("none",), **flags: Any
) -> Prepared:
    """A prepared run on three shipped images of 48 x 48 and the network of `doubles.Conv`."""
    given = Overrides(attacks=attacks, defenses=defenses, **{"model": "doubles:Conv", **flags})
    base = () if "data" in flags else ("data.size=48", "limit=3")
    return prepare(build_spec(flags=given, sets=(*base, "run.hosts=1", *sets)))


def make_host(prepared: Prepared, restorer: Restorer | None = None, **resolved: Any) -> Host:
    """A host in this process; `resolved` replaces what the probes would settle."""
    setup = replace(prepared.setup, resolved=replace(prepared.setup.resolved, **resolved))
    return Host(setup, restorer=restorer or prepared.restorer)


def all_units(prepared: Prepared, chunk: int = 4) -> list[Unit]:
    return list(prepared.setup.plan.units(prepared.setup.dataset.image_ids, chunk))


def results_of(host: Host, units: Iterable[Unit]) -> list[UnitResult]:
    """What units give on a host of this process, gradient and query units alike; the first failure is raised."""
    outcomes = list(InProcessPool(host).map_unordered(units))
    failures = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failures:
        raise AssertionError(failures[0])
    return [outcome.result for outcome in outcomes if outcome.result is not None]


def run_all(host: Host, prepared: Prepared, chunk: int = 4) -> list[Record]:
    """Records of all units, sorted by key."""
    records = [record for result in results_of(host, all_units(prepared, chunk)) for record in result.records]
    return sorted(records, key=lambda r: r.key)


def score_request(image_ids: Sequence[str], x_NCHW: Tensor, victim: int = 0, **row: Any) -> ScoreRequest:
    """A request of one candidate for each image."""
    rows = tuple(Row(**{"image_id": image_id} | row) for image_id in image_ids)
    return ScoreRequest(victim=victim, rows=rows, packed=pack(x_NCHW))


def stable(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Records without the columns that may differ between two executions, in the order of their keys."""
    rows = [asdict(r) for r in sorted(records, key=lambda r: r.key)]
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


class Wrapped:
    """A restorer that looks at every batch before it passes on."""

    def __init__(self, inner: Restorer, look: Callable[[Tensor], None]) -> None:
        self.inner, self.look, self.descriptor = inner, look, inner.descriptor

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        self.look(x_BCHW.detach())
        return self.inner(x_BCHW)

    def to(self, device: str) -> Wrapped:
        return self


def small_device(inner: Restorer, largest: int) -> Wrapped:
    """A restorer on a device that holds `largest` images."""

    def look(x_BCHW: Tensor) -> None:
        if len(x_BCHW) > largest:
            raise torch.OutOfMemoryError(f"tried to allocate {len(x_BCHW)} images")

    return Wrapped(inner, look)


def poisoned(inner: Restorer, x_CHW: Tensor) -> Wrapped:
    """A restorer that fails on one image."""

    def look(x_BCHW: Tensor) -> None:
        if any(torch.equal(x, x_CHW) for x in x_BCHW):
            raise ArithmeticError("a poisoned image")

    return Wrapped(inner, look)


class StoppedPool(InProcessPool):
    """Counts units, and is interrupted once `stop_after` of them are done."""

    def __init__(self, host: Host, stop_after: int | None = None) -> None:
        super().__init__(host)
        self.stop_after, self.done, self.closed = stop_after, 0, False

    def map_unordered(self, units: Iterable[Unit], stop: Stop = never, keep: Keep = keep_nothing) -> Iterator[Outcome]:
        for outcome in super().map_unordered(units, stop, keep):
            if self.done == self.stop_after:
                raise Interrupted(2)
            self.done += 1
            yield outcome

    def close(self) -> None:
        self.closed = True


@dataclass
class Notes:
    """A listener that remembers."""

    notes: list[str] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ended: int = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, units: int) -> None:
        self.begun.append(units)

    def unit(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def end(self) -> None:
        self.ended += 1
