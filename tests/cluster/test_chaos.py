"""One fault of each kind strikes a run; it ends complete and equal, and nothing that had ended is done again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from disturbed import LOSES_THE_DRIVER, Chaos, bench
from faults import FAULTS

IMAGES = 4


@pytest.fixture(scope="module")
def chaos(_permitted: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with bench(tmp_path_factory.mktemp("chaos"), IMAGES) as made:
        yield made


@pytest.mark.parametrize("kind", [*FAULTS, "head", "drain"])
def test_a_run_survives(chaos: Chaos, kind: str) -> None:
    struck = chaos.strike(kind, number=0, seed=0)
    assert 0 < struck.done_before < struck.units, struck  # it came in the middle
    assert struck.equal, struck
    assert struck.budgets_held, struck
    assert struck.stored_again == 0, struck
    assert struck.redone <= struck.in_flight, struck
    assert struck.attempts == (2 if kind in LOSES_THE_DRIVER else 1), struck
