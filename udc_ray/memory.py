"""Memory: kept between forward passes, and told with the size that fits when it runs out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from udc_ray.errors import DeviceMemoryError

_CPU_MESSAGES = ("can't allocate memory", "not enough memory", "bad_alloc")


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 2**30
"""Blocks up to so large, and so much in all, stay with the process when they are freed."""


def keep_freed_memory() -> bool:
    """Keep freed activations in this process, where the C library can (glibc).

    Otherwise every backward pass gives its activations back to the kernel and the next forward
    pass faults them in again, page by page: about 7 % of a PGD step on a CPU.

    Returns:
        Whether the C library took the settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))


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
