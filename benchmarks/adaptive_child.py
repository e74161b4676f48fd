"""Peak memory of one gradient through a purifier, in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from udc_ray.models.loading import load_restorer
from udc_ray.purifiers.diffusion import DDIM
from udc_ray.purifiers.gradients import exact
from udc_ray.spec import Entry
from udc_ray.tape import Tape

MIB = 2**20


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def main() -> None:
    """Arguments: ``segmented`` or ``whole``, steps, batch size; prints one JSON object."""
    kind, steps, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    purifier = DDIM(steps=steps, sigma=40)
    prepared, restorer = purifier.prepare("cpu"), load_restorer(Entry(name="default"))
    tape = Tape(seed=0, image_ids=tuple(f"{n}" for n in range(batch)), stream="attack")
    x = torch.rand(batch, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # libraries make their buffers at the first call
        restorer(prepared(x[:1, :, :32, :32], 10))
    before = resident()
    leaf = x.clone().requires_grad_()
    segments = purifier.segments(leaf, tape, prepared)
    if kind == "segmented":
        purified = exact(segments, leaf)
    else:
        state: Any = (leaf,)
        for segment in segments:
            state = segment(state, leaf)
        purified = state[0]
    torch.autograd.grad(restorer(purified).square().sum(), leaf)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(json.dumps({"peak_mib": round(peak, 1), "state_mib": round(x.numel() * 4 / MIB, 3)}))


if __name__ == "__main__":
    main()
