"""Restorers, and the published networks that they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udc_ray.models.loading import load
    from udc_ray.models.published import build, run_published

__all__ = ["build", "load", "run_published"]


def __getattr__(name: str) -> Any:
    """Load the networks on first use, so that importing the package stays cheap."""
    if name in __all__:
        from udc_ray.models import loading, published

        return getattr(loading if name == "load" else published, name)
    raise AttributeError(f"module 'udc_ray.models' has no attribute {name!r}")
