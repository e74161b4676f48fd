"""Running a function once on every living node of a connected cluster."""

from __future__ import annotations

from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from udc_ray.errors import UserError


class Answer(NamedTuple):
    """What a task on one node returned, or why it did not."""

    node: str
    value: Any
    error: str | None


def ask_every_node(
    function: Any, arguments: tuple[Any, ...], timeout: float, *, but_here: bool = False
) -> list[Answer]:
    """Run a function once on every living node, beside whatever works there.

    Args:
        function: importable on the nodes; it is given `arguments`.
        arguments: picklable.
        timeout: seconds for all nodes together.
        but_here: leave out the node that this process is on.
    """
    # Ray hides the GPUs from tasks that ask for none; who looks at a node wants to see them.
    environment = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
    task = ray.remote(function)
    skipped = _own_node() if but_here else None
    asked: dict[Any, str] = {}
    for node_id, node in living_nodes().items():
        if node_id != skipped:
            here = NodeAffinitySchedulingStrategy(node_id, soft=False)
            options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here, "runtime_env": environment}
            asked[task.options(**options).remote(*arguments)] = node
    if not asked:
        return []
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=timeout)
    for ref in late:
        ray.cancel(ref, force=True)
    silent = [Answer(asked[ref], None, f"did not answer within {timeout:.0f} s") for ref in late]
    return sorted([*(_answer(asked[ref], ref) for ref in ready), *silent], key=lambda answer: answer.node)


def living_nodes() -> dict[str, str]:
    """Address and short id of every living node, by the node's id."""
    return {n["NodeID"]: f"{n['NodeManagerAddress']} {n['NodeID'][:8]}" for n in ray.nodes() if n["Alive"]}


def _own_node() -> str | None:
    """The node of this process; None for a client outside the cluster."""
    if ray.util.client.ray.is_connected():
        return None
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _answer(node: str, ref: Any) -> Answer:
    try:
        return Answer(node, ray.get(ref), None)
    except ray.exceptions.RayError as error:
        return Answer(node, None, _reason(error))


def _reason(error: Exception) -> str:
    """One line: what a worker raised, or what Ray says of it."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ModuleNotFoundError):
        return f"udc-ray is not installed there: {cause}"
    if isinstance(cause, UserError):
        return "; ".join(str(cause).splitlines())
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
