"""Real hosts for the tests of this folder; where there can be none, they are skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from network import Network, available
from ray_hosts import RayCluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session", autouse=True)
def _permitted() -> None:
    if reason := available():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def network(_permitted: None) -> Iterator[Network]:
    """A network without hosts."""
    with Network() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(network: Network) -> Iterator[RayCluster]:
    """A head that offers nothing and two workers, shared by the tests of a module."""
    with RayCluster(network) as made:
        yield made
