"""What an audit finds: numbers that were recomputed, those that differ, and those that cannot be recomputed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from udc_ray.records import SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A published number, or a rule of the run, that the files contradict.

    Attributes:
        where: file and place.
        published: what stands there; None where a rule is broken.
        recomputed: what it should be; None where a rule is broken.
        message: one sentence for people.
    """

    where: str
    published: Any = None
    recomputed: Any = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Numbers that were not recomputed.

    Attributes:
        what: which.
        count: how many.
        why: what would be needed.
    """

    what: str
    count: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one part of the audit found.

    Attributes:
        name: what was recomputed.
        numbers: how many values were recomputed or held against a rule.
        mismatches: all of them.
        gaps: what this part could not recompute.
    """

    name: str
    numbers: int
    mismatches: tuple[Mismatch, ...] = ()
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The whole audit of a run.

    Attributes:
        run: where the run lies.
        findings: one a part of the audit.
    """

    run: str
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing that was recomputed differs."""
        return not any(finding.mismatches for finding in self.findings)

    @property
    def numbers(self) -> int:
        """How many values were recomputed or held against a rule."""
        return sum(finding.numbers for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes text."""
        findings = [
            {
                "name": finding.name,
                "numbers": finding.numbers,
                "mismatches": [{k: _plain(v) for k, v in asdict(m).items()} for m in finding.mismatches],
                "not_recomputed": [asdict(gap) for gap in finding.gaps],
            }
            for finding in self.findings
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "run": self.run,
            "holds": self.holds,
            "numbers": self.numbers,
            "findings": findings,
        }


@dataclass
class Audit:
    """Collects what one part of the audit finds."""

    name: str
    numbers: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def same(self, where: str, published: Any, recomputed: Any, message: str = "") -> bool:
        """One value, compared to the bit."""
        self.numbers += 1
        if same_bits(published, recomputed):
            return True
        self.mismatches.append(
            Mismatch(where=where, published=published, recomputed=recomputed, message=message or "differs")
        )
        return False

    def near(self, where: str, published: float, recomputed: float, tolerance: float) -> bool:
        """One value, compared up to an absolute tolerance."""
        self.numbers += 1
        if abs(published - recomputed) <= tolerance:
            return True
        self.mismatches.append(
            Mismatch(
                where=where, published=published, recomputed=recomputed, message=f"differs by more than {tolerance:g}"
            )
        )
        return False

    def holds(self, where: str, rule: bool, message: str) -> bool:
        """One rule."""
        self.numbers += 1
        if not rule:
            self.mismatches.append(Mismatch(where=where, message=message))
        return rule

    def gap(self, what: str, count: int, why: str) -> None:
        """Numbers that cannot be recomputed; none is no gap."""
        if count > 0:
            self.gaps.append(Gap(what=what, count=count, why=why))

    def finding(self) -> Finding:
        """What was found."""
        return Finding(name=self.name, numbers=self.numbers, mismatches=tuple(self.mismatches), gaps=tuple(self.gaps))


def same_bits(one: Any, other: Any) -> bool:
    """Whether two plain values are the same; floats to the bit, the sign of zero too, and NaN equals NaN."""
    if isinstance(one, float) and isinstance(other, float):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other and math.copysign(1.0, one) == math.copysign(1.0, other)
    return type(one) is type(other) and bool(one == other)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
