"""Out of memory, told with the size that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from udc_ray.errors import DeviceMemoryError

_CPU_MESSAGES = ("can't allocate memory", "not enough memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a device is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_MESSAGES)


def largest_that_fits(trial: Callable[[int], object], failed: int) -> int:
    """Halve a micro-batch until `trial` runs; 0 when not even one image fits."""
    slots = failed // 2
    while slots >= 1:
        try:
            trial(slots)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            slots //= 2
        else:
            return slots
    return 0


@contextmanager
def explained(trial: Callable[[int], object], slots: int, what: str) -> Iterator[None]:
    """Turn an out-of-memory error into one that names the micro-batch that fits.

    Args:
        trial: runs one forward and backward pass at a given micro-batch.
        slots: the micro-batch in use.
        what: what was being done, for the message.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fits = largest_that_fits(trial, slots)
        advice = f"micro_batch {fits} fits: give --set run.micro_batch={fits}" if fits else "not even one image fits"
        raise DeviceMemoryError(f"out of memory in {what} at micro_batch {slots}; {advice}") from error
