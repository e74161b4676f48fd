"""A host whose model lives behind HTTP: every evaluation of it is a send that the ledger knows of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock

import torch
from torch import Tensor

from udc_ray.attacks.objectives import get_objective
from udc_ray.attacks.oracle import ScoreRequest
from udc_ray.attacks.query import Answer
from udc_ray.attacks.reduction import reduce_rows
from udc_ray.crafted import Crafted
from udc_ray.crafting import Goals
from udc_ray.evaluation import CONTROL_DRAWS
from udc_ray.host import Host
from udc_ray.metered.canary import Canaries
from udc_ray.metered.client import Client
from udc_ray.metered.endpoint import Endpoint, read_endpoint
from udc_ray.metered.failures import TargetError
from udc_ray.metered.formats import on_grid
from udc_ray.metered.gate import Gate
from udc_ray.metered.ledger import Ledger, QueryKey
from udc_ray.metered.model import describe
from udc_ray.plan import Unit
from udc_ray.probe import Resolved
from udc_ray.results import UnitResult
from udc_ray.setup import HostSetup
from udc_ray.states import decode_state, encode_state
from udc_ray.storage import Storage
from udc_ray.tape import Tape
from udc_ray.views import View

LEDGERS_VARIABLE = "UDC_RAY_LEDGERS"
"""Names the folder, on a disk of the machine that sends, in which ledgers lie."""
CANARY_FILE = "ledger/canary.npz"
CANARY_IMAGES = 2
LEASE_BATCHES = 32
"""Queries of a lease, as a multiple of the requests under way at once."""


class Sent:
    """A metered target as a restorer of the harness: one image a call.

    Args:
        gate: the way to it.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate, self.descriptor = gate, describe(gate.endpoint)

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        return torch.stack([self.gate.image(x_CHW) for x_CHW in on_grid(x_BCHW, self.gate.endpoint.storage_depth)])

    def to(self, device: str) -> Sent:
        """It lives elsewhere."""
        return self


class MeteredHost(Host):
    """Answers query attacks by asking a metered target.

    Many threads may call `score` at once; all else is done one by one.

    Args:
        setup: the run; its directory holds the leases.
        name: name in the records.
    """

    def __init__(self, setup: HostSetup, *, name: str = "local") -> None:
        endpoint = read_endpoint(setup.spec.model)
        storage = None if setup.out is None else Storage(setup.out)
        self._storage, self._alone, self._looked = storage, RLock(), False
        ledger = Ledger(
            ledger_path(setup, endpoint),
            endpoint.url,
            endpoint.budget,
            storage,
            lease=LEASE_BATCHES * endpoint.concurrency,
        )
        try:
            self.gate = Gate(Client(endpoint), ledger, setup.spec.seed)
            super().__init__(setup, name=name, restorer=Sent(self.gate))
            images = {i: self.sample(i).degraded for i in setup.dataset.image_ids[:CANARY_IMAGES]}
            self._canaries = Canaries(images, self.gate.image, random=endpoint.random)
            owed = harness_queries(setup) + self._canaries.cost_of_start
            ledger.reserve_for_harness = max(0, owed - ledger.account().harness)
        except BaseException:
            ledger.close()
            raise

    def resolve(self, shapes: Sequence[tuple[int, int, int]]) -> Resolved:
        """Nothing is probed: one image is sent a request."""
        return self.setup.resolved

    def goals(self, unit: Unit) -> Goals:
        """See `Host.goals`; first of all, and now and then, the target is seen to be what it was."""
        with self._alone:
            self._look()
            return super().goals(unit)

    def score(self, request: ScoreRequest) -> list[Answer]:
        """See `Host.score`; one row a request."""
        (row,) = request.rows
        objective = get_objective(row.objective)
        with self._alone:
            self._look()
            reference = self._compared_with(request.victim, row, objective)
            tape = Tape(
                seed=self.setup.spec.seed,
                image_ids=(row.image_id,),
                stream="attack",
                rows=((row.restart, row.step),),
            )
            sent, _ = self.victim(request.victim).purified(request.x_NCHW, tape)
        key = QueryKey(purpose="attack", cell=row.cell, image_id=row.image_id, restart=row.restart, step=row.step)
        answer = self.gate.ask(
            key, sent[0], lambda output: reduce_rows(output[None], (row,), [reference], {row.objective: objective})[0]
        )
        self.meter.step(1)
        return [answer]

    def finish(self, unit: Unit, crafted: list[Crafted]) -> UnitResult:
        """See `Host.finish`."""
        with self._alone:
            return super().finish(unit, crafted)

    def speeds(self, victims: Sequence[int], seconds: float) -> dict[int, float]:
        """A metered target is not probed."""
        return {}

    def views(self, cell: int, x_adv: dict[str, Tensor]) -> dict[str, View]:
        """Pictures are not worth queries."""
        return {}

    def trial(self, x_BCHW: Tensor, slots: int) -> None:
        """Memory is no concern here."""

    def describe(self) -> dict[str, object]:
        """See `Host.describe`."""
        return {
            **super().describe(),
            "target": self.gate.endpoint.url,
            "account": self.gate.ledger.account().document(),
        }

    def close(self) -> None:
        """Close the connections and the ledger."""
        self.gate.close()

    def _look(self) -> None:
        """Ask the canaries at the start, on resume, and when it is time."""
        try:
            self._compare()
        except TargetError as error:
            self.gate.refuse(error)  # what another model would answer to the other chains must not be kept
            raise

    def _compare(self) -> None:
        if not self._looked:
            known = None if self._storage is None else self._storage.find(CANARY_FILE)
            if known is None:
                self._canaries.start()
                if self._storage is not None:
                    self._storage.write(CANARY_FILE, encode_state(self._canaries.state()))
            else:
                self._canaries.load(decode_state(known))
            self._looked = True
        if self._canaries.due:
            self._canaries.check()


def harness_queries(setup: HostSetup) -> int:
    """Evaluations that the harness needs for a whole run, at most: goals, clean images, noise and final scores."""
    plan, total = setup.plan, 0
    for cell in plan.cells:
        purifier = plan.defences[cell.defence].purifier
        samples = purifier.samples if purifier is not None and purifier.random else 1
        total += samples * (2 + plan.attacks[cell.attack].attack.restarts) + CONTROL_DRAWS
    return total * len(setup.dataset.image_ids)


def ledger_path(setup: HostSetup, endpoint: Endpoint) -> Path:
    """Where the ledger of a run lies on this machine: ``UDC_RAY_LEDGERS``, or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(LEDGERS_VARIABLE) or Path(cache) / "udc-ray" / "ledgers")
    with suppress(OSError):  # what is wrong with the folder, the ledger says
        folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{setup.out}\n{endpoint.url}".encode()).hexdigest()[:16]
    return folder / f"{digest}.sqlite"
