"""Tile-parallel Square: waves in many separated windows at once, each judged on its own neighbourhood."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from udc_ray.attacks import waves
from udc_ray.attacks.machine import as_float32
from udc_ray.attacks.query import QueryProblem
from udc_ray.attacks.square import Square, signs
from udc_ray.attacks.tile_machine import Array, Body, TileAttack, TileMachine, Trial
from udc_ray.attacks.tiles import lattice

LAB = 32
"""Side in pixels of the tiles that hold a wave each in a scan: a few periods of the waves that matter."""
CANDIDATES = 1500
"""Waves among which the scans choose."""
TRUST = 3.0
"""Weight of a wave that was tried all over the image, where one that was tried in a tile weighs 1."""
TINY = 1e-12
"""Least squared error whose logarithm is taken."""
SHARPNESS = 3.0
"""How much likelier a wave is drawn, in powers of e, for each e-fold of damage that is expected of it."""
STRENGTHS = (0.15, 0.5, 1.5)
"""Amplitude of a wave that is added to the latent, which begins with amplitude 1."""
LARGEST = 6
"""So many of the sizes that fit are used, the largest ones."""
TINTED = 0.3
"""Share of patches whose wave has channel weights -1, 0 or 1 drawn anew."""


class TileSquare(TileAttack):
    """Square attack on many patches at once; linf and objectives that are sums over pixels.

    Every image is the untouched one +- eps, by the sign of a latent. It starts from the best of
    vertical stripes, independent signs, `scans` images that hold another wave in every tile, and
    `waves` images of one wave each, that of which most is to be expected by then. Then waves are added
    to the latent in separated windows, kept where the neighbourhood of the window is worse off.
    """

    name: ClassVar[str] = "tile-square"

    scans: int = Field(default=4, ge=0)
    """Queries that try another wave in every tile."""
    waves: int = Field(default=16, ge=0)
    """Queries that try one wave all over the image."""
    horizon: int = Field(default=10_000, ge=1)
    """Schedule of the plain attack, where it takes over."""

    def plain(self) -> Square:
        """Square with the same threat and budget."""
        shared = {name: getattr(self, name) for name in ("eps", "depth", "restarts", "objective", "budget", "stop")}
        return Square(**shared, horizon=self.horizon)

    def start(self, problem: QueryProblem) -> TileSquareMachine:
        """Begin on one image."""
        return TileSquareMachine(self, problem)


class TileSquareMachine(TileMachine):
    """Tile-parallel Square on one image; a body is a latent whose signs are the perturbation's."""

    SAVED: ClassVar[tuple[str, ...]] = (*TileMachine.SAVED, "damages", "whole")
    before = 2
    sizes = (4, 8, 12, 16, 24, 32, 48)

    def __init__(self, attack: TileSquare, problem: QueryProblem) -> None:
        self.attack = attack
        self.starts = 2 + attack.scans + attack.waves
        self.damages: list[Array] = []
        """Logarithm of the squared error in the tiles of every scan."""
        self.whole: list[tuple[float, float, float, float]] = []
        """Waves that were tried all over the image, and the logarithm of their squared error."""
        super().__init__(attack, problem)
        self.pool = waves.draw(self.keyed("pool", 0), CANDIDATES, self.shape[0])
        self._likely: Array | None = None

    def image(self, body_CHW: Body) -> Tensor:
        moved = self.eps * np.where(body_CHW >= 0, 1.0, -1.0)
        return self.project(self.x_CHW + as_float32(moved).to(self.x_CHW.device))

    def start_body(self, number: int) -> Body:
        rng = self.generator(self.asked)
        channels, height, width = self.shape
        if number < 2:
            drawn = signs(rng, channels, 1, width) if number == 0 else signs(rng, *self.shape)
            return _body(drawn * rng.random(self.shape))  # magnitudes say how easily a sign is turned later
        if number < 2 + self.attack.scans:
            return self._scan(number - 2)
        wave = self._next_wave()
        crest = waves.crest(wave, rng.uniform(0, 2 * np.pi), height, width)
        return _body(waves.colours(channels)[int(wave[2])][:, None, None] * crest)

    def started(self, number: int, sums: Array) -> None:
        if 2 <= number < 2 + self.attack.scans:
            side = LAB // self.cell
            rows = np.add.reduceat(sums, range(0, sums.shape[0], side), axis=0)
            totals = np.add.reduceat(rows, range(0, sums.shape[1], side), axis=1)
            self.damages.append(_log(totals))
        elif number >= 2:
            down, right, colour = (float(value) for value in self._next_wave())
            self.whole.append((down, right, colour, float(_log(sums.sum()))))

    def trial(self) -> Trial:
        rng = self.generator(self.asked)
        if self._likely is None:
            self._likely = np.exp(SHARPNESS * self._expected())
            self._likely /= self._likely.sum()
        layout = self.layout(int(rng.choice(self.usable()[-LARGEST:])))
        strength = float(rng.choice(STRENGTHS))
        row, column = (self.cell * int(rng.integers(0, layout.pitch // self.cell)) for _ in range(2))
        patches = lattice(self.height, self.width, layout, row=row, column=column)
        body_CHW = self.body_CHW.copy()
        drawn = self.pool[rng.choice(len(self.pool), size=len(patches), p=self._likely)]
        for patch, wave in zip(patches, drawn, strict=True):
            here = body_CHW[patch.pixels]
            here += strength * self._window(rng, wave, *here.shape[1:])
        return Trial(body_CHW, patches)

    def _window(self, rng: np.random.Generator, wave: Array, height: int, width: int) -> Body:
        """A wave near the given one that fades towards the border of its window, C x height x width."""
        near = wave + np.array([*rng.normal(0, waves.BANDWIDTH / 3, 2), 0.0])
        crest = waves.crest(near, rng.uniform(0, 2 * np.pi), height, width) * np.outer(_fade(height), _fade(width))
        channels = self.shape[0]
        tint = rng.integers(-1, 2, channels) if rng.random() < TINTED else waves.colours(channels)[int(wave[2])]
        return _body(tint[:, None, None] * crest)

    def _lab_waves(self, number: int) -> Array:
        """The waves of a scan, tiles x 3, drawn anew from its own key."""
        rows, columns = -(-self.height // LAB), -(-self.width // LAB)
        return waves.draw(self.keyed("scan", number), rows * columns, self.shape[0])

    def _scan(self, number: int) -> Body:
        body_CHW = np.zeros(self.shape, dtype=np.float32)
        columns = -(-self.width // LAB)
        palette = waves.colours(self.shape[0])
        for index, wave in enumerate(self._lab_waves(number)):
            row, column = LAB * (index // columns), LAB * (index % columns)
            here = body_CHW[:, row : row + LAB, column : column + LAB]
            here[:] = palette[int(wave[2])][:, None, None] * waves.crest(wave, 0.0, *here.shape[1:])
        return body_CHW

    def _next_wave(self) -> Array:
        """The most promising wave of the pool, in turn of the grey ones and of all, unlike those tried all over."""
        expected = self._expected()
        if len(self.whole) % 2 == 0:
            expected[self.pool[:, 2] != 0] = -np.inf
        if self.whole:
            near = waves.distances(self.pool, np.array(self.whole)[:, :3]).min(axis=1) < waves.BANDWIDTH / 2
            expected[near] = -np.inf
        wave: Array = self.pool[int(np.argmax(expected))]
        return wave

    def _expected(self) -> Array:
        """Gain to be expected of the waves of the pool, over the average wave, by all that was tried."""
        tried, gains, trust = [np.zeros((0, 3))], [np.zeros(0)], [np.zeros(0)]
        if self.damages:
            damages = np.stack(self.damages)
            tried.append(np.concatenate([self._lab_waves(n) for n in range(len(damages))]))
            gains.append((damages - damages.mean(axis=0)).ravel())
            trust.append(np.ones(damages.size))
        if self.whole:
            whole = np.array(self.whole)
            average = np.log(np.exp(np.stack(self.damages)).sum(axis=(1, 2))).mean() if self.damages else whole[0, 3]
            tried.append(whole[:, :3])
            gains.append(whole[:, 3] - average)
            trust.append(np.full(len(whole), TRUST))
        return waves.expected(np.concatenate(tried), np.concatenate(gains), np.concatenate(trust), self.pool)


def _fade(length: int) -> Array:
    """Square root of a Hann window, without its zeros."""
    return np.sqrt(np.hanning(length + 2)[1:-1])


def _log(sums: Array) -> Array:
    """Logarithm of squared errors; NaN, the answer of a broken model, counts as none."""
    logarithm: Array = np.log(np.maximum(np.nan_to_num(sums), TINY))
    return logarithm


def _body(values: Array) -> Body:
    return values.astype(np.float32)
