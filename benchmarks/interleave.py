"""Two ways of doing the same work, alternated so finely that the machine's moods hit both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[], object]


def seconds(step: Step) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def compare(name: str, ours: Step, bare: Step, rounds: int, repeats: int = 3) -> dict[str, Any]:
    """Speed of `ours` as a share of `bare`.

    Args:
        name: name of the row.
        ours, bare: one batch of work each.
        rounds: rounds; each gives one ratio.
        repeats: batches of each side in a round, alternating.

    Returns:
        The row: median ratio of bare time to our time (1 is parity), its range, and both times.
    """
    ours(), bare()
    ratios, times = [], ([], [])  # type: ignore[var-annotated]  # two lists of floats
    for number in range(rounds):
        spent = [0.0, 0.0]
        for repeat in range(repeats):
            order = (0, 1) if (number + repeat) % 2 == 0 else (1, 0)
            for side in order:
                spent[side] += seconds((ours, bare)[side])
        ratios.append(spent[1] / spent[0])
        for side in (0, 1):
            times[side].append(spent[side] / repeats)
    return {
        "name": name,
        "share_of_bare": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
        "ours_s": round(statistics.median(times[0]), 4),
        "bare_s": round(statistics.median(times[1]), 4),
        "rounds": rounds,
    }
