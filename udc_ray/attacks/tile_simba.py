"""Tile-parallel SimBA: one basis image in each of many separated tiles, added or subtracted, judged tile by tile."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from udc_ray.attacks.machine import HillClimb, as_float32
from udc_ray.attacks.query import QueryProblem
from udc_ray.attacks.simba import SimBA, SimBAMachine, cosine
from udc_ray.attacks.tile_machine import Body, TileAttack, TileMachine, Trial
from udc_ray.attacks.tiles import Patch, lattice
from udc_ray.params import Amount


class TileSimBA(TileAttack):
    """SimBA on many tiles at once; linf and objectives that are sums over pixels.

    The image is divided into tiles whose colours say which may change together. A query adds to
    every tile of one colour a basis image of its own, a product of cosines; the next one subtracts
    it where it did not help. Colours follow one another in keyed order, pass after pass.
    """

    name: ClassVar[str] = "tile-simba"

    tile: int = Field(default=8, ge=4)
    """Largest side of a tile in pixels; a smaller one is taken where enough of these do not fit."""
    freq_share: Amount = Field(default=0.75, gt=0, le=1)
    """Share of a tile's frequencies, from the lowest, that basis images are drawn from."""
    step: Amount | None = Field(default=None, gt=0)
    """Largest absolute value of a basis image, eps unless given."""

    def plain(self) -> SimBA:
        """SimBA with the same threat, step and budget."""
        shared = {
            name: getattr(self, name) for name in ("eps", "depth", "restarts", "objective", "budget", "stop", "step")
        }
        return SimBA(**shared)

    def start(self, problem: QueryProblem) -> TileSimBAMachine:
        """Begin on one image."""
        return TileSimBAMachine(self, problem)


class TileSimBAMachine(TileMachine):
    """Tile-parallel SimBA on one image; a body is the perturbation before rounding to the storage depth."""

    SAVED: ClassVar[tuple[str, ...]] = (*TileMachine.SAVED, "turn", "refused")

    def __init__(self, attack: TileSimBA, problem: QueryProblem) -> None:
        self.attack = attack
        self.sizes = tuple(sorted({size for size in (4, 8, 16) if size < attack.tile} | {attack.tile}))
        self.turn = 0
        """Queries that tested basis images; every second one subtracts what the one before it added."""
        self.refused: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        """Which tiles of the last query that added did not keep it; empty when a new turn begins."""
        super().__init__(attack, problem)
        self.stride = self.eps if attack.step is None else attack.step

    def image(self, body_CHW: Body) -> Tensor:
        return self.project(self.x_CHW + as_float32(body_CHW).to(self.x_CHW.device))

    def start_body(self, number: int) -> Body:
        return np.zeros(self.shape, dtype=np.float32)

    def trial(self) -> Trial:
        patches, changes = self._basis()
        sign = 1.0
        if len(self.refused) == len(patches) and self.refused.any():
            sign = -1.0
            again = np.flatnonzero(self.refused)
            patches, changes = [patches[n] for n in again], [changes[n] for n in again]
        body_CHW = self.body_CHW.copy()
        for patch, change in zip(patches, changes, strict=True):
            here = body_CHW[patch.pixels]
            here[:] = np.clip(here + sign * change, -self.eps, self.eps)
        return Trial(body_CHW, patches)

    def tried(self, kept: NDArray[np.bool_]) -> None:
        added = not len(self.refused)
        self.refused = ~kept if added and not kept.all() else np.zeros(0, dtype=bool)
        if not len(self.refused):
            self.turn += 1

    def rebased(self) -> None:
        if len(self.refused):
            self.refused, self.turn = np.zeros(0, dtype=bool), self.turn + 1

    def resume(self, inner: HillClimb) -> None:
        if isinstance(inner, SimBAMachine):
            inner.sum_CHW = self.best_CHW

    def _basis(self) -> tuple[list[Patch], list[Body]]:
        """The tiles of the present colour, and a basis image for each."""
        layout = self.layout(self.usable()[-1])
        count = layout.colours**2
        colour = int(self.keyed("order", self.turn // count).permutation(count)[self.turn % count])
        row, column = (layout.tile * place for place in divmod(colour, layout.colours))
        pitch = layout.tile * layout.colours
        patches = lattice(self.height, self.width, layout, row=row, column=column, pitch=pitch)
        rng = self.keyed("basis", self.turn)
        return patches, [self._basis_image(rng, patch) for patch in patches]

    def _basis_image(self, rng: np.random.Generator, patch: Patch) -> Body:
        """A product of cosines of random frequencies in one channel or in all of them."""
        height, width = (side.stop - side.start for side in (patch.rows, patch.columns))
        down, right = (int(rng.integers(0, max(round(self.attack.freq_share * side), 1))) for side in (height, width))
        plane = np.outer(cosine(down, height), cosine(right, width))
        channel = int(rng.integers(0, self.shape[0] + 1))
        image = np.zeros((self.shape[0], height, width), dtype=np.float32)
        image[slice(None) if channel == self.shape[0] else channel] = plane * (self.stride / np.abs(plane).max())
        return image
