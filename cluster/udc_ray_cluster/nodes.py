"""Which nodes have announced their end, or are gone already."""

from __future__ import annotations

from contextlib import suppress

import ray
from ray._private.state import state

REFRESH_SECONDS = 3.0


class Nodes:
    """What the cluster says of its nodes, asked at most every few seconds."""

    def __init__(self) -> None:
        self._draining: set[str] = set()
        self._dead: set[str] = set()
        self._drains_at = self._deaths_at = float("-inf")

    def draining(self, now: float) -> set[str]:
        """Ids of the nodes that have announced their end, once and for all."""
        if now - self._drains_at >= REFRESH_SECONDS:
            self._drains_at = now
            with suppress(ray.exceptions.RayError, RuntimeError, OSError):  # the head may be away for a moment
                # Ray Train's preemption watcher asks in the same way; there is no public call.
                self._draining |= set(state.get_draining_nodes())
        return self._draining

    def ended(self, node: str, now: float) -> bool:
        """Whether a node announced its end or is known to be gone, so that deaths on it are nobody's fault."""
        if node in self.draining(now):
            return True
        if node not in self._dead and now - self._deaths_at >= REFRESH_SECONDS:
            self._deaths_at = now
            with suppress(ray.exceptions.RayError, RuntimeError, OSError):  # see above
                self._dead |= {str(n["NodeID"]) for n in ray.nodes() if not n["Alive"]}
        return node in self._dead
