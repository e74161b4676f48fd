"""How far can an image-restoration model be trusted?

import udc_ray
restorer = udc_ray.load("default")
samples = udc_ray.samples(display="toled", limit=4)
attacked = udc_ray.perturb(restorer, samples, "pgd", eps="8/255")
cleaned = udc_ray.purify(attacked, "ddim", steps=3)
print(udc_ray.measure(restorer, samples), udc_ray.measure(restorer, attacked), udc_ray.measure(restorer, cleaned))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udc_ray.library import load, measure, perturb, purify, samples

__all__ = ["load", "measure", "perturb", "purify", "samples"]


def __getattr__(name: str) -> Any:
    """Load the library's functions on first use, so that importing the package stays cheap."""
    if name in __all__:
        from udc_ray import library

        return getattr(library, name)
    raise AttributeError(f"module 'udc_ray' has no attribute {name!r}")
