"""One host in this process: the reference that every other pool must equal."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

from torch import Tensor

from udc_ray.attacks.batcher import Batcher
from udc_ray.attacks.driver import Halt
from udc_ray.attacks.oracle import ScoreRequest
from udc_ray.attacks.query import Answer
from udc_ray.checks.readings import Reading
from udc_ray.crafted import Crafted
from udc_ray.crafting import Goals
from udc_ray.errors import Interrupted, UserError
from udc_ray.host import Host
from udc_ray.metered.model import endpoint_of
from udc_ray.plan import Unit
from udc_ray.pool import Keep, Outcome, Stop, keep_nothing, never
from udc_ray.probe import Resolved
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup
from udc_ray.states import find_state
from udc_ray.stepping import FindState, Stepper, is_stepped, lanes_of, no_state, query_attack
from udc_ray.storage import Storage
from udc_ray.views import View

LOOK_SECONDS = 0.5
"""How often it is asked whether to stop."""
KEEP_SECONDS = 60.0
"""How often the states of chains under way are kept."""


def chains_of(setup: HostSetup, unit: Unit) -> int:
    """Chains of a query unit."""
    return len(unit.image_ids) * query_attack(setup, unit).restarts


def states_of(setup: HostSetup) -> FindState:
    """Where the saved states of a run are looked for."""
    return no_state if setup.out is None else partial(find_state, Storage(setup.out))


class Direct:
    """The calls to a host of this process; each is through when it returns.

    Args:
        host: the host.
        threads: where candidates are judged; in the calling thread unless given, as torch wants it.
    """

    def __init__(self, host: Host, threads: ThreadPoolExecutor | None = None) -> None:
        self.host, self._threads = host, threads

    async def goals(self, unit: Unit) -> Goals:
        """See `Host.goals`."""
        return self.host.goals(unit)

    async def score(self, request: ScoreRequest) -> list[Answer]:
        """See `Host.score`."""
        if self._threads is not None:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self.host.score, request)
        await asyncio.sleep(0)  # let the loop look around between two batches
        return self.host.score(request)

    async def finish(self, unit: Unit, crafted: list[Crafted]) -> UnitResult:
        """See `Host.finish`."""
        return self.host.finish(unit, crafted)


class InProcessPool:
    """One host, called directly; see `WorkPool`."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """See `WorkPool`."""
        return self.host.resolve(shapes)

    def configure(self, resolved: Resolved) -> None:
        """See `WorkPool`."""
        self.host.configure(resolved)

    def speeds(self, victims: Sequence[int], seconds: float) -> dict[int, float]:
        """See `WorkPool`."""
        return self.host.speeds(victims, seconds)

    def probe_gradients(self) -> list[Reading]:
        """See `udc_ray.gradient_probe.Prober`."""
        return self.host.probe_gradients()

    def map_unordered(self, units: Iterable[Unit], stop: Stop = never, keep: Keep = keep_nothing) -> Iterator[Outcome]:
        """Run gradient units one after the other, and query units that follow one another together."""
        for stepped, group in groupby(units, lambda unit: is_stepped(self.host.setup, unit)):
            if stepped:
                yield from _Stepping(self.host, stop, keep).run(group)
            else:
                yield from self._run(group, stop)

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """See `WorkPool`."""
        return self.host.views(cell, x_adv)

    def describe(self) -> dict[str, object]:
        """See `WorkPool`."""
        return {self.host.name: self.host.describe()}

    def close(self) -> None:
        """See `WorkPool`."""
        self.host.close()

    def _run(self, units: Iterable[Unit], stop: Stop) -> Iterator[Outcome]:
        for unit in units:
            if stop() is not None:
                return
            started = time.monotonic()
            try:
                result, error = self.host.run(unit), None
            except Interrupted:
                raise
            except Exception as failure:  # a unit that fails is recorded and skipped, whatever failed in it
                result, error = None, f"{type(failure).__name__}: {failure}"
            seconds = time.monotonic() - started
            yield Outcome(unit=unit, result=result, error=error, host=self.host.name, seconds=seconds)


class _Stepping:
    """Steps query units in an event loop of its own, which turns only while an outcome is waited for."""

    def __init__(self, host: Host, stop: Stop, keep: Keep) -> None:
        self.host, self.stop, self.keep = host, stop, keep
        lanes, metered = lanes_of(host.setup), endpoint_of(host.setup.spec) is not None
        self.chains = lanes.chains
        self.threads = ThreadPoolExecutor(lanes.in_flight, thread_name_prefix="metered") if metered else None
        direct = Direct(host, self.threads)
        self.stepper = Stepper(
            setup=host.setup,
            host=direct,
            batcher=Batcher(direct.score, lanes.slots, in_flight=lanes.in_flight if metered else 1),
            find_state=states_of(host.setup),
            halt=Halt(),
        )
        self.running: dict[asyncio.Task[UnitResult], tuple[Unit, float]] = {}
        self.kept = time.monotonic()

    def run(self, units: Iterable[Unit]) -> Iterator[Outcome]:
        """Outcomes as they come."""
        waiting, loop = deque(units), asyncio.new_event_loop()
        try:
            while waiting or self.running:
                ending = self.stop()
                if ending is not None:
                    waiting.clear()
                    self.stepper.halt.ending = None if ending == "finish" else ending
                self._begin(waiting, loop)
                yield from self._ended(loop)
                self._keep()
        finally:
            self._abandon(loop)
            loop.close()
            if self.threads is not None:
                self.threads.shutdown(wait=False)  # requests under way end with the host

    def _begin(self, waiting: deque[Unit], loop: asyncio.AbstractEventLoop) -> None:
        setup = self.host.setup
        live = sum(chains_of(setup, unit) for unit, _ in self.running.values())
        while waiting and live < self.chains:
            unit = waiting.popleft()
            live += chains_of(setup, unit)
            self.running[loop.create_task(self.stepper.step(unit))] = (unit, time.monotonic())

    def _ended(self, loop: asyncio.AbstractEventLoop) -> Iterator[Outcome]:
        if not self.running:
            return
        look = asyncio.wait(self.running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        done, _ = loop.run_until_complete(look)
        for task in [t for t in self.running if t in done]:
            unit, started = self.running.pop(task)
            failure = task.exception()
            if isinstance(failure, Interrupted) or (isinstance(failure, UserError) and failure.ends_run):
                raise failure
            yield Outcome(
                unit=unit,
                result=task.result() if failure is None else None,
                error=None if failure is None else f"{type(failure).__name__}: {failure}",
                host=self.host.name,
                seconds=time.monotonic() - started,
            )

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is under way, units and batches; whatever else failed, nobody waits for it any more."""
        tasks = {*self.running, *asyncio.all_tasks(loop)}
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def _keep(self) -> None:
        if time.monotonic() - self.kept > KEEP_SECONDS:
            self.kept = time.monotonic()
            for states in self.stepper.snapshot():
                self.keep(states)
