"""The one place where queries are counted, and where a budget ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udc_ray.attacks.memory import Memory
from udc_ray.attacks.query import SCALAR, Answer, Ask, Wanted
from udc_ray.errors import UdcRayError

ChainKey = tuple[str, int]
"""Image id and restart: one chain of queries."""


class BudgetExceeded(UdcRayError):
    """A machine asked for more than its budget; a defect of the machine, never of the user."""


class TargetSpent(UdcRayError):
    """The account of a target leaves nothing for attacks; chains end where they are."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Whose candidate this is, and what is wanted of the image that comes back.

    Attributes:
        image_id, restart: the chain.
        step: number of the query in its chain, from 0; it keys the noise of a random victim.
        cell: the cell that the attack belongs to, for accounts.
        objective: name of the objective.
        wanted: what the host reduces the returned image to.
        goal: score from which on an event has happened.
    """

    image_id: str
    restart: int = 0
    step: int = 0
    cell: str = ""
    objective: str = "mse"
    wanted: Wanted = SCALAR
    goal: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Candidates for a host to judge.

    Attributes:
        victim: index of the defence in the plan.
        rows: one a candidate.
        packed: the candidates, N x C x H x W of one shape: float32, or uint8 where that holds them exactly.
    """

    victim: int
    rows: tuple[Row, ...]
    packed: NDArray[np.float32] | NDArray[np.uint8]

    @property
    def x_NCHW(self) -> Tensor:
        """The candidates in [0, 1], exactly as they were packed; a zero has lost its sign."""
        return unpack(self.packed)


Scorer = Callable[[ScoreRequest], Awaitable[Sequence[Answer]]]
"""Judges a request; on a host, in this process or elsewhere."""


def pack(x_NCHW: Tensor) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Candidates as they travel: a byte a value where all lie on the 8-bit grid to the bit."""
    values: NDArray[np.float32] = x_NCHW.contiguous().numpy()
    levels = np.rint(values * 255).clip(0, 255).astype(np.uint8)
    return levels if np.array_equal(unpack(levels).numpy(), values) else values


def unpack(packed: NDArray[np.float32] | NDArray[np.uint8]) -> Tensor:
    """What `pack` packed; on the 8-bit grid the float32 that is nearest to level / 255."""
    if packed.dtype == np.uint8:
        return torch.from_numpy((packed.astype(np.float64) / 255).astype(np.float32))
    return torch.from_numpy(packed if packed.flags.writeable else packed.copy())


@dataclass(frozen=True, kw_only=True)
class Query:
    """One candidate on its way."""

    victim: int
    row: Row
    x_CHW: Tensor


class Oracle:
    """Sends candidates on and counts every one of them, success checks included.

    Args:
        send: hands queries to whoever answers them, in their order.
        victim: index of the attacked victim.
        like: the row that every query of the attack resembles: cell and objective.
        budget: queries allowed per image and restart.
        caps: queries allowed to some chains that have less than the budget, because a larger account ends.
        spent: queries that chains had asked before, in earlier sessions.
        memories: of the chains that are not to send a candidate twice.
    """

    def __init__(
        self,
        send: Callable[[list[Query]], Awaitable[list[Answer]]],
        victim: int,
        like: Row,
        budget: int,
        *,
        caps: Mapping[ChainKey, int] | None = None,
        spent: Mapping[ChainKey, int] | None = None,
        memories: Mapping[ChainKey, Memory] | None = None,
    ) -> None:
        self._send, self._victim, self._like, self._budget = send, victim, like, budget
        self._caps = dict(caps or {})
        self.spent: dict[ChainKey, int] = dict(spent or {})
        self._memories = dict(memories or {})

    def allowed(self, key: ChainKey) -> int:
        """Queries that a chain may have asked in all."""
        return min(self._budget, self._caps.get(key, self._budget))

    def affords(self, key: ChainKey, count: int) -> bool:
        """Whether a chain may ask so many more."""
        return self.spent.get(key, 0) + count <= self.allowed(key)

    async def answer(self, key: ChainKey, ask: Ask, goal: float) -> list[Answer]:
        """Answer what a chain asks; empty batch slots are no queries."""
        first, count = self.spent.get(key, 0), len(ask.x_KCHW)
        if not self.affords(key, count):
            raise BudgetExceeded(f"{key} asks {first + count} queries of {self.allowed(key)}")
        self.spent[key] = first + count
        queries = [self._query(key, step, x_CHW, ask.wanted, goal) for step, x_CHW in enumerate(ask.x_KCHW, first)]
        try:
            return await self._answers(queries, self._memories.get(key))
        except TargetSpent:
            self.spent[key] = first  # the chain learns nothing of this ask; what was sent, the target's account knows
            raise

    async def _answers(self, queries: list[Query], memory: Memory | None) -> list[Answer]:
        """Answers to the queries of one ask; from memory where one was had before, in this ask too."""
        if memory is None:
            return await self._send(queries)
        names = [memory.name(query.x_CHW, query.row.wanted) for query in queries]
        again = [name is not None and name in names[:n] for n, name in enumerate(names)]
        answers = [None if repeated else memory.find(name) for name, repeated in zip(names, again, strict=True)]
        fresh = [n for n, answer in enumerate(answers) if answer is None and not again[n]]
        for n, answer in zip(fresh, await self._send([queries[n] for n in fresh]) if fresh else [], strict=True):
            memory.keep(names[n], answer)
            answers[n] = answer
        return [memory.recall(name) if answer is None else answer for name, answer in zip(names, answers, strict=True)]

    def _query(self, key: ChainKey, step: int, x_CHW: Tensor, wanted: Wanted, goal: float) -> Query:
        like = self._like
        row = Row(
            image_id=key[0],
            restart=key[1],
            step=step,
            cell=like.cell,
            objective=like.objective,
            wanted=wanted,
            goal=goal,
        )
        return Query(victim=self._victim, row=row, x_CHW=x_CHW)
