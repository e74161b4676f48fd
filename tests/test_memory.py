"""Out of memory names the size that fits; other errors are left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from udc_ray.errors import DeviceMemoryError
from udc_ray.memory import explained, is_out_of_memory, largest_that_fits


def device_for(largest: int) -> Callable[[int], None]:
    """A device that holds `largest` images."""

    def trial(slots: int) -> None:
        if slots > largest:
            raise torch.OutOfMemoryError(f"no room for {slots}")

    return trial


@pytest.mark.parametrize(("failed", "largest", "fits"), [(16, 5, 4), (16, 8, 8), (7, 3, 3), (6, 1, 1), (4, 0, 0)])
def test_halves_until_it_fits(failed: int, largest: int, fits: int) -> None:
    assert largest_that_fits(device_for(largest), failed) == fits


def test_message_names_the_size_that_fits() -> None:
    message = r"in pgd at micro_batch 16; .*run\.micro_batch=4$"
    with pytest.raises(DeviceMemoryError, match=message), explained(device_for(5), 16, "pgd"):
        device_for(5)(16)
    with pytest.raises(DeviceMemoryError, match="not even one image fits"), explained(device_for(0), 4, "pgd"):
        device_for(0)(4)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: ..."),
        MemoryError(),
    ],
)
def test_knows_a_full_device(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("not enough memory")])
def test_other_errors_pass_through(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as raised, explained(device_for(1), 4, "pgd"):
        raise error
    assert raised.value is error


def test_another_error_of_the_trial_is_not_swallowed() -> None:
    def broken(slots: int) -> None:
        raise RuntimeError(f"shapes differ at {slots}")

    with pytest.raises(RuntimeError, match="shapes differ at 4"):
        largest_that_fits(broken, 8)


def test_a_real_allocation_that_cannot_be() -> None:
    def trial(slots: int) -> None:
        torch.empty(1 if slots == 1 else 2**58)

    with pytest.raises(DeviceMemoryError, match="micro_batch=1"), explained(trial, 2, "an absurd tensor"):
        trial(2)


PAGE_FAULTS = """
import resource, sys, torch
from udc_ray import memory
if sys.argv[1] == "keep":
    assert memory.keep_freed_memory()
torch.set_num_threads(1)
network = torch.nn.Sequential(*(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(6)))

def step():
    x = torch.ones(4, 32, 128, 128, requires_grad=True)
    torch.autograd.grad(network(x).sum(), x)

for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_activations_are_not_faulted_in_again() -> None:
    def faults(how: str) -> int:
        words = [sys.executable, "-c", PAGE_FAULTS, how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    # the least of three: the kernel may take pages back while the machine is short of memory
    assert min(faults("keep") for _ in range(3)) < faults("plain") / 10
