"""Is the record whole and inside its threat? Checks 2, 3, 10, 27."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from udc_ray.checks.base import CheckResult, Verdict, result, scale_of
from udc_ray.metrics.statistics import CLAIM_SIZE, CellRecords, difference
from udc_ray.records import Record

NORM_TOLERANCE = 1e-6
"""Allowed excess of a norm, absolute and relative to eps: float32 rounding."""
SPREAD_DB = 1e-4
"""Spread between samples above which a victim counts as random (AutoAttack's flag)."""


def clean_metrics(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 2: degraded, clean and noise-control quality stand beside every attacked number."""
    return [_clean_metrics(cell) for cell in cells if cell.measured]


def _clean_metrics(cell: CellRecords) -> CheckResult:
    rows = cell.measured
    needed = ["psnr_noise", "psnr_adv"]
    if any(r.score_clean is not None for r in rows):
        needed = ["score_clean", "score_noise", "score_adv"]
    elif any(r.psnr_degraded is not None for r in rows) or not cell.head.objective.endswith("-clean"):
        needed += ["psnr_degraded", "psnr_clean"]
        # SSIM does not exist for images below its window: then it is missing on both sides.
        needed += ["ssim_clean"] if any(r.ssim_adv is not None for r in rows) else []
    lacking = [name for name in needed if any(getattr(r, name) is None for r in rows)]
    if lacking:
        message = f"{', '.join(lacking)} missing: an attacked number without it cannot be judged"
        return result("02-clean-metrics", cell, "fail", len(lacking), 0, message)
    worst = min(cell.samples("psnr_clean").items(), key=lambda item: min(map(min, item[1].values())), default=None)
    if worst is None:
        return result("02-clean-metrics", cell, "pass", 0, 0, "all metrics present")
    low = min(map(min, worst[1].values()))
    return result("02-clean-metrics", cell, "pass", 0, 0, f"present; worst clean sample {low:.2f} dB ({worst[0]})")


def within_budget(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 3: the norms of the stored images against eps, and against the box [0, 1]."""
    return [_within_budget(cell) for cell in cells if cell.measured]


def _within_budget(cell: CellRecords) -> CheckResult:
    if any(r.linf is None or r.l2 is None for r in cell.measured):
        return result("03-within-budget", cell, "fail", None, NORM_TOLERANCE, "norms were not recorded")
    excess, image = max((_excess(r), r.image_id) for r in cell.measured)
    if excess > NORM_TOLERANCE:
        message = f"{image} leaves the ball or the box by {excess:.3g} of the radius"
        return result("03-within-budget", cell, "fail", excess, NORM_TOLERANCE, message)
    return result("03-within-budget", cell, "pass", excess, NORM_TOLERANCE, "every perturbation is inside")


def _excess(record: Record) -> float:
    """Largest violation: of the ball (relative for radii above 1), of the box, or of l2 >= linf."""
    linf, l2 = record.linf, record.l2
    if linf is None or l2 is None or not (math.isfinite(linf) and math.isfinite(l2)):
        return math.inf
    excess = max(linf - 1.0, linf - l2)
    if record.eps is not None:
        norm = linf if record.norm == "linf" else l2
        excess = max(excess, (norm - record.eps) / max(1.0, record.eps))
    return excess


def randomness(cells: Sequence[CellRecords], random_defences: Collection[str]) -> list[CheckResult]:
    """Check 10: is the victim random, and over how many evaluations is it averaged?"""
    return [_randomness(cell, cell.head.defense.split()[0] in random_defences) for cell in cells if cell.measured]


def _randomness(cell: CellRecords, declared: bool) -> CheckResult:
    spread, scale = 0.0, scale_of(cell)
    for column in (scale.clean, scale.attacked):
        for restarts in cell.samples(column).values():
            spread = max([spread, *(max(v) - min(v) for v in restarts.values())])
    samples = len({r.sample for r in cell.measured})
    if not (declared or spread > SPREAD_DB or any(r.nfe for r in cell.measured)):
        return result("10-randomness", cell, "info", spread, SPREAD_DB, "deterministic victim")
    message = f"random victim: {samples} evaluation{'s' if samples > 1 else ''} per image, spread {scale.show(spread)}"
    return result("10-randomness", cell, "info", spread, SPREAD_DB, message)


def sample_size(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 27: enough images for an interval and a claim; the seeds are listed."""
    return [_sample_size(cell) for cell in cells]


def _sample_size(cell: CellRecords) -> CheckResult:
    n, asked = len(cell.per_image("psnr_adv") or cell.per_image("score_adv")), len(cell.images)
    seeds = ", ".join(str(s) for s in sorted({r.seed for r in cell.records}))
    size = f"n = {n}" + (f" of {asked}" if n < asked else "")
    if n < 2:
        return result("27-sample-size", cell, "fail", n, 2, f"{size}: no interval (seed {seeds})")
    if n < CLAIM_SIZE:
        return result("27-sample-size", cell, "warn", n, CLAIM_SIZE, f"{size}, too few for a claim (seed {seeds})")
    verdict: Verdict = "pass" if n == asked else "warn"
    return result("27-sample-size", cell, verdict, n, CLAIM_SIZE, f"{size} (seed {seeds})")


def best_iterate(cells: Sequence[CellRecords]) -> list[CheckResult]:
    """Check 17: no success is lost at the end; an attack on MSE that ends above the clean quality has lost one."""
    wanted = [c for c in cells if c.adaptive and c.kind != "control" and c.measured]
    found = [_lost_success(c) if any(r.lost for r in c.measured) else _best_iterate(c) for c in wanted]
    return [one for one in found if one is not None]


def _lost_success(cell: CellRecords) -> CheckResult:
    """What the attack itself noticed, whatever its objective."""
    images = sorted({r.image_id for r in cell.measured if r.lost})
    message = f"{len(images)} of {len(cell.images)} images were harmed on the way and are not at the end (first: "
    return result("17-best-iterate", cell, "fail", len(images), 0, f"{message}{images[0]}): best iterate lost")


LOST_DB = 0.05
"""Gain in dB over the clean output from which on an iterate counts as lost."""


def _best_iterate(cell: CellRecords) -> CheckResult | None:
    if cell.head.objective != "mse":
        return None
    noise = cell.standard_error("psnr_adv")
    gain = {i: -drop for i, drop in difference(cell.per_image("psnr_clean"), cell.per_image("psnr_adv")).items()}
    lost = sorted(i for i, value in gain.items() if value > LOST_DB + 2 * noise[i])
    if lost:
        message = f"{len(lost)} of {len(gain)} images end better than untouched (first: {lost[0]})"
        if (
            cell.kind == "query"
        ):  # it keeps the best candidate that it asked for, and may not have asked for the untouched
            return result("17-best-iterate", cell, "warn", len(lost), 0, f"{message}: too few queries?")
        return result("17-best-iterate", cell, "fail", len(lost), 0, f"{message}: best iterate lost")
    return result("17-best-iterate", cell, "pass", 0, 0, "no image ends better than untouched")
