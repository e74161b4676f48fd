"""What the attacks share that test many patches with one query and judge each on its own neighbourhood.

MSE is a sum over pixels and restorers are mostly local. So the target is asked for its squared
error cell by cell, many separated patches change at once, and a patch is kept if the sum over its
own neighbourhood grew. Whether the kept patches add up is checked every few queries by an image
that holds all of them and nothing else. Only totals of images that were queried count as damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from udc_ray.attacks import locality
from udc_ray.attacks.machine import HillClimb, QueryMachine, as_float32
from udc_ray.attacks.projections import radius
from udc_ray.attacks.query import Answer, Ask, QueryAttack, QueryProblem, State, Wanted
from udc_ray.attacks.tiles import Layout, Patch, cell_count, local_sums

Array = NDArray[np.float64]
Body = NDArray[np.float32]
"""What an image is made from, C x H x W; see `TileMachine.image`."""

SMALLEST = 16
"""Shorter side in pixels below which nothing is tested in parallel."""
WIDER, NARROWER = 1.5, 1.25
"""What the margin is multiplied by where kept patches did not add up, and divided by where they did."""
ADDS_UP = 0.3
"""Share of the gain seen in the neighbourhoods that the whole image has to show: its patches add up."""
PROBE = 8
"""Side in pixels of the tile of a probe."""
PATIENCE = 3
"""Verifications, the first ones, that all failed: then the plain attack takes over."""


class TileAttack(QueryAttack):
    """An attack that needs tile sums; what both kinds share."""

    norm: Literal["linf"] = "linf"
    """No other: in an L2 ball what one patch takes the others lack, and no patch can be judged alone."""
    cell: Literal[1, 2, 4] | None = None
    """Side in pixels of the squares over which the target's squared error is summed; 4 unless given, 2
    where a side of the image is below 64."""
    verify: int = Field(default=10, ge=2)
    """At most so many queries from one image that holds all kept patches, and nothing else, to the next."""

    def cell_of(self, height: int, width: int) -> int:
        """Side of a cell for an image."""
        return self.cell or (4 if min(height, width) >= 64 else 2)

    def plain(self) -> QueryAttack:
        """The attack that takes over where locality does not hold."""
        raise NotImplementedError("a tile attack names its plain attack")


@dataclass(frozen=True)
class Trial:
    """The body of the next image, and the patches that it tests; none when it is a start or verifies."""

    body_CHW: Body
    patches: Sequence[Patch] = ()


class TileMachine(QueryMachine):
    """Start images and probes, then patches that are tested in parallel and verified; or the plain attack.

    Args:
        attack: hyper-parameters.
        problem: the image.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *("asked", "best_CHW", "best_score", "curve", "by_distance", "margin"),
        *("body_CHW", "sums", "safe_CHW", "safe_sums", "base", "promised", "unverified", "failures", "successes"),
    )
    before: int = 1
    """Start images that are asked before the probes."""
    starts: int = 1
    """Start images, those included; testing begins from the best."""
    sizes: tuple[int, ...] = (4, 8, 16)
    """Sides of patches in pixels; those are used that are whole cells and leave room for enough patches."""

    def __init__(self, attack: TileAttack, problem: QueryProblem) -> None:
        super().__init__(attack, problem)
        self.tiles = attack
        self.shape: tuple[int, ...] = tuple(problem.x_CHW.shape)
        self.height, self.width = self.shape[1:]
        self.cell = attack.cell_of(self.height, self.width)
        self.eps = radius(attack.threat)
        cells = cell_count(self.height, self.cell), cell_count(self.width, self.cell)
        self.by_distance = np.zeros(max(cells))
        self.margin = float(self.cell)
        self.body_CHW: Body = np.zeros(self.shape, dtype=np.float32)
        self.sums = np.full(cells, -np.inf)
        """Squared error by cell of the present body: measured, and after that pieced together patch by patch."""
        self.safe_CHW, self.safe_sums = self.body_CHW, self.sums
        """The best body whose image was queried, and its sums as they were measured."""
        self.base, self.promised, self.unverified = 0.0, 0.0, 0
        """Total that was verified last; gain that patches showed since; queries since."""
        self.failures, self.successes = 0, 0
        self.inner: HillClimb | None = None
        self._trial = Trial(self.body_CHW)
        if not problem.additive or min(self.height, self.width) < SMALLEST or not self.usable():
            self.inner = self._plain()

    # What the kinds of attack say.

    def image(self, body_CHW: Body) -> Tensor:
        """The candidate that a body makes, inside the threat."""
        raise NotImplementedError("a tile machine makes images")

    def start_body(self, number: int) -> Body:
        """Body of a start image."""
        raise NotImplementedError("a tile machine has start images")

    def started(self, number: int, sums: Array) -> None:
        """What the answer to a start image teaches beyond its damage."""

    def trial(self) -> Trial:
        """The present body with changes in separated patches."""
        raise NotImplementedError("a tile machine tests patches")

    def tried(self, kept: NDArray[np.bool_]) -> None:
        """What follows from which patches of the last trial were kept."""

    def rebased(self) -> None:
        """What follows from a verification: the present body may be another one now, and so may the margin."""

    def resume(self, inner: HillClimb) -> None:
        """Tell the plain machine more than the best image, if it needs that to go on from there."""

    # Geometry.

    def layout(self, tile: int) -> Layout:
        """Patches of a size, with the present margin in whole cells."""
        margin = max(round(self.margin / self.cell), 1) * self.cell
        return Layout(cell=self.cell, tile=tile, margin=margin)

    def usable(self) -> list[int]:
        """Sizes of which enough patches fit side by side with the present margin."""
        return [s for s in self.sizes if s % self.cell == 0 and self.layout(s).fits(self.height, self.width)]

    def probe_size(self) -> int:
        """Side of the tile of a probe: 8 pixels, less in an image that is too small for that."""
        return max(s for s in self.usable() if s <= max(PROBE, self.usable()[0]))

    # Asking.

    def propose(self) -> Ask:
        if self.inner is not None:
            return self.inner.ask()
        number = self.asked - self.before
        if 0 <= number < locality.PROBES:
            return self._wanting(self._probe(number), "clean")
        if number < 0:
            self._trial = Trial(self.start_body(self.asked))
        elif number < locality.PROBES + self.starts - self.before:
            self._trial = Trial(self.start_body(self.asked - locality.PROBES))
        elif self.promised > 0 and self.unverified >= self.tiles.verify - 1:
            self._trial = Trial(self.body_CHW)
        else:
            self._trial = self.trial()
        return self._wanting(self.image(self._trial.body_CHW), "reference")

    def _wanting(self, candidate_CHW: Tensor, against: Literal["reference", "clean"]) -> Ask:
        wanted = Wanted(kind="tile-sums", tile=self.cell, against=against)
        return Ask(x_KCHW=candidate_CHW[None], wanted=wanted)

    def _corner(self, number: int) -> tuple[int, int]:
        """Place of a probe's tile."""
        rng = self.generator(self.before + number)
        return locality.probe_corner(rng, number, self.height, self.width, self.probe_size())

    def _probe(self, number: int) -> Tensor:
        (row, column), size = self._corner(number), self.probe_size()
        rows, columns = slice(row, row + size), slice(column, column + size)
        change_CHW = np.zeros(self.shape)
        change_CHW[:, rows, columns] = self.eps if float(self.x_CHW[:, rows, columns].mean()) < 0.5 else -self.eps
        return self.project(self.x_CHW + as_float32(change_CHW).to(self.x_CHW.device))

    def keyed(self, purpose: str, step: int) -> np.random.Generator:
        """A generator for a purpose of its own, apart from those of the queries."""
        return self.tape.at(step=step).generators(f"{self._attack.identity()}/{purpose}")[0]

    # Learning.

    def learn(self, ask: Ask, answers: Sequence[Answer]) -> None:
        if self.inner is not None:
            self.inner.tell(answers)
            return
        sums = np.asarray(answers[0], dtype=np.float64)
        if ask.wanted.against == "clean":
            self._learn_reach(self.asked - 1 - self.before, sums)
            return
        better = self.offer(ask.x_KCHW[0], float(sums.sum()) / self.x_CHW.numel())
        number = self.asked - 1
        number -= locality.PROBES if number >= self.before else 0
        if number < self.starts:
            if better or number == 0:
                self._settle(sums)
            self.started(number, sums)
        elif self._trial.patches:
            self._learn_patches(sums, better)
        else:
            self._learn_sum(sums)

    def _settle(self, sums: Array) -> None:
        """Go on from the image that was just measured."""
        self.body_CHW, self.sums = self._trial.body_CHW.copy(), sums.copy()
        self.safe_CHW, self.safe_sums = self._trial.body_CHW, sums
        self.base = float(sums.sum())

    def _learn_reach(self, number: int, change: Array) -> None:
        """Add a probe to the profile; after the last one the margin is known."""
        away = locality.distances(self.height, self.width, self.cell, self.probe_size(), self._corner(number))
        self.by_distance = self.by_distance + locality.profile(change, away, len(self.by_distance))
        if number < locality.PROBES - 1:
            return
        margin = locality.holding_margin(self.by_distance, self.cell)
        if margin is not None:
            self.margin = float(margin)
        if margin is None or not self.usable():
            self.fall_back()

    def _learn_patches(self, sums: Array, better: bool) -> None:
        """Keep every patch whose own neighbourhood is worse off than before."""
        patches = self._trial.patches
        gains = local_sums(sums - self.sums, patches)
        kept = gains > 0
        for patch, keep in zip(patches, kept, strict=True):
            if keep:
                self.body_CHW[patch.pixels] = self._trial.body_CHW[patch.pixels]
                self.sums[patch.near] = sums[patch.near]
        if better:
            self.safe_CHW, self.safe_sums = self._trial.body_CHW, sums
        self.promised += float(gains[kept].sum())
        self.unverified += 1
        self.tried(kept)

    def _learn_sum(self, sums: Array) -> None:
        """Compare the image of all kept patches with what they promised; go back where it lost."""
        gained = float(sums.sum()) - self.base
        wider = self.margin * (WIDER if gained < ADDS_UP * self.promised else 1 / NARROWER)
        before, self.margin = self.margin, max(wider, float(self.cell))
        if not self.usable():
            self.margin = before
        self.successes, self.failures = self.successes + (gained > 0), self.failures + (not gained > 0)
        if sums.sum() > self.safe_sums.sum():
            self.safe_CHW, self.safe_sums = self.body_CHW.copy(), sums
        self.body_CHW, self.sums = self.safe_CHW.copy(), self.safe_sums.copy()
        self.base, self.promised, self.unverified = float(self.safe_sums.sum()), 0.0, 0
        self.rebased()
        if self.successes == 0 and self.failures >= PATIENCE:
            self.fall_back()

    # The plain attack.

    def fall_back(self) -> None:
        """Hand over to the plain attack, which goes on from the best image so far with the same count."""
        inner = self._plain()
        inner.asked, inner.curve = self.asked, list(self.curve)
        inner.best_CHW, inner.best_score = self.best_CHW, self.best_score
        self.resume(inner)
        self.inner = inner

    def exhausted(self) -> bool:
        """Whether the plain attack has nothing left to try."""
        return self.inner is not None and self.inner.exhausted()

    def state(self) -> State:
        """See `Machine`; with the state of the plain attack once it has taken over."""
        return super().state() | {"inner": None if self.inner is None else self.inner.state()}

    def load(self, state: State) -> None:
        """See `Machine`."""
        self.inner = None if state["inner"] is None else self._plain()
        if self.inner is not None:
            self.inner.load(state["inner"])
        super().load(state)

    def _plain(self) -> HillClimb:
        machine = self.tiles.plain().start(self.problem)
        if not isinstance(machine, HillClimb):
            raise TypeError(f"the plain attack of {self.tiles.name} is no hill climber")
        return machine
