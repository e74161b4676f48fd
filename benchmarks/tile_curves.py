"""Curves of attacks, kept in a file, and what they are compared with: the best plain Square."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN = tuple(f"square p={p}" for p in (0.01, 0.05, 0.3, 0.8))
Points = list[tuple[int, float]]
"""(Queries asked, best score) at every improvement."""


def db(score: float) -> float:
    """PSNR of a mean squared error."""
    return -10 * math.log10(score)


def at(points: Points, queries: int) -> float:
    """Best score within so many queries."""
    return max((score for asked, score in points if asked <= queries), default=-math.inf)


def needed(points: Points, score: float) -> float:
    """Queries until a score, infinite where it was not reached."""
    return min((asked for asked, found in points if found >= score), default=math.inf)


@dataclass(frozen=True)
class Curve:
    """What an attack reached."""

    points: Points
    asked: int
    whole: bool
    """Whether the attack ended by itself; else it was cut short at `asked`."""


class Curves:
    """Finished curves by attack, image and seed; in a file of JSON lines where one is given.

    Args:
        settings: of all curves; those of other settings may lie in the same file and are left alone.
        attacks: names, and a text for each that says how it is set.
        path: the file; a line that was torn by an interruption is passed over.
    """

    def __init__(self, settings: dict[str, Any], attacks: dict[str, str], path: Path | None) -> None:
        self.settings, self.attacks, self.path = settings, attacks, path
        self.found: dict[tuple[str, str, int], Curve] = {}
        if path is not None and path.exists():
            self._read(path.read_text())

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            try:
                r = json.loads(line)
            except json.JSONDecodeError:
                continue
            if r["settings"] == self.settings and self.attacks.get(r["attack"]) == r["identity"]:
                points = [(int(q), float(score)) for q, score in r["points"]]
                self.found[r["attack"], r["image"], r["seed"]] = Curve(points, r["asked"], r["whole"])

    def add(self, attack: str, image: str, seed: int, curve: Curve) -> None:
        """Keep a curve."""
        self.found[attack, image, seed] = curve
        if self.path is None:
            return
        row = {"attack": attack, "image": image, "seed": seed, "asked": curve.asked, "whole": curve.whole}
        row |= {"identity": self.attacks[attack], "settings": self.settings, "points": curve.points}
        torn = self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as stream:
            stream.write("\n" * torn + json.dumps(row) + "\n")

    def whole(self, attack: str, image: str, seed: int) -> Curve | None:
        """A curve that was not cut short."""
        curve = self.found.get((attack, image, seed))
        return curve if curve is not None and curve.whole else None

    def plain_seed(self, image: str, seed: int) -> int | None:
        """The seed whose plain Squares a seed is compared with: its own, else the first, if that is there."""
        for own in (seed, 0):
            if all(self.whole(name, image, own) for name in PLAIN):
                return own
        return None

    def plain_best(self, image: str, seed: int, queries: int) -> float:
        """Score of the best plain Square."""
        return max(at(self.found[name, image, seed].points, queries) for name in PLAIN)

    def goal(self, image: str, seed: int) -> float | None:
        """What the best plain Square does with its whole budget, where that is known."""
        own = self.plain_seed(image, seed)
        return None if own is None else self.plain_best(image, own, self.settings["budget"])
