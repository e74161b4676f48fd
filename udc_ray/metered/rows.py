"""One query of a metered target: its key, its states, and its answer as bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Purpose = Literal["attack", "harness"]
"""``attack``: an attack asked for it. ``harness``: clean images, scoring, verification, canaries, probes."""

State = Literal["reserved", "sent", "answered", "unknown", "refused"]
"""``reserved``: not sent yet. ``sent``: under way. ``answered``. ``unknown``: sent and not answered; the
target may have counted it, so it is spent. ``refused``: turned away by a target that does not count that, or
never sent after all."""

SETTLED: tuple[State, ...] = ("answered", "unknown", "refused")
"""States that never change again."""

Answer = float | bool | NDArray[np.float64] | list[Any]
"""A score, an event, or tile sums: an array, or a rectangular list of lists of numbers."""


@dataclass(frozen=True, kw_only=True)
class QueryKey:
    """The logical query; one that is sent again keeps its key and gets another attempt.

    Attributes:
        purpose: who asked.
        cell: cell of the run; empty where the query belongs to none.
        image_id: whose candidate it is.
        restart: of the attack.
        step: number of the candidate within (cell, image, restart).
        replay: whether a harness query that was answered before is answered from the ledger; those of
            attacks always are.
    """

    purpose: Purpose
    cell: str
    image_id: str
    restart: int = 0
    step: int = 0
    replay: bool = field(default=False, compare=False)

    @property
    def replays(self) -> bool:
        """Whether an answer that the ledger holds is given instead of sending again."""
        return self.replay or self.purpose == "attack"

    def __str__(self) -> str:
        return f"{self.purpose} query {self.step} of {self.image_id!r}, cell {self.cell!r}, restart {self.restart}"


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """The right to send one query once.

    Attributes:
        row: number of the row in the ledger.
        key: the query.
        candidate: sha256 of the exact bytes that are sent, hexadecimal.
        attempt: 1 for the first send of this key.
        session: the opening of the ledger that gave it; no other takes it.
    """

    row: int
    key: QueryKey
    candidate: str
    attempt: int
    session: str


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The answer that the ledger holds already: nothing is sent, nothing is charged."""

    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Row:
    """One query as the ledger holds it.

    Attributes:
        row: its number, in the order of reservation.
        key: the query.
        attempt: 1 for the first send of this key.
        candidate: sha256 of the exact bytes that were sent, hexadecimal.
        state: what became of it.
        reason: why there is no answer.
        answer: what the target said, reduced to what was wanted.
        lease: number of the lease under which it was reserved; 0 without leases.
        reserved_at: seconds since 1970, as the next two.
        sent_at: None where it was never sent.
        settled_at: when it was answered, refused or given up.
    """

    row: int
    key: QueryKey
    attempt: int
    candidate: str
    state: State
    reason: str | None
    answer: Answer | None
    lease: int
    reserved_at: float
    sent_at: float | None
    settled_at: float | None


def encode_answer(answer: Answer) -> bytes:
    """An answer as bytes, without loss: NaN, infinities and the sign of zero too.

    Args:
        answer: whole numbers must be exact in float64, and come back as floats of equal value.

    Raises:
        TypeError: anything but a number, a truth value, a float64 array or a rectangular list of numbers.
    """
    if isinstance(answer, (bool, np.bool_)):
        return b"b\1" if answer else b"b\0"
    if isinstance(answer, (int, float, np.floating, np.integer)):
        return b"f" + struct.pack("<d", _exact(answer))
    if isinstance(answer, np.ndarray):
        if answer.dtype != np.float64:
            raise TypeError(f"an answer is a float64 array, not {answer.dtype}")
        return b"a" + _encode_array(answer)
    if isinstance(answer, list):
        return b"l" + _encode_array(_rectangular(answer))
    raise TypeError(f"an answer is a number, a truth value or tile sums, not {type(answer).__name__}")


def decode_answer(data: bytes) -> Answer:
    """The answer of `encode_answer`.

    Raises:
        ValueError: bytes that are no answer.
    """
    kind, body = data[:1], data[1:]
    if kind == b"b" and len(body) == 1:
        return body == b"\1"
    if kind == b"f" and len(body) == 8:
        return float(struct.unpack("<d", body)[0])
    if kind in {b"a", b"l"} and body:
        values = _decode_array(body)
        return values if kind == b"a" else list(values.tolist())
    raise ValueError(f"{data[:16]!r} is no answer")


def _exact(number: float | np.floating[Any] | np.integer[Any]) -> float:
    value = float(number)
    if isinstance(number, (int, np.integer)) and int(value) != int(number):
        raise TypeError(f"{number} is not exact in float64")
    return value


def _rectangular(answer: list[Any]) -> NDArray[np.float64]:
    try:
        values = np.array(answer)
    except ValueError as error:
        raise TypeError("tile sums are a rectangular list of lists") from error
    if values.size and values.dtype.kind not in "iuf":
        raise TypeError(f"tile sums are numbers, not {values.dtype}")
    exact = values.astype(np.float64)
    if values.dtype.kind in "iu" and [int(v) for v in exact.flat] != [int(v) for v in values.flat]:
        raise TypeError("tile sums hold a whole number that is not exact in float64")
    return exact


def _encode_array(values: NDArray[np.float64]) -> bytes:
    return struct.pack(f"<B{values.ndim}Q", values.ndim, *values.shape) + values.astype("<f8").tobytes()


def _decode_array(data: bytes) -> NDArray[np.float64]:
    start = 1 + 8 * data[0]
    try:
        shape = struct.unpack(f"<{data[0]}Q", data[1:start])
        return np.frombuffer(data[start:], dtype="<f8").astype(np.float64).reshape(shape)
    except (struct.error, ValueError, OverflowError) as error:
        raise ValueError("tile sums that are cut short, or of an impossible shape") from error
